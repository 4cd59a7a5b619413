// EngineCore: the state that SpeechEngine's threads and streams share; it outlives all of them.
// hearing.cc has the thread that hears, decoding.cc those that decode.
//
// Locks: hear_mutex_ and job_mutex_ are never held together, nor across a run of a network or a call of a
// listener.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/histogram.h"
#include "speech/engine_stream.h"
#include "speech/segment_decoder.h"
#include "speech/speech_engine.h"
#include "speech/voice_activity.h"

namespace headrace {

using EngineStreamPtr = std::shared_ptr<EngineStream>;

class EngineCore {
 public:
  EngineCore(SpeechEngineOptions options, std::shared_ptr<const SegmentNetwork> network,
             TokenTable tokens);

  const SpeechEngineOptions& options() const { return options_; }
  Result<EngineStreamPtr> open(const SpeechOptions& options,
                               std::shared_ptr<SpeechListener> listener);
  // The stream's owner.
  void push(const EngineStreamPtr& stream, std::span<const float> samples);
  void force_end(const EngineStreamPtr& stream);
  void finish(const EngineStreamPtr& stream);
  bool backlog_full(EngineStream& stream) const;
  void cancel(const EngineStreamPtr& stream);

  void hear(VoiceActivity& voice_activity);  // the thread that hears, until stop()
  void decode(SegmentDecoder& decoder);      // a worker, until stop()
  void stop();
  SpeechStatistics statistics() const;

 private:
  // Hearing.
  struct Turn;
  void list(const EngineStreamPtr& stream);
  bool take_news(std::vector<EngineStreamPtr>& streams);
  void collect(Turn& turn) const;
  void hear_turns(VoiceActivity& voice_activity, std::vector<Turn>& turns);
  void hear_frame(Turn& turn, float probability);
  void handle(const EngineStreamPtr& stream, SegmentEvent event);
  SpeechJob job_of(EngineStream& stream, const SegmentEvent& event, SpeechJob::Kind kind) const;
  void queue(const EngineStreamPtr& stream, SpeechJob job);
  void fail(const EngineStreamPtr& stream, const Status& status, bool mine);

  // Decoding.
  struct Active {
    EngineStreamPtr stream;
    SpeechJob job;
    DecodeRow row;
  };
  std::optional<Active> take_job(const std::vector<std::unique_ptr<Active>>& active);
  void make_ready(const EngineStreamPtr& stream);
  void complete(Active& active, bool whole);
  void show_final(EngineStream& stream, const SpeechJob& job, std::span<const int64_t> tokens,
                  float confidence);
  void show_partial(EngineStream& stream, const SpeechJob& job, std::span<const int64_t> tokens,
                    float stability);
  void advance(const EngineStreamPtr& stream);
  void release_backlog(EngineStream& stream, std::size_t samples) const;

  const SpeechEngineOptions options_;
  const std::shared_ptr<const SegmentNetwork> network_;
  const TokenTable tokens_;

  std::mutex hear_mutex_;
  std::condition_variable hear_wake_;
  std::deque<EngineStreamPtr> news_;  // hear_mutex_
  bool stopped_hearing_ = false;      // hear_mutex_

  mutable std::mutex job_mutex_;
  std::condition_variable job_wake_;
  std::vector<EngineStreamPtr> ready_;            // job_mutex_
  std::vector<std::weak_ptr<EngineStream>> all_;  // job_mutex_; for stop()
  std::size_t open_ = 0;                          // job_mutex_
  std::size_t idle_ = 0;                          // job_mutex_; workers
  bool stopped_ = false;                          // job_mutex_
  double final_wait_ms_ = 0;                      // job_mutex_; of finals for a worker, smoothed
  TimePoint final_waited_;                        // job_mutex_; when that was measured

  std::atomic<uint64_t> started_{0};
  std::atomic<uint64_t> refused_{0};
  std::atomic<uint64_t> finals_{0};
  std::atomic<uint64_t> partials_{0};
  std::atomic<uint64_t> dropped_{0};
  std::atomic<uint64_t> steps_{0};
  std::atomic<uint64_t> stepped_tokens_{0};
  std::atomic<uint64_t> frames_{0};
  std::atomic<uint64_t> busy_ns_{0};
  Histogram final_latency_;
  Histogram partial_lag_;
};

}  // namespace headrace
