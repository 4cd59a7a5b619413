// The thread that hears: takes what arrived, asks the voice activity network about the frames of all streams
// at once, and makes jobs of what the segmenters find.
#include <algorithm>

#include "speech/engine_core.h"

namespace headrace {
namespace {

constexpr std::size_t kMaxTurns = 64;  // streams heard together
// Frames a stream may have heard before others are: a quarter of a second.
constexpr std::size_t kFramesATurn = 8;
// Finals that wait for a worker before its stream is not heard further.
constexpr std::size_t kMaxFinals = 2;
// Silence that a final keeps behind the last word.
constexpr uint64_t kTail = 6;  // frames

}  // namespace

// What one stream has to hear now.
struct EngineCore::Turn {
  EngineStreamPtr stream;
  std::vector<float> samples;       // whole frames
  std::vector<TimePoint> arrivals;  // a frame each
  std::size_t frame = 0;            // the next one
  bool force_end = false;           // after these
  bool finish = false;
  bool more = false;      // waits in the inbox
  std::size_t taken = 0;  // samples of the inbox
};

void EngineCore::push(const EngineStreamPtr& stream, std::span<const float> samples) {
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
    stream->arrived += samples.size();
    // One a frame at most, however small the pieces are.
    const bool same_frame =
        !stream->arrivals.empty() &&
        stream->arrivals.back().first / kVoiceFrame == stream->arrived / kVoiceFrame;
    if (same_frame) stream->arrivals.pop_back();
    stream->arrivals.emplace_back(stream->arrived, Clock::now());
    stream->backlog += samples.size();
    news = stream->inbox.size() - stream->inbox_head >= kVoiceFrame;
  }
  if (news) list(stream);
}

void EngineCore::force_end(const EngineStreamPtr& stream) {
  {
    const std::lock_guard lock(stream->inbox_mutex);
    if (stream->finished) return;
    if (!stream->forced_ends.empty() && stream->forced_ends.back() == stream->arrived) return;
    stream->forced_ends.push_back(stream->arrived);
  }
  list(stream);
}

void EngineCore::finish(const EngineStreamPtr& stream) {
  {
    const std::lock_guard lock(stream->inbox_mutex);
    if (stream->finished) return;
    stream->finished = true;
  }
  list(stream);
}

// Puts the stream among those with news.
void EngineCore::list(const EngineStreamPtr& stream) {
  {
    const std::lock_guard lock(hear_mutex_);
    if (stream->listed) return;
    stream->listed = true;
    news_.push_back(stream);
  }
  hear_wake_.notify_one();
}

// False: the engine stops.
bool EngineCore::take_news(std::vector<EngineStreamPtr>& streams) {
  std::unique_lock lock(hear_mutex_);
  hear_wake_.wait(lock, [this] { return stopped_hearing_ || !news_.empty(); });
  if (stopped_hearing_) return false;
  while (!news_.empty() && streams.size() < kMaxTurns) {
    news_.front()->listed = false;
    streams.push_back(std::move(news_.front()));
    news_.pop_front();
  }
  return true;
}

void EngineCore::hear(VoiceActivity& voice_activity) {
  std::vector<EngineStreamPtr> streams;
  std::vector<Turn> turns;
  while (take_news(streams)) {
    for (EngineStreamPtr& stream : streams) {
      if (stream->cancelled) continue;
      {
        const std::lock_guard lock(job_mutex_);
        stream->held = stream->finals.size() >= kMaxFinals;
        if (stream->held || stream->ended) continue;
      }
      Turn turn;
      turn.stream = std::move(stream);
      collect(turn);
      turns.push_back(std::move(turn));
    }
    hear_turns(voice_activity, turns);
    streams.clear();
    turns.clear();
  }
}

