// The threads that decode: take jobs by urgency, decode several at once when all are busy, tell the listeners.
#include <algorithm>
#include <array>

#include "speech/engine_core.h"
#include "speech/word_times.h"

namespace headrace {
namespace {

// Less is more urgent.
int urgency(const EngineStream& stream, TimePoint now) {
  const SpeechJob& job = stream.finals.empty() ? *stream.partial : stream.finals.front();
  if (stream.options.offline) return now >= job.due ? 0 : 3;
  if (job.kind != SpeechJob::Kind::kPartial) return 0;
  return job.first ? 1 : 2;
}

int urgency(const EngineStream& stream, const SpeechJob& job) {
  if (stream.options.offline) return 3;
  if (job.kind != SpeechJob::Kind::kPartial) return 0;
  return job.first ? 1 : 2;
}

TimePoint due_of(const EngineStream& stream) {
  return stream.finals.empty() ? stream.partial->due : stream.finals.front().due;
}

constexpr double kFrameSeconds = static_cast<double>(kVoiceFrame) / kSpeechSampleRate;

}  // namespace

void EngineCore::make_ready(const EngineStreamPtr& stream) {
  stream->ready = true;
  stream->ready_since = Clock::now();
  ready_.push_back(stream);
  job_wake_.notify_one();
}

// Waits for a job when nothing is active; nullopt then: the engine stops. Otherwise only takes one that should
// share the steps of the active ones.
std::optional<EngineCore::Active> EngineCore::take_job(
    const std::vector<std::unique_ptr<Active>>& active) {
  std::unique_lock lock(job_mutex_);
  if (active.empty()) {
    ++idle_;
    job_wake_.wait(lock, [this] { return stopped_ || !ready_.empty(); });
    --idle_;
    if (stopped_) return std::nullopt;
  } else if (stopped_ || ready_.empty() || idle_ > 0) {
    return std::nullopt;
  }
  const TimePoint now = Clock::now();
  const auto best =
      std::min_element(ready_.begin(), ready_.end(), [&](const auto& a, const auto& b) {
        return std::pair(urgency(*a, now), due_of(*a)) < std::pair(urgency(*b, now), due_of(*b));
      });
  const bool full = active.size() >= options_.max_batch;
  for (const std::unique_ptr<Active>& other : active) {
    // Its encoder would delay what is more urgent; a full batch takes in only what is more urgent than all.
    const int urgent = urgency(**best, now);
    const int theirs = urgency(*other->stream, other->job);
    if (theirs < urgent || (full && theirs == urgent)) return std::nullopt;
  }
  Active taken;
  taken.stream = std::move(*best);
  ready_.erase(best);
  EngineStream& stream = *taken.stream;
  stream.ready = false;
  stream.in_flight = true;
  if (!stream.finals.empty()) {
    taken.job = std::move(stream.finals.front());
    stream.finals.pop_front();
    stream.hurry = !stream.finals.empty();
    if (!stream.options.offline) {
      // For a worker, not for what its own stream had in flight.
      const double waited = static_cast<double>(elapsed_ns(stream.ready_since, now)) * 1e-6;
      final_wait_ms_ = 0.7 * final_wait_ms_ + 0.3 * waited;
      final_waited_ = now;
    }
  } else {
    taken.job = *std::move(stream.partial);
    stream.partial.reset();
    stream.hurry = false;
  }
  return taken;
}

void EngineCore::decode(SegmentDecoder& decoder) {
  std::vector<std::unique_ptr<Active>> active;
  std::vector<DecodeRow*> rows;
  while (true) {
    std::optional<Active> taken = take_job(active);
    if (!taken && active.empty()) return;
    const TimePoint begun = Clock::now();
    Status status;
    if (taken) {
      auto joined = std::make_unique<Active>(*std::move(taken));
      EngineStream& stream = *joined->stream;
      std::span<const int64_t> draft;
      if (stream.hypothesis.segment == joined->job.segment) draft = stream.hypothesis.tokens;
      if (!stream.cancelled) status = decoder.begin(joined->job.samples, draft, joined->row);
      active.push_back(std::move(joined));
    } else {
      rows.clear();
      for (const std::unique_ptr<Active>& each : active) rows.push_back(&each->row);
      status = decoder.step(rows);
      ++steps_;
      stepped_tokens_ += rows.size();
    }
    busy_ns_ += elapsed_ns(begun, Clock::now());
    if (!status.ok()) {
      for (const std::unique_ptr<Active>& each : active) fail(each->stream, status, true);
      active.clear();
      continue;
    }
    for (std::unique_ptr<Active>& each : active) {
      EngineStream& stream = *each->stream;
      // A partial that its final overtook is that one's draft, as far as it came.
      const bool overtaken = stream.hurry && each->job.kind == SpeechJob::Kind::kPartial;
      if (!stream.cancelled && !each->row.done() && !overtaken) continue;
      complete(*each, each->row.done());
      each.reset();
    }
    std::erase(active, nullptr);
  }
}

// What was in flight has become text, wholly or not.
void EngineCore::complete(Active& active, bool whole) {
  EngineStream& stream = *active.stream;
  const SpeechJob& job = active.job;
  const std::vector<int64_t>& tokens = active.row.tokens();
  if (!stream.cancelled) {
    if (job.kind == SpeechJob::Kind::kFinal) {
      show_final(stream, job, tokens, active.row.confidence());
      release_backlog(stream, job.samples.size());
    } else {
      float agreed = 0;
      if (stream.hypothesis.segment == job.segment && !tokens.empty()) {
        const auto common =
            std::mismatch(tokens.begin(), tokens.end(), stream.hypothesis.tokens.begin(),
                          stream.hypothesis.tokens.end());
        agreed =
            static_cast<float>(common.first - tokens.begin()) / static_cast<float>(tokens.size());
      } else if (stream.hypothesis.segment != job.segment) {
        stream.shown = false;
      }
      const bool speculative = job.kind == SpeechJob::Kind::kSpeculative;
      if (whole && speculative) {
        stream.speculated_segment = job.segment;
        stream.speculated_end = job.end;
        stream.speculated = tokens;
        stream.speculated_confidence = active.row.confidence();
      }
      if (whole && stream.options.interim_results && !stream.hurry) {
        // Stability 1 is the speculative final's.
        show_partial(stream, job, tokens, speculative ? 1 : std::min(agreed, 0.99F));
      }
      stream.hypothesis = {job.segment, tokens};
    }
  }
  advance(active.stream);
}

void EngineCore::show_partial(EngineStream& stream, const SpeechJob& job,
                              std::span<const int64_t> tokens, float stability) {
  SpeechResult result;
  result.transcript = tokens_.text(tokens);
  if (result.transcript.empty()) return;
  result.stability = stability;
  result.audio_processed_s = static_cast<double>(job.end) * kFrameSeconds;
  stream.shown = true;
  ++partials_;
  if (job.kind == SpeechJob::Kind::kPartial) {
    partial_lag_.record(elapsed_ns(job.heard, Clock::now()));
  }
  stream.listener->on_result(std::move(result));
}

void EngineCore::show_final(EngineStream& stream, const SpeechJob& job,
                            std::span<const int64_t> tokens, float confidence) {
  SpeechResult result;
  result.transcript = tokens_.text(tokens);
  // Nobody needs to be told that nothing was said, unless something else was shown.
  const bool shown = stream.shown && stream.hypothesis.segment == job.segment;
  if (result.transcript.empty() && !shown) return;
  result.is_final = true;
  result.confidence = confidence;
  result.audio_processed_s = static_cast<double>(job.end) * kFrameSeconds;
  if (stream.options.word_times) {
    result.words = share_out_words(result.transcript, job.voiced, job.begin, confidence);
  }
  ++finals_;
  if (!stream.options.offline) final_latency_.record(elapsed_ns(job.heard, Clock::now()));
  stream.listener->on_result(std::move(result));
}

// Whoever has the stream in flight hands it on: tells the finals that are known, leaves the rest to the workers,
// ends the stream after the last.
void EngineCore::advance(const EngineStreamPtr& stream) {
  while (true) {
    std::optional<SpeechJob> known;
    bool hear_again = false;
    bool ends = false;
    Status failure;
    {
      const std::lock_guard lock(job_mutex_);
      if (stream->cancelled || stream->ended) {
        stream->in_flight = false;
        return;
      }
      failure = stream->failure;
      if (!stream->finals.empty() && stream->finals.front().speculated_end != 0 &&
          stream->finals.front().segment == stream->speculated_segment &&
          stream->finals.front().speculated_end == stream->speculated_end) {
        known = std::move(stream->finals.front());
        stream->finals.pop_front();
        stream->hurry = !stream->finals.empty();
      } else {
        stream->in_flight = false;
        hear_again = stream->held;
        stream->held = false;
        if (!stream->finals.empty() || stream->partial) {
          if (stream->partial) {
            stream->partial->first = stream->hypothesis.segment != stream->partial->segment;
          }
          make_ready(stream);
        } else if (stream->heard_all) {
          stream->ended = true;
          ends = true;
        }
      }
    }
    if (known) {
      show_final(*stream, *known, stream->speculated, stream->speculated_confidence);
      release_backlog(*stream, known->samples.size());
      continue;
    }
    if (hear_again) list(stream);
    if (ends) stream->listener->on_end(std::move(failure));
    return;
  }
}

void EngineCore::release_backlog(EngineStream& stream, std::size_t samples) const {
  const std::size_t left = stream.backlog.fetch_sub(samples) - samples;
  const auto room = static_cast<std::size_t>(options_.max_backlog_s * kSpeechSampleRate / 2);
  if (left <= room && stream.told_full.exchange(false) && !stream.cancelled) {
    stream.listener->on_room();
  }
}

bool EngineCore::backlog_full(EngineStream& stream) const {
  const auto limit = static_cast<std::size_t>(options_.max_backlog_s * kSpeechSampleRate);
  if (stream.backlog <= limit) return false;
  stream.told_full = true;
  // It may have become room before anybody knew that it is waited for.
  return !(stream.backlog <= limit / 2 && stream.told_full.exchange(false));
}

}  // namespace headrace
