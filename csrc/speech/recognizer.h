// SpeechRecognizer: turns streams of audio into text. The door of the speech room: what serves clients
// (frontend/riva_*) knows nothing below it, what recognises (segment and streaming families) nothing
// above it.
//
// Threads: SpeechRecognizer is shared. A SpeechStream belongs to one thread, none of its members blocks:
// the work is done on the recogniser's own threads. A SpeechListener is told on those.
//
//   Result<std::unique_ptr<SpeechStream>> stream = recognizer.open(options, listener);
//   (*stream)->push(samples);      // as they come, any amount
//   (*stream)->finish();           // no more audio: the last finals, then listener->on_end(OK)
//
// A stream ends with exactly one on_end(), and nothing after it; after the stream was destroyed, with
// nothing at all (a result that is on its way at that moment may still come).
// ---------------------------------------------------------------------------------------------
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "speech/speech_statistics.h"

namespace headrace {

// Samples of every stream: mono, f32 in [-1, 1].
inline constexpr uint32_t kSpeechSampleRate = 16000;  // Hz

// When an utterance starts and ends. Zero or less: the recogniser's own.
struct SpeechEndpointing {
  int32_t start_history_ms = 0;  // window in which speech must be found
  float start_threshold = 0;     // share of it that is speech, 0 to 1
  int32_t stop_history_ms = 0;   // silence that ends an utterance
  float stop_threshold = 0;
  int32_t stop_history_eou_ms =
      0;  // silence after which the final is decoded ahead and sent with stability 1
  float stop_threshold_eou = 0;
};

// Words or phrases that are more likely here than the model thinks.
struct SpeechPhrase {
  std::string text;
  float boost = 0;
  bool operator==(const SpeechPhrase&) const = default;
};

inline constexpr std::size_t kMaxPhraseBytes = 256;
inline constexpr std::size_t kMaxPhrasesBytes = 64 * 1024;  // all together

// INVALID_ARGUMENT beyond: they are spelled while other calls wait.
inline Status check_phrase_sizes(std::span<const SpeechPhrase> phrases) {
  std::size_t bytes = 0;
  bool fits = true;
  for (const SpeechPhrase& phrase : phrases) {
    bytes += phrase.text.size();
    fits = fits && phrase.text.size() <= kMaxPhraseBytes;
  }
  if (fits && bytes <= kMaxPhrasesBytes) return {};
  return Status::invalid_argument(
      "speech_contexts: a phrase has at most 256 bytes, all together 64 KiB");
}

struct SpeechOptions {
  bool interim_results = false;
  bool word_times = false;
  // All audio is there or comes as fast as it can: no interim results, no waiting for silence.
  bool offline = false;
  SpeechEndpointing endpointing{};
  std::vector<SpeechPhrase> phrases{};
};

struct SpeechWord {
  std::string text;
  int32_t start_ms = 0;  // since the start of the stream
  int32_t end_ms = 0;
  float confidence = 0;
};

// What was said in one utterance, so far or in the end.
struct SpeechResult {
  std::string transcript;  // of the utterance; no space at the ends
  bool is_final = false;
  float stability =
      0;  // of interim ones: 0 to 1, the share that will not change; 1: a speculative final
  float confidence = 0;           // of finals: 0 to 1, 0: not known
  std::vector<SpeechWord> words;  // of finals, when they were asked for
  double audio_processed_s = 0;   // of the stream, to the end of what this result has heard
};

class SpeechListener {
 public:
  virtual ~SpeechListener() = default;
  virtual void on_result(SpeechResult result) noexcept = 0;
  virtual void on_end(Status status) noexcept = 0;
  // backlog_full() was true and is false.
  virtual void on_room() noexcept = 0;
};

class SpeechStream {
 public:
  virtual ~SpeechStream() = default;  // cancels: what is queued for it is dropped at once
  // Samples at kSpeechSampleRate. Copies them.
  virtual void push(std::span<const float> samples) = 0;
  // So much audio waits to be recognised that its sender should stop for a while. on_room() says when.
  virtual bool backlog_full() const = 0;
  // The speaker has finished this utterance: its final comes as soon as it can, and the stream goes on.
  virtual void force_end_of_utterance() = 0;
  // No more audio will come. Once.
  virtual void finish() = 0;
};

struct SpeechModelInfo {
  std::string name;
  std::string language_code;  // "en-US"
  bool offline = true;        // answers whole files
  bool streaming = true;      // answers while people speak
  std::map<std::string, std::string>
      parameters;  // for people and for Riva's config: family, sizes, ...
};

class SpeechRecognizer {
 public:
  virtual ~SpeechRecognizer() = default;
  virtual const SpeechModelInfo& info() const = 0;
  // Errors: RESOURCE_EXHAUSTED when the machine has no time for one more stream; UNIMPLEMENTED for options
  // that the model's family does not have; INVALID_ARGUMENT.
  virtual Result<std::unique_ptr<SpeechStream>> open(const SpeechOptions& options,
                                                     std::shared_ptr<SpeechListener> listener) = 0;
  // Any thread.
  virtual SpeechStatistics statistics() const { return {}; }
};

}  // namespace headrace