// Takes whole frames from the inbox, up to the next forced end.
void EngineCore::collect(Turn& turn) const {
  EngineStream& stream = *turn.stream;
  const std::lock_guard lock(stream.inbox_mutex);
  const std::size_t waiting = stream.inbox.size() - stream.inbox_head;
  const uint64_t begin = stream.arrived - waiting;  // samples since the start
  std::size_t available = waiting;
  const bool forced = !stream.forced_ends.empty();
  if (forced) {
    available = static_cast<std::size_t>(std::max(stream.forced_ends.front(), begin) - begin);
  }
  const std::size_t frames = std::min(available / kVoiceFrame, kFramesATurn);
  turn.taken = frames * kVoiceFrame;
  const float* const from = stream.inbox.data() + stream.inbox_head;
  turn.samples.assign(from, from + turn.taken);
  const bool all = turn.taken + kVoiceFrame > available;
  turn.force_end = forced && all;
  turn.finish = !forced && all && stream.finished;
  if (turn.finish && available > turn.taken) {
    // The last frame is filled up with silence.
    turn.samples.insert(turn.samples.end(), from + turn.taken, from + available);
    turn.samples.resize((frames + 1) * kVoiceFrame);
    turn.taken = available;
  }
  for (std::size_t end = kVoiceFrame; end <= turn.samples.size(); end += kVoiceFrame) {
    while (stream.arrivals.size() > 1 && stream.arrivals.front().first < begin + end) {
      stream.arrivals.pop_front();
    }
    turn.arrivals.push_back(stream.arrivals.empty() ? Clock::now()
                                                    : stream.arrivals.front().second);
  }
  stream.inbox_head += turn.taken;
  if (stream.inbox_head == stream.inbox.size()) {
    stream.inbox.clear();
    stream.inbox_head = 0;
  }
  if (turn.force_end) stream.forced_ends.pop_front();
  turn.more = stream.inbox.size() - stream.inbox_head >= kVoiceFrame ||
              !stream.forced_ends.empty() || (stream.finished && !turn.finish);
}

void EngineCore::hear_turns(VoiceActivity& voice_activity, std::vector<Turn>& turns) {
  std::vector<VoiceActivity::Frame> frames;
  std::vector<Turn*> heard;
  while (true) {
    frames.clear();
    heard.clear();
    for (Turn& turn : turns) {
      const std::size_t from = turn.frame * kVoiceFrame;
      if (from >= turn.samples.size()) continue;
      frames.push_back({std::span<const float>(turn.samples).subspan(from, kVoiceFrame),
                        &turn.stream->voice, 0});
      heard.push_back(&turn);
    }
    if (frames.empty()) break;
    if (Status status = voice_activity.run(frames); !status.ok()) {
      for (const Turn& turn : turns) fail(turn.stream, status, false);
      return;
    }
    for (std::size_t i = 0; i < heard.size(); ++i) hear_frame(*heard[i], frames[i].probability);
    frames_ += frames.size();
  }
  for (Turn& turn : turns) {
    EngineStream& stream = *turn.stream;
    if (turn.force_end || turn.finish) {
      stream.segmenter.force_end();
      while (std::optional<SegmentEvent> event = stream.segmenter.next()) {
        handle(turn.stream, *std::move(event));
      }
    }
    if (stream.due_partial) {
      // With all that is heard of the segment by now: a message has several frames.
      stream.due_partial->end = stream.segmenter.frames();
      queue(turn.stream, job_of(stream, *stream.due_partial, SpeechJob::Kind::kPartial));
      stream.due_partial.reset();
    }
    // After the finals of this turn have counted themselves.
    release_backlog(stream, turn.taken);
    if (turn.finish) {
      bool mine = false;
      {
        const std::lock_guard lock(job_mutex_);
        stream.heard_all = true;
        mine = !stream.in_flight && !stream.ready;
        if (mine) stream.in_flight = true;
      }
      if (mine) advance(turn.stream);
    } else if (turn.more) {
      list(turn.stream);
    }
  }
}

void EngineCore::hear_frame(Turn& turn, float probability) {
  EngineStream& stream = *turn.stream;
  const auto from = turn.samples.begin() + static_cast<std::ptrdiff_t>(turn.frame * kVoiceFrame);
  stream.audio.insert(stream.audio.end(), from, from + kVoiceFrame);
  stream.audio_arrived = turn.arrivals[turn.frame++];
  if (probability > options_.streaming.still_speech) stream.speech_arrived = stream.audio_arrived;
  stream.segmenter.push(probability);
  while (std::optional<SegmentEvent> event = stream.segmenter.next()) {
    handle(turn.stream, *std::move(event));
  }
  // Seldom, for it moves what is kept.
  const uint64_t unneeded = stream.segmenter.needed_from() - stream.audio_from;
  if (unneeded >= 64 || (unneeded > 0 && !stream.segmenter.open() && unneeded >= 32)) {
    stream.audio.erase(stream.audio.begin(),
                       stream.audio.begin() + static_cast<std::ptrdiff_t>(unneeded * kVoiceFrame));
    stream.audio_from += unneeded;
  }
}

