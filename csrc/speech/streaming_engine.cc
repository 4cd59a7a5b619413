#include "speech/streaming_engine.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "speech/streaming_core.h"
#include "speech/worker_threads.h"

namespace headrace {
namespace {

// What a phrase is worth a token when the request does not say, and at most.
constexpr float kBoost = 1.5F;
constexpr float kMaxBoost = 10;

// For messages.
std::string shortened(const std::string& text) {
  constexpr std::size_t kMost = 64;
  if (text.size() <= kMost) return valid_utf8(text);
  std::size_t end = kMost;
  while (end > 0 && (text[end] & 0xc0) == 0x80) --end;  // not within a letter
  return valid_utf8(std::string_view(text).substr(0, end)) + "...";
}

class Stream final : public SpeechStream {
 public:
  Stream(std::shared_ptr<StreamingCore> core, StreamingStreamPtr stream)
      : core_(std::move(core)), stream_(std::move(stream)) {}
  ~Stream() override { core_->cancel(stream_); }
  void push(std::span<const float> samples) override { core_->push(stream_, samples); }
  bool backlog_full() const override { return core_->backlog_full(*stream_); }
  void force_end_of_utterance() override { core_->force_end(stream_); }
  void finish() override { core_->finish(stream_); }

 private:
  std::shared_ptr<StreamingCore> core_;
  StreamingStreamPtr stream_;
};

class StreamingEngine final : public SpeechRecognizer {
 public:
  StreamingEngine(std::shared_ptr<StreamingCore> core, std::vector<StreamingWorker> workers)
      : core_(std::move(core)) {
    for (StreamingWorker& worker : workers) {
      threads_.start(
          std::move(worker), core_->options().low_priority,
          [core = core_](StreamingWorker& mine) { return core->warm_up(mine); },
          [core = core_](StreamingWorker& mine) { core->work(mine); });
    }
  }
  Status wait_until_warm() { return threads_.wait_until_warm(); }
  ~StreamingEngine() override { core_->stop(); }

  const SpeechModelInfo& info() const override { return core_->options().info; }
  SpeechStatistics statistics() const override { return core_->statistics(); }
  Result<std::unique_ptr<SpeechStream>> open(const SpeechOptions& options,
                                             std::shared_ptr<SpeechListener> listener) override {
    Result<StreamingStreamPtr> stream = core_->open(options, std::move(listener));
    if (!stream) return stream.error();
    return std::unique_ptr<SpeechStream>(std::make_unique<Stream>(core_, *std::move(stream)));
  }

