#include "speech/speech_engine.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "speech/engine_core.h"
#include "speech/worker_threads.h"

namespace headrace {
namespace {

std::size_t frames_of(double milliseconds) {
  constexpr double kFrameMs = 1000.0 * kVoiceFrame / kSpeechSampleRate;
  return std::max<std::size_t>(1, static_cast<std::size_t>(std::lround(milliseconds / kFrameMs)));
}

SegmenterOptions segmenting(const SpeechEngineOptions& engine, const SpeechOptions& asked) {
  SegmenterOptions options = asked.offline ? engine.offline : engine.streaming;
  const SpeechEndpointing& ends = asked.endpointing;
  if (ends.start_history_ms > 0) {
    const double share =
        static_cast<double>(options.start_frames) / static_cast<double>(options.start_window);
    options.start_window = frames_of(ends.start_history_ms);
    options.start_frames = std::max<std::size_t>(
        1,
        static_cast<std::size_t>(std::lround(share * static_cast<double>(options.start_window))));
  }
  if (ends.start_threshold > 0) {
    options.start_frames = std::clamp<std::size_t>(
        static_cast<std::size_t>(
            std::lround(ends.start_threshold * static_cast<float>(options.start_window))),
        1, options.start_window);
  }
  if (ends.stop_history_ms > 0) options.stop_window = frames_of(ends.stop_history_ms);
  if (ends.stop_threshold > 0) options.stop_share = ends.stop_threshold;
  if (ends.stop_history_eou_ms > 0) options.eou_window = frames_of(ends.stop_history_eou_ms);
  if (ends.stop_threshold_eou > 0) options.eou_share = ends.stop_threshold_eou;
  if (options.eou_window >= options.stop_window || asked.offline) options.eou_window = 0;
  return options;
}

Status check(const SpeechOptions& options) {
  const SpeechEndpointing& ends = options.endpointing;
  for (const int32_t ms : {ends.start_history_ms, ends.stop_history_ms, ends.stop_history_eou_ms}) {
    if (ms > 60'000) return Status::invalid_argument("endpointing: more than a minute");
  }
  for (const float share : {ends.start_threshold, ends.stop_threshold, ends.stop_threshold_eou}) {
    if (!(share <= 1)) return Status::invalid_argument("endpointing: a threshold above 1");
  }
  if (!options.phrases.empty()) {
    return Status::unimplemented("this model cannot prefer given phrases");
  }
  return {};
}

class Stream final : public SpeechStream {
 public:
  Stream(std::shared_ptr<EngineCore> core, EngineStreamPtr stream)
      : core_(std::move(core)), stream_(std::move(stream)) {}
  ~Stream() override { core_->cancel(stream_); }
  void push(std::span<const float> samples) override { core_->push(stream_, samples); }
  bool backlog_full() const override { return core_->backlog_full(*stream_); }
  void force_end_of_utterance() override { core_->force_end(stream_); }
  void finish() override { core_->finish(stream_); }

 private:
  std::shared_ptr<EngineCore> core_;
  EngineStreamPtr stream_;
};

class SpeechEngine final : public SpeechRecognizer {
 public:
  SpeechEngine(std::shared_ptr<EngineCore> core, std::unique_ptr<VoiceActivity> voice_activity,
               std::vector<std::unique_ptr<SegmentDecoder>> decoders)
      : core_(std::move(core)) {
    threads_.start([core = core_, voice = std::move(voice_activity)] { core->hear(*voice); });
    for (std::unique_ptr<SegmentDecoder>& decoder : decoders) {
      threads_.start(
          std::move(decoder), core_->options().low_priority,
          [core = core_](const std::unique_ptr<SegmentDecoder>& mine) {
            return mine->warm_up(core->options().warm_seconds);
          },
          [core = core_](const std::unique_ptr<SegmentDecoder>& mine) { core->decode(*mine); });
    }
  }
  Status wait_until_warm() { return threads_.wait_until_warm(); }
  ~SpeechEngine() override { core_->stop(); }

  const SpeechModelInfo& info() const override { return core_->options().info; }
  SpeechStatistics statistics() const override { return core_->statistics(); }
  Result<std::unique_ptr<SpeechStream>> open(const SpeechOptions& options,
                                             std::shared_ptr<SpeechListener> listener) override {
    Result<EngineStreamPtr> stream = core_->open(options, std::move(listener));
    if (!stream) return stream.error();
    return std::unique_ptr<SpeechStream>(std::make_unique<Stream>(core_, *std::move(stream)));
  }

 private:
  std::shared_ptr<EngineCore> core_;
  WorkerThreads threads_;  // last: stopped before they are waited for
};

}  // namespace

EngineCore::EngineCore(SpeechEngineOptions options, std::shared_ptr<const SegmentNetwork> network,
                       TokenTable tokens)
    : options_(std::move(options)), network_(std::move(network)), tokens_(std::move(tokens)) {}

Result<EngineStreamPtr> EngineCore::open(const SpeechOptions& options,
                                         std::shared_ptr<SpeechListener> listener) {
  if (Status status = check(options); !status.ok()) return status;
  auto stream =
      std::make_shared<EngineStream>(options, segmenting(options_, options), std::move(listener));
  const TimePoint now = Clock::now();
  stream->speech_arrived = stream->audio_arrived = now;
  const std::lock_guard lock(job_mutex_);
  if (stopped_) return Status::unavailable("speech: the model is being unloaded");
  // A measurement of the past says nothing of now.
  const bool recent = now - final_waited_ < std::chrono::seconds(3);
  const bool busy =
      !options.offline && recent && final_wait_ms_ > static_cast<double>(options_.max_wait.count());
  if (busy || open_ >= options_.max_streams) {
    ++refused_;
    return Status::resource_exhausted(busy ? "speech: finals wait too long for a processor"
                                           : "speech: too many streams")
        .with_pushback(Milliseconds(1000));
  }
  ++open_;
  ++started_;
  stream->counted = true;
  std::erase_if(all_, [](const auto& other) { return other.expired(); });
  all_.push_back(stream);
  return stream;
}

void EngineCore::cancel(const EngineStreamPtr& stream) {
  SpeechJob job;
  std::deque<SpeechJob> finals;
  {
    const std::lock_guard lock(job_mutex_);
    stream->cancelled = true;
    if (stream->counted) --open_;
    stream->counted = false;
    if (stream->ready) std::erase(ready_, stream);
    stream->ready = false;
    // Freed outside of the lock.
    finals.swap(stream->finals);
    if (stream->partial) job = *std::move(stream->partial);
    stream->partial.reset();
  }
  const std::lock_guard lock(stream->inbox_mutex);
  stream->finished = true;
  stream->inbox = {};
  stream->inbox_head = 0;
}

void EngineCore::stop() {
  {
    const std::lock_guard lock(hear_mutex_);
    stopped_hearing_ = true;
    news_.clear();
  }
  hear_wake_.notify_all();
  std::vector<EngineStreamPtr> left;
  {
    const std::lock_guard lock(job_mutex_);
    stopped_ = true;
    for (const std::weak_ptr<EngineStream>& each : all_) {
      EngineStreamPtr stream = each.lock();
      if (stream != nullptr && !stream->cancelled) left.push_back(std::move(stream));
    }
  }
  job_wake_.notify_all();
  for (const EngineStreamPtr& stream : left) {
    fail(stream, Status::unavailable("speech: the model has been unloaded"), false);
  }
}

SpeechStatistics EngineCore::statistics() const {
  SpeechStatistics statistics;
  {
    const std::lock_guard lock(job_mutex_);
    statistics.open_streams = open_;
  }
  statistics.streams_started = started_;
  statistics.streams_refused = refused_;
  statistics.finals = finals_;
  statistics.partials = partials_;
  statistics.partials_dropped = dropped_;
  statistics.decoder_steps = steps_;
  statistics.decoder_tokens = stepped_tokens_;
  statistics.audio_seconds = static_cast<double>(frames_.load()) * kVoiceFrame / kSpeechSampleRate;
  statistics.busy_seconds = static_cast<double>(busy_ns_.load()) * 1e-9;
  statistics.final_latency_ns = final_latency_.read();
  statistics.partial_lag_ns = partial_lag_.read();
  return statistics;
}

Result<std::shared_ptr<SpeechRecognizer>> make_speech_engine(
    SpeechEngineOptions options, std::shared_ptr<const SegmentNetwork> network,
    std::shared_ptr<Model> vad, TokenTable tokens) {
  if (options.threads == 0 || options.max_batch == 0 || options.max_streams == 0) {
    return Status::invalid_argument("threads, max_batch and max_streams must be at least 1");
  }
  Result<std::unique_ptr<VoiceActivity>> voice_activity = VoiceActivity::create(std::move(vad));
  if (!voice_activity) return voice_activity.error();
  std::vector<std::unique_ptr<SegmentDecoder>> decoders;
  for (uint32_t i = 0; i < options.threads; ++i) {
    Result<std::unique_ptr<SegmentDecoder>> decoder = SegmentDecoder::create(network);
    if (!decoder) return decoder.error();
    decoders.push_back(*std::move(decoder));
  }
  auto core =
      std::make_shared<EngineCore>(std::move(options), std::move(network), std::move(tokens));
  auto engine = std::make_shared<SpeechEngine>(std::move(core), *std::move(voice_activity),
                                               std::move(decoders));
  if (Status status = engine->wait_until_warm(); !status.ok()) return status;
  return std::shared_ptr<SpeechRecognizer>(std::move(engine));
}

}  // namespace headrace