SpeechJob EngineCore::job_of(EngineStream& stream, const SegmentEvent& event,
                             SpeechJob::Kind kind) const {
  SpeechJob job;
  job.kind = kind;
  job.segment = event.segment;
  job.begin = event.begin;
  job.end = event.end;
  uint64_t end = event.end;
  if (kind == SpeechJob::Kind::kFinal) {
    end = std::max(std::min(end, event.speech_end + kTail), event.begin + 1);
  }
  const auto at = [&](uint64_t frame) {
    return stream.audio.begin() +
           static_cast<std::ptrdiff_t>((frame - stream.audio_from) * kVoiceFrame);
  };
  job.samples.assign(at(event.begin), at(end));
  job.voiced = event.voiced;
  job.heard = kind == SpeechJob::Kind::kPartial ? stream.audio_arrived : stream.speech_arrived;
  const Milliseconds allowed(stream.options.offline ? 2000 : 300);
  job.due = Clock::now() + allowed;
  return job;
}

void EngineCore::handle(const EngineStreamPtr& stream, SegmentEvent event) {
  using Kind = SegmentEvent::Kind;
  if (event.kind != Kind::kPartial) stream->due_partial.reset();
  switch (event.kind) {
    case Kind::kStarted:
      stream->speculative_end = 0;
      return;
    case Kind::kPartial:
      if (stream->options.interim_results) stream->due_partial = std::move(event);
      return;
    case Kind::kSpeculative:
      stream->speculative_end = event.end;
      queue(stream, job_of(*stream, event, SpeechJob::Kind::kSpeculative));
      return;
    case Kind::kFinal: {
      SpeechJob job = job_of(*stream, event, SpeechJob::Kind::kFinal);
      if (event.speculated) job.speculated_end = stream->speculative_end;
      queue(stream, std::move(job));
      return;
    }
    case Kind::kDropped: {
      const std::lock_guard lock(job_mutex_);
      if (stream->partial && stream->partial->segment == event.segment) stream->partial.reset();
      return;
    }
  }
}

void EngineCore::queue(const EngineStreamPtr& stream, SpeechJob job) {
  bool mine = false;
  {
    const std::lock_guard lock(job_mutex_);
    if (stream->cancelled || stream->ended || !stream->failure.ok()) return;
    if (stream->partial) {
      // It goes on in its place in the queue, and what it would have shown the new one will.
      job.due = std::min(job.due, stream->partial->due);
      job.first = stream->partial->first && stream->partial->segment == job.segment;
      if (stream->partial->kind == SpeechJob::Kind::kPartial &&
          job.kind == SpeechJob::Kind::kPartial) {
        ++dropped_;
      }
      stream->partial.reset();
    }
    if (job.kind == SpeechJob::Kind::kFinal) {
      stream->backlog += job.samples.size();
      stream->hurry = true;
      stream->finals.push_back(std::move(job));
    } else {
      // What is decoded ahead must be there when its silence has lasted.
      stream->hurry = job.kind == SpeechJob::Kind::kSpeculative || !stream->finals.empty();
      stream->partial = std::move(job);
    }
    mine = !stream->in_flight && !stream->ready;
    if (mine) stream->in_flight = true;
  }
  // A final that was decoded ahead is told at once, the rest goes to the workers.
  if (mine) advance(stream);
}

// Ends the stream with `status`; `mine`: the caller has its job in flight.
void EngineCore::fail(const EngineStreamPtr& stream, const Status& status, bool mine) {
  {
    const std::lock_guard lock(job_mutex_);
    if (stream->ended || !stream->failure.ok()) return;
    stream->failure = status;
    stream->heard_all = true;
    stream->finals.clear();
    stream->partial.reset();
    if (stream->ready) std::erase(ready_, stream);
    stream->ready = false;
    // Whoever has it in flight ends it: nothing comes after the end.
    if (stream->in_flight && !mine) return;
    stream->in_flight = true;
  }
  advance(stream);
}

}  // namespace headrace
