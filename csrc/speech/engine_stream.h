// What SpeechEngine knows of one stream. Each part belongs to somebody: see the marks.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "speech/recognizer.h"
#include "speech/segmenter.h"
#include "speech/voice_activity.h"

namespace headrace {

// A segment, or what there is of it, that is to become text.
struct SpeechJob {
  enum class Kind : uint8_t { kFinal, kSpeculative, kPartial };
  Kind kind = Kind::kPartial;
  bool first = false;  // no text of this segment has been shown yet
  uint64_t segment = 0;
  uint64_t begin = 0;  // frames of the stream
  uint64_t end = 0;
  std::vector<float> samples;
  std::vector<bool> voiced;  // finals and speculative ones
  uint64_t speculated_end =
      0;  // finals: what was decoded ahead to this frame is the same; 0: nothing
  TimePoint due;
  TimePoint
      heard;  // when what it is measured from arrived: the last speech of finals, the last audio of others
};

struct EngineStream {
  EngineStream(const SpeechOptions& asked, const SegmenterOptions& segmenting,
               std::shared_ptr<SpeechListener> told)
      : options(asked), listener(std::move(told)), segmenter(segmenting) {}

  const SpeechOptions options;
  const std::shared_ptr<SpeechListener> listener;

  std::atomic<bool> cancelled{false};
  // A final or one ahead of it waits: what is in flight should end soon.
  std::atomic<bool> hurry{false};
  std::atomic<std::size_t> backlog{0};  // samples that wait
  std::atomic<bool> told_full{false};

  // What arrived, guarded by `inbox_mutex`.
  std::mutex inbox_mutex;
  std::vector<float> inbox;
  std::size_t inbox_head = 0;
  uint64_t arrived = 0;                                 // samples since the start
  std::deque<std::pair<uint64_t, TimePoint>> arrivals;  // arrived, when
  std::deque<uint64_t> forced_ends;                     // samples since the start
  bool finished = false;

  // The engine's hear mutex.
  bool listed = false;  // among those with news

  // The thread that hears.
  VoiceState voice;
  Segmenter segmenter;
  std::vector<float> audio;  // that a segment may still need
  uint64_t audio_from = 0;   // frame
  TimePoint speech_arrived;
  TimePoint audio_arrived;
  uint64_t speculative_end = 0;             // frame, of the open segment
  std::optional<SegmentEvent> due_partial;  // after what is heard together with it

  // The engine's job mutex.
  std::deque<SpeechJob> finals;
  std::optional<SpeechJob> partial;  // or a speculative one
  bool in_flight = false;
  bool ready = false;  // among those a worker may take
  TimePoint ready_since;
  bool heard_all = false;
  bool held = false;  // not heard further until finals are done
  Status failure;     // it ends with this
  bool ended = false;
  bool counted = false;  // among the open streams

  // Whoever has the job in flight.
  struct Hypothesis {
    uint64_t segment = 0;
    std::vector<int64_t> tokens;
  };
  Hypothesis hypothesis;  // the last one, a draft for the next
  bool shown = false;     // an interim result of hypothesis.segment
  // What was decoded ahead.
  uint64_t speculated_segment = 0;
  uint64_t speculated_end = 0;
  std::vector<int64_t> speculated;
  float speculated_confidence = 0;
};

}  // namespace headrace