 private:
  std::shared_ptr<StreamingCore> core_;
  WorkerThreads threads_;  // last: stopped before they are waited for
};

}  // namespace

StreamingCore::StreamingCore(StreamingEngineOptions options, StreamingNetworks networks,
                             TokenTable tokens)
    : options_(std::move(options)),
      networks_(std::move(networks)),
      tokens_(std::move(tokens)),
      speller_(tokens_),
      fbank_(std::make_shared<Fbank>(options_.features, networks_.encoder->bands)) {}

Status StreamingCore::check(const SpeechOptions& options) const {
  const SpeechEndpointing& ends = options.endpointing;
  for (const int32_t ms : {ends.start_history_ms, ends.stop_history_ms, ends.stop_history_eou_ms}) {
    if (ms > 60'000) return Status::invalid_argument("endpointing: more than a minute");
  }
  for (const float share : {ends.start_threshold, ends.stop_threshold, ends.stop_threshold_eou}) {
    if (!(share <= 1)) return Status::invalid_argument("endpointing: a threshold above 1");
  }
  if (!options.phrases.empty() && networks_.transducer == nullptr) {
    return Status::unimplemented("this model cannot prefer given phrases");
  }
  return {};
}

// Null without phrases.
Result<std::shared_ptr<const PhraseTrie>> StreamingCore::prefer(
    const std::vector<SpeechPhrase>& phrases) {
  if (phrases.empty()) return std::shared_ptr<const PhraseTrie>();
  if (Status status = check_phrase_sizes(phrases); !status.ok()) return status;
  {
    const std::lock_guard lock(phrases_mutex_);
    if (preferred_ == phrases) {
      if (std::shared_ptr<const PhraseTrie> known = phrases_.lock()) return known;
    }
  }
  std::vector<PhraseTrie::Phrase> spelled;
  for (const SpeechPhrase& phrase : phrases) {
    if (phrase.text.find_first_not_of(" \t\r\n") == std::string::npos) continue;
    std::optional<std::vector<int64_t>> tokens = speller_.spell(phrase.text);
    if (!tokens) {
      return Status::invalid_argument("speech_contexts: '" + shortened(phrase.text) +
                                      "' has letters that this model does not write");
    }
    const float boost = phrase.boost == 0 ? kBoost : phrase.boost;
    if (!std::isfinite(boost)) return Status::invalid_argument("speech_contexts: boost");
    spelled.push_back({*std::move(tokens), std::clamp(boost, -kMaxBoost, kMaxBoost)});
  }
  if (spelled.empty()) return std::shared_ptr<const PhraseTrie>();
  std::shared_ptr<const PhraseTrie> made = std::make_shared<PhraseTrie>(spelled);
  const std::lock_guard lock(phrases_mutex_);
  preferred_ = phrases;
  phrases_ = made;
  return made;
}

Result<StreamingStreamPtr> StreamingCore::open(const SpeechOptions& options,
                                               std::shared_ptr<SpeechListener> listener) {
  if (Status status = check(options); !status.ok()) return status;
  Result<std::shared_ptr<const PhraseTrie>> phrases = prefer(options.phrases);
  if (!phrases) return phrases.error();
  auto stream = std::make_shared<StreamingStream>(options, std::move(listener), fbank_);
  const SpeechEndpointing& ends = options.endpointing;
  stream->stop_ms = options.offline ? options_.stop_offline_ms : options_.stop_ms;
  if (ends.stop_history_ms > 0) stream->stop_ms = static_cast<uint32_t>(ends.stop_history_ms);
  stream->eou_ms = ends.stop_history_eou_ms > 0 ? static_cast<uint32_t>(ends.stop_history_eou_ms)
                                                : options_.eou_ms;
  if (stream->eou_ms >= stream->stop_ms || options.offline) stream->eou_ms = 0;
  stream->phrases = *std::move(phrases);
  stream->paths =
      stream->phrases == nullptr ? options_.paths : std::max(options_.paths, options_.phrase_paths);
  begin_anew(*stream);
  stream->wanted = stream->features.lacking(networks_.encoder->chunk());

  const TimePoint now = Clock::now();
  const std::lock_guard lock(mutex_);
  if (stopped_) return Status::unavailable("speech: the model is being unloaded");
  // A measurement of the past says nothing of now.
  const bool recent = now - waited_ < std::chrono::seconds(3);
  const bool busy =
      !options.offline && recent && wait_ms_ > static_cast<double>(options_.max_wait.count());
  if (busy || open_ >= options_.max_streams) {
    ++refused_;
    return Status::resource_exhausted(busy ? "speech: audio waits too long for a processor"
                                           : "speech: too many streams (" +
                                                 std::to_string(options_.max_streams) + ")")
        .with_pushback(Milliseconds(1000));
  }
  ++open_;
  ++started_;
  stream->counted = true;
  std::erase_if(all_, [](const auto& other) { return other.expired(); });
  all_.push_back(stream);
  return stream;
}

void StreamingCore::push(const StreamingStreamPtr& stream, std::span<const float> samples) {
  if (samples.empty()) return;
  bool news = false;
  {
    const std::lock_guard lock(stream->inbox_mutex);
    if (stream->finished) return;
    if (stream->inbox_head > 0 && stream->inbox_head * 2 >= stream->inbox.size()) {
      stream->inbox.erase(stream->inbox.begin(),
                          stream->inbox.begin() + static_cast<std::ptrdiff_t>(stream->inbox_head));
      stream->inbox_head = 0;
    }
    stream->inbox.insert(stream->inbox.end(), samples.begin(), samples.end());
    // One for some 32 ms, of half a minute at most.
    const bool same = !stream->arrivals.empty() && stream->arrivals.back().first / 512 ==
                                                       (stream->arrived + samples.size()) / 512;
    stream->arrived += samples.size();
    if (same) stream->arrivals.pop_back();
    stream->arrivals.emplace_back(stream->arrived, Clock::now());
    if (stream->arrivals.size() > 1024) stream->arrivals.pop_front();
    stream->backlog += samples.size();
    news = stream->inbox.size() - stream->inbox_head >= stream->wanted;
  }
  if (news) list(stream);
}

void StreamingCore::force_end(const StreamingStreamPtr& stream) {
  {
    const std::lock_guard lock(stream->inbox_mutex);
    if (stream->finished) return;
    if (!stream->forced_ends.empty() && stream->forced_ends.back() == stream->arrived) return;
    stream->forced_ends.push_back(stream->arrived);
    // The silence behind it is heard like audio.
    stream->backlog += tail_samples();
  }
  list(stream);
}

void StreamingCore::finish(const StreamingStreamPtr& stream) {
  {
    const std::lock_guard lock(stream->inbox_mutex);
    if (stream->finished) return;
    stream->finished = true;
  }
  list(stream);
}

void StreamingCore::cancel(const StreamingStreamPtr& stream) {
  {
    const std::lock_guard lock(mutex_);
    stream->cancelled = true;
    if (stream->counted) --open_;
    stream->counted = false;
    if (stream->ready) std::erase(ready_, stream);
    stream->ready = false;
  }
  const std::lock_guard lock(stream->inbox_mutex);
  stream->finished = true;
  stream->inbox = {};
  stream->inbox_head = 0;
}

void StreamingCore::stop() {
  std::vector<StreamingStreamPtr> left;
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    for (const std::weak_ptr<StreamingStream>& each : all_) {
      StreamingStreamPtr stream = each.lock();
      if (stream != nullptr && !stream->cancelled) left.push_back(std::move(stream));
    }
  }
  wake_.notify_all();
  for (const StreamingStreamPtr& stream : left) {
    fail(stream, Status::unavailable("speech: the model has been unloaded"), false);
  }
}

void StreamingCore::release_backlog(StreamingStream& stream, std::size_t samples) const {
  const std::size_t left = stream.backlog.fetch_sub(samples) - samples;
  const auto room = static_cast<std::size_t>(options_.max_backlog_s * kSpeechSampleRate / 2);
  if (left <= room && stream.told_full.exchange(false) && !stream.cancelled) {
    stream.listener->on_room();
  }
}

bool StreamingCore::backlog_full(StreamingStream& stream) const {
  const auto limit = static_cast<std::size_t>(options_.max_backlog_s * kSpeechSampleRate);
  if (stream.backlog <= limit) return false;
  stream.told_full = true;
  // It may have become room before anybody knew that it is waited for.
  return !(stream.backlog <= limit / 2 && stream.told_full.exchange(false));
}

SpeechStatistics StreamingCore::statistics() const {
  SpeechStatistics statistics;
  {
    const std::lock_guard lock(mutex_);
    statistics.open_streams = open_;
  }
  statistics.streams_started = started_;
  statistics.streams_refused = refused_;
  statistics.finals = finals_;
  statistics.partials = partials_;
  statistics.decoder_steps = runs_;
  statistics.decoder_tokens = chunks_;
  statistics.audio_seconds = static_cast<double>(chunks_.load() * networks_.encoder->shift()) *
                             Fbank::kHop / kSpeechSampleRate;
  statistics.busy_seconds = static_cast<double>(busy_ns_.load()) * 1e-9;
  statistics.final_latency_ns = final_latency_.read();
  statistics.partial_lag_ns = partial_lag_.read();
  return statistics;
}

Result<std::shared_ptr<SpeechRecognizer>> make_streaming_engine(StreamingEngineOptions options,
                                                                StreamingNetworks networks,
                                                                TokenTable tokens) {
  if (options.threads == 0 || options.max_batch == 0 || options.max_streams == 0 ||
      options.paths == 0 || options.paths > 64) {
    return Status::invalid_argument(
        "threads, max_batch and max_streams must be at least 1, paths 1 to 64");
  }
  const uint64_t fit = options.max_cache_bytes / networks.encoder->state_bytes();
  if (fit == 0) {
    return Status::invalid_argument(
        "encoder: a stream's caches have " + std::to_string(networks.encoder->state_bytes()) +
        " bytes, of " + std::to_string(options.max_cache_bytes) + " for all");
  }
  options.max_streams = std::min<uint64_t>(options.max_streams, fit);
  std::vector<StreamingWorker> workers;
  for (uint32_t i = 0; i < options.threads; ++i) {
    StreamingWorker worker;
    Result<std::unique_ptr<StreamingEncoder>> encoder = StreamingEncoder::create(networks.encoder);
    if (!encoder) return encoder.error();
    worker.encoder = *std::move(encoder);
    if (networks.transducer != nullptr) {
      auto decoder = TransducerDecoder::create(networks.transducer);
      if (!decoder) return decoder.error();
      worker.transducer = *std::move(decoder);
    }
    workers.push_back(std::move(worker));
  }
  auto core =
      std::make_shared<StreamingCore>(std::move(options), std::move(networks), std::move(tokens));
  auto engine = std::make_shared<StreamingEngine>(std::move(core), std::move(workers));
  if (Status status = engine->wait_until_warm(); !status.ok()) return status;
  return std::shared_ptr<SpeechRecognizer>(std::move(engine));
}

}  // namespace headrace
