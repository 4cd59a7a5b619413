// The threads that recognise: take streams with a chunk of new audio, run their chunks together, tell the listeners.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <new>

#include "speech/streaming_core.h"

namespace headrace {
namespace {

constexpr double kSampleMs = 1000.0 / kSpeechSampleRate;

// Scores of hypotheses are compared per token: after a long silence any token would make one better. So the
// scores begin anew from time to time.
constexpr double kLongSilenceMs = 2400;

// Whole files wait for those who listen, but not for ever; each of their chunks does.
bool can_wait(const StreamingStream& stream, TimePoint now) {
  return stream.options.offline && now - stream.ready_since < std::chrono::milliseconds(500);
}

}  // namespace

// Puts the stream among those that wait for a worker.
void StreamingCore::list(const StreamingStreamPtr& stream) {
  {
    const std::lock_guard lock(mutex_);
    if (stopped_ || stream->cancelled || stream->ended || stream->ready) return;
    stream->news = stream->in_flight;
    if (stream->in_flight) return;
    stream->ready = true;
    stream->ready_since = Clock::now();
    ready_.push_back(stream);
  }
  wake_.notify_one();
}

// Waits for streams; false: the engine stops. Idle workers get their share.
bool StreamingCore::take(std::vector<StreamingStreamPtr>& streams) {
  std::unique_lock lock(mutex_);
  ++idle_;
  wake_.wait(lock, [this] { return stopped_ || !ready_.empty(); });
  --idle_;
  if (stopped_) return false;
  const TimePoint now = Clock::now();
  std::sort(ready_.begin(), ready_.end(), [&](const auto& a, const auto& b) {
    return std::pair(can_wait(*a, now), a->ready_since) <
           std::pair(can_wait(*b, now), b->ready_since);
  });
  const std::size_t share = (ready_.size() + idle_) / (idle_ + 1);
  const auto end =
      ready_.begin() + static_cast<std::ptrdiff_t>(std::min(share, options_.max_batch));
  streams.assign(ready_.begin(), end);
  ready_.erase(ready_.begin(), end);
  for (const StreamingStreamPtr& stream : streams) {
    stream->ready = false;
    stream->in_flight = true;
    if (stream->options.offline) continue;
    const double waited = static_cast<double>(elapsed_ns(stream->ready_since, now)) * 1e-6;
    wait_ms_ = 0.7 * wait_ms_ + 0.3 * waited;
    waited_ = now;
  }
  return true;
}

void StreamingCore::work(StreamingWorker& worker) {
  std::vector<StreamingStreamPtr> streams;
  while (take(streams)) {
    const TimePoint begun = Clock::now();
    try {
      serve(worker, streams);
    } catch (const std::bad_alloc&) {
      const Status status = Status::resource_exhausted("speech: no memory");
      for (const StreamingStreamPtr& stream : streams) fail(stream, status, true);
    }
    busy_ns_ += elapsed_ns(begun, Clock::now());
    for (const StreamingStreamPtr& stream : streams) hand_on(stream);
    streams.clear();
  }
}

void StreamingCore::serve(StreamingWorker& worker, std::span<const StreamingStreamPtr> streams) {
  std::vector<StreamingStreamPtr> chunks;
  for (const StreamingStreamPtr& stream : streams) {
    if (!stream->cancelled && fill(*stream)) chunks.push_back(stream);
  }
  Status status;
  if (!chunks.empty()) status = hear(worker, chunks);
  for (const StreamingStreamPtr& stream : chunks) {
    if (!status.ok()) {
      fail(stream, status, true);
    } else if (!stream->cancelled) {
      tell(*stream);
    }
  }
}

// Takes from the inbox what a chunk lacks. Whether there is one.
bool StreamingCore::fill(StreamingStream& stream) {
  const std::size_t chunk = networks_.encoder->chunk();
  std::vector<float> samples;
  std::size_t released = 0;
  if (stream.draining == StreamingStream::Draining::kNo) {
    const std::size_t lacking = stream.features.lacking(chunk);
    const std::lock_guard lock(stream.inbox_mutex);
    const std::size_t waiting = stream.inbox.size() - stream.inbox_head;
    std::size_t available = waiting;
    const bool forced = !stream.forced_ends.empty();
    if (forced) {
      const uint64_t begin = stream.arrived - waiting;
      available = static_cast<std::size_t>(std::max(stream.forced_ends.front(), begin) - begin);
    }
    const std::size_t taken = std::min(available, lacking);
    const float* const from = stream.inbox.data() + stream.inbox_head;
    samples.assign(from, from + taken);
    stream.inbox_head += taken;
    if (stream.inbox_head == stream.inbox.size()) {
      stream.inbox.clear();
      stream.inbox_head = 0;
    }
    if (taken < lacking && (forced || stream.finished)) {
      stream.draining =
          forced ? StreamingStream::Draining::kForced : StreamingStream::Draining::kFinish;
      if (forced) {
        stream.forced_ends.pop_front();
        released = tail_samples();
      }
    }
  }
  if (!samples.empty()) {
    stream.features.push(samples);
    stream.taken += samples.size();
    released += samples.size();
  }
  if (released > 0) release_backlog(stream, released);
  if (stream.draining != StreamingStream::Draining::kNo && !stream.tail_heard) drain(stream, chunk);
  return stream.features.frames() >= chunk;
}

// Silence behind the end: so much that all audio is in the past of a chunk's output.
void StreamingCore::drain(StreamingStream& stream, std::size_t chunk) const {
  stream.tail_heard = true;
  // Nothing, or less than a frame.
  if (stream.chunks == 0 && stream.features.frames() == 0) return;
  const std::size_t shift = networks_.encoder->shift();
  const std::size_t left = stream.features.frames();
  const std::size_t whole = (left + shift - 1) / shift;
  std::vector<float> silence(tail_samples());
  stream.features.push(silence);
  if (whole > 0) {
    silence.assign(stream.features.lacking((whole - 1) * shift + chunk), 0);
    stream.features.push(silence);
  }
}

// One chunk of each stream, in one run of the encoder.
Status StreamingCore::hear(StreamingWorker& worker, std::span<const StreamingStreamPtr> streams) {
  std::vector<StreamingEncoder::Row> rows;
  for (const StreamingStreamPtr& stream : streams) {
    rows.push_back({stream->features.data(), &stream->caches});
  }
  Result<StreamingEncoder::Heard> heard = worker.encoder->run(rows);
  if (!heard) return heard.error();
  ++runs_;
  chunks_ += streams.size();
  const std::size_t values = heard->frames * heard->width;
  if (worker.transducer != nullptr) {
    std::vector<TransducerDecoder::Row> frames;
    for (std::size_t i = 0; i < streams.size(); ++i) {
      frames.push_back({heard->data + i * values, &*streams[i]->transducer});
    }
    if (Status status = worker.transducer->decode(frames, heard->frames, heard->width);
        !status.ok()) {
      return status;
    }
  } else {
    for (std::size_t i = 0; i < streams.size(); ++i) {
      streams[i]->ctc.decode(heard->data + i * values, heard->frames, heard->width,
                             networks_.blank);
    }
  }
  const std::size_t shift = networks_.encoder->shift();
  const double shift_ms = static_cast<double>(shift * Fbank::kHop) * kSampleMs;
  for (const StreamingStreamPtr& stream : streams) {
    stream->features.drop(shift);
    stream->frame_ms = shift_ms / static_cast<double>(heard->frames);
    ++stream->chunks;
  }
  return {};
}

// After a chunk: what is new, and whether the utterance has ended.
void StreamingCore::tell(StreamingStream& stream) {
  // The end of what drains is told when all is heard.
  if (stream.draining != StreamingStream::Draining::kNo) return;
  const Said now = said(stream);
  const double silent_ms = now.silence * stream.frame_ms;
  if (now.tokens.empty()) {
    // What a beam has shown and taken back is retracted by a final without text, unless it thinks better of it.
    ++stream.empty;
    const double empty_ms =
        static_cast<double>(stream.empty * networks_.encoder->shift() * Fbank::kHop) * kSampleMs;
    if (stream.showed) {
      if (std::min(silent_ms, empty_ms) >= stream.stop_ms) show_final(stream);
    } else if (silent_ms >= kLongSilenceMs) {
      next_utterance(stream);
    }
    return;
  }
  stream.empty = 0;
  const uint64_t heard = stream.chunks * networks_.encoder->shift() * Fbank::kHop;
  const double length_ms =
      static_cast<double>(stream.origin + heard) * kSampleMs - time_ms(stream, now.frames.front());
  if (silent_ms >= stream.stop_ms || length_ms >= options_.max_utterance_ms) {
    show_final(stream);
    return;
  }
  if (!stream.options.interim_results) return;
  const bool changed =
      !std::equal(now.tokens.begin(), now.tokens.end(), stream.shown.begin(), stream.shown.end());
  if (changed) stream.told_end = false;
  const bool ends = stream.eou_ms > 0 && silent_ms >= stream.eou_ms && !stream.told_end;
  if (!changed && !ends) return;
  stream.told_end = ends;
  // Stability 1 is that of a final that is told ahead.
  const float agreed = static_cast<float>(now.agreed) / static_cast<float>(now.tokens.size());
  show_partial(stream, now, ends ? 1 : std::min(agreed, 0.99F));
}

// The stream is out of the worker's hands: ends, waits for audio, or for a worker.
void StreamingCore::hand_on(const StreamingStreamPtr& stream) {
  using Draining = StreamingStream::Draining;
  const std::size_t chunk = networks_.encoder->chunk();
  bool failed = false;
  {
    const std::lock_guard lock(mutex_);
    failed = !stream->failure.ok();
  }
  bool ends = false;
  bool more = false;
  if (!failed && !stream->cancelled) {
    if (stream->draining != Draining::kNo && stream->features.frames() < chunk) {
      show_final(*stream);
      ends = stream->draining == Draining::kFinish;
      stream->draining = Draining::kNo;
      if (!ends) begin_anew(*stream);
    }
    more = stream->draining != Draining::kNo;
    const std::lock_guard lock(stream->inbox_mutex);
    stream->wanted = stream->features.lacking(chunk);
    more = more || stream->inbox.size() - stream->inbox_head >= stream->wanted ||
           !stream->forced_ends.empty() || stream->finished;
  }
  Status failure;
  {
    const std::lock_guard lock(mutex_);
    stream->in_flight = false;
    if (stream->cancelled || stream->ended) return;
    failure = stream->failure;
    ends = ends || !failure.ok();
    if (ends) {
      stream->ended = true;
    } else if ((more || stream->news) && !stopped_) {
      stream->ready = true;
      stream->ready_since = Clock::now();
      ready_.push_back(stream);
    }
    stream->news = false;
    if (stream->ready) wake_.notify_one();
  }
  if (ends) stream->listener->on_end(std::move(failure));
}

// Ends the stream with `status`; `mine`: the caller has it in flight and hands it on.
void StreamingCore::fail(const StreamingStreamPtr& stream, const Status& status, bool mine) {
  {
    const std::lock_guard lock(mutex_);
    if (stream->ended || stream->cancelled || !stream->failure.ok()) return;
    stream->failure = status;
    if (stream->ready) std::erase(ready_, stream);
    stream->ready = false;
    // Whoever has it in flight ends it: nothing comes after the end.
    if (stream->in_flight || mine) return;
    stream->ended = true;
  }
  stream->listener->on_end(status);
}

void StreamingCore::begin_anew(StreamingStream& stream) const {
  stream.features = FbankStream(fbank_);
  stream.caches.reset();
  stream.ctc = {};
  if (networks_.transducer != nullptr) {
    stream.transducer.emplace(*networks_.transducer, stream.paths, stream.phrases);
  }
  stream.origin = stream.taken;
  stream.chunks = 0;
  stream.tail_heard = false;
}

void StreamingCore::next_utterance(StreamingStream& stream) const {
  stream.empty = 0;
  if (stream.transducer) {
    stream.transducer->next_utterance();
  } else {
    stream.ctc.next_utterance();
  }
}

StreamingCore::Said StreamingCore::said(const StreamingStream& stream) const {
  if (!stream.transducer) {
    const CtcState& ctc = stream.ctc;
    return {ctc.tokens(), ctc.frames(), ctc.log_probabilities(), ctc.silence(),
            ctc.tokens().size()};
  }
  const TransducerHypothesis& best = stream.transducer->best();
  return {best.tokens(), best.frames, best.log_probabilities, best.silence,
          stream.transducer->agreed()};
}

double StreamingCore::time_ms(const StreamingStream& stream, uint64_t frame) const {
  return static_cast<double>(stream.origin) * kSampleMs +
         static_cast<double>(frame) * stream.frame_ms;
}

double StreamingCore::heard_s(const StreamingStream& stream) const {
  const uint64_t heard = stream.origin + stream.chunks * networks_.encoder->shift() * Fbank::kHop;
  return static_cast<double>(std::min(heard, stream.taken)) / kSpeechSampleRate;
}

float StreamingCore::confidence(std::span<const float> log_probabilities) const {
  double sum = 0;
  for (const float each : log_probabilities) sum += std::exp(std::min(each, 0.0F));
  return log_probabilities.empty()
             ? 0
             : static_cast<float>(sum / static_cast<double>(log_probabilities.size()));
}

// A word begins with a token that begins with a space.
std::vector<SpeechWord> StreamingCore::words(const StreamingStream& stream,
                                             const Said& said) const {
  std::vector<SpeechWord> words;
  const auto end_at = static_cast<double>(stream.taken) * kSampleMs;
  for (std::size_t i = 0; i < said.tokens.size();) {
    std::size_t next = i + 1;
    while (next < said.tokens.size() && !tokens_.bytes(said.tokens[next]).starts_with(' ')) ++next;
    SpeechWord word;
    word.text = tokens_.text(said.tokens.subspan(i, next - i));
    double end = time_ms(stream, said.frames[next - 1] + 1);
    if (next < said.tokens.size()) end = std::min(end, time_ms(stream, said.frames[next]));
    const double start = std::min(time_ms(stream, said.frames[i]), end_at);
    word.start_ms = static_cast<int32_t>(std::lround(start));
    word.end_ms = static_cast<int32_t>(std::lround(std::max(start, std::min(end, end_at))));
    word.confidence = confidence(said.log_probabilities.subspan(i, next - i));
    if (!word.text.empty()) words.push_back(std::move(word));
    i = next;
  }
  return words;
}

void StreamingCore::show_partial(StreamingStream& stream, const Said& said, float stability) {
  stream.shown.assign(said.tokens.begin(), said.tokens.end());
  SpeechResult result;
  result.transcript = tokens_.text(said.tokens);
  if (result.transcript.empty()) return;
  result.stability = stability;
  result.audio_processed_s = heard_s(stream);
  stream.showed = true;
  ++partials_;
  partial_lag_.record(elapsed_ns(arrival_of(stream, stream.taken), Clock::now()));
  stream.listener->on_result(std::move(result));
}

// And makes room for the next utterance.
void StreamingCore::show_final(StreamingStream& stream) {
  const Said now = said(stream);
  SpeechResult result;
  result.transcript = tokens_.text(now.tokens);
  // Nobody needs to be told that nothing was said, unless something else was shown.
  const bool tells = !result.transcript.empty() || stream.showed;
  if (tells) {
    result.is_final = true;
    result.confidence = confidence(now.log_probabilities);
    result.audio_processed_s = heard_s(stream);
    if (stream.options.word_times) result.words = words(stream, now);
    if (!stream.options.offline && !now.frames.empty()) {
      const double spoken = time_ms(stream, now.frames.back() + 1) / kSampleMs;
      final_latency_.record(
          elapsed_ns(arrival_of(stream, static_cast<uint64_t>(spoken)), Clock::now()));
    }
    ++finals_;
  }
  stream.shown.clear();
  stream.showed = false;
  stream.told_end = false;
  next_utterance(stream);
  if (tells) stream.listener->on_result(std::move(result));
}

// When that sample came.
TimePoint StreamingCore::arrival_of(StreamingStream& stream, uint64_t sample) const {
  const std::lock_guard lock(stream.inbox_mutex);
  const auto found =
      std::lower_bound(stream.arrivals.begin(), stream.arrivals.end(), sample,
                       [](const auto& arrival, uint64_t wanted) { return arrival.first < wanted; });
  if (found != stream.arrivals.end()) return found->second;
  return stream.arrivals.empty() ? Clock::now() : stream.arrivals.back().second;
}

}  // namespace headrace
