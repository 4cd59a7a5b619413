// StreamingCore: the state that StreamingEngine's workers and streams share; it outlives all of them.
//
// Locks: mutex_, phrases_mutex_ and a stream's inbox_mutex are never held together, nor across a run of a network or a call of a
// listener.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "base/histogram.h"
#include "speech/streaming_engine.h"
#include "speech/streaming_stream.h"

namespace headrace {

using StreamingStreamPtr = std::shared_ptr<StreamingStream>;

// What runs the networks; a worker's own.
struct StreamingWorker {
  std::unique_ptr<StreamingEncoder> encoder;
  std::unique_ptr<TransducerDecoder> transducer;  // null: CTC
};

class StreamingCore {
 public:
  StreamingCore(StreamingEngineOptions options, StreamingNetworks networks, TokenTable tokens);

  const StreamingEngineOptions& options() const { return options_; }
  Result<StreamingStreamPtr> open(const SpeechOptions& options,
                                  std::shared_ptr<SpeechListener> listener);
  // The stream's owner.
  void push(const StreamingStreamPtr& stream, std::span<const float> samples);
  void force_end(const StreamingStreamPtr& stream);
  void finish(const StreamingStreamPtr& stream);
  bool backlog_full(StreamingStream& stream) const;
  void cancel(const StreamingStreamPtr& stream);

  // Runs all that the worker will. INVALID_ARGUMENT, FAILED_PRECONDITION: "NETWORK: what does not fit".
  Status warm_up(StreamingWorker& worker) const;
  void work(StreamingWorker& worker);  // until stop()
  void stop();
  SpeechStatistics statistics() const;

 private:
  // Tokens of the utterance so far.
  struct Said {
    std::span<const int64_t> tokens;
    std::span<const uint64_t> frames;
    std::span<const float> log_probabilities;
    uint32_t silence = 0;    // frames
    std::size_t agreed = 0;  // tokens that will not change
  };

  Status check(const SpeechOptions& options) const;
  Status check_width(std::size_t width) const;
  Result<std::shared_ptr<const PhraseTrie>> prefer(const std::vector<SpeechPhrase>& phrases);
  void list(const StreamingStreamPtr& stream);
  bool take(std::vector<StreamingStreamPtr>& streams);
  void serve(StreamingWorker& worker, std::span<const StreamingStreamPtr> streams);
  bool fill(StreamingStream& stream);
  void drain(StreamingStream& stream, std::size_t chunk) const;
  Status hear(StreamingWorker& worker, std::span<const StreamingStreamPtr> streams);
  void tell(StreamingStream& stream);
  void hand_on(const StreamingStreamPtr& stream);
  void fail(const StreamingStreamPtr& stream, const Status& status, bool mine);
  void begin_anew(StreamingStream& stream) const;
  void next_utterance(StreamingStream& stream) const;

  Said said(const StreamingStream& stream) const;
  double heard_s(const StreamingStream& stream) const;
  double time_ms(const StreamingStream& stream, uint64_t frame) const;
  float confidence(std::span<const float> log_probabilities) const;
  std::vector<SpeechWord> words(const StreamingStream& stream, const Said& said) const;
  void show_partial(StreamingStream& stream, const Said& said, float stability);
  void show_final(StreamingStream& stream);
  TimePoint arrival_of(StreamingStream& stream, uint64_t sample) const;
  void release_backlog(StreamingStream& stream, std::size_t samples) const;
  std::size_t tail_samples() const {
    return std::size_t{options_.tail_ms} * kSpeechSampleRate / 1000;
  }

  const StreamingEngineOptions options_;
  const StreamingNetworks networks_;
  const TokenTable tokens_;
  const PhraseSpeller speller_;
  const std::shared_ptr<const Fbank> fbank_;

  // The channels of a call prefer the same.
  std::mutex phrases_mutex_;
  std::vector<SpeechPhrase> preferred_;      // phrases_mutex_
  std::weak_ptr<const PhraseTrie> phrases_;  // phrases_mutex_; of these

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<StreamingStreamPtr> ready_;            // mutex_
  std::vector<std::weak_ptr<StreamingStream>> all_;  // mutex_; for stop()
  std::size_t open_ = 0;                             // mutex_
  std::size_t idle_ = 0;                             // mutex_; workers
  bool stopped_ = false;                             // mutex_
  double wait_ms_ = 0;                               // mutex_; of chunks for a worker, smoothed
  TimePoint waited_;                                 // mutex_; when that was measured

  std::atomic<uint64_t> started_{0};
  std::atomic<uint64_t> refused_{0};
  std::atomic<uint64_t> finals_{0};
  std::atomic<uint64_t> partials_{0};
  std::atomic<uint64_t> runs_{0};
  std::atomic<uint64_t> chunks_{0};
  std::atomic<uint64_t> busy_ns_{0};
  Histogram final_latency_;
  Histogram partial_lag_;
};

}  // namespace headrace
