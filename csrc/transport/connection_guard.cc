#include "transport/connection_guard.h"

#include <nghttp2/nghttp2.h>

#include <algorithm>
#include <chrono>

namespace headrace {
namespace {

// Between the two GOAWAYs: a round trip for requests that are on their way.
constexpr Milliseconds kNoticeTime{1'000};
// gRPC's interval for pings while there is no call.
constexpr std::chrono::hours kIdlePingInterval{2};
// A SETTINGS frame may change the window of every stream.
constexpr uint64_t kSettingsGlitches = 10;
// A header list that is over its limit is read to its end, to be answered properly, up to so many
// times the limit. No such list needs more than that on the wire.
constexpr uint64_t kHeaderBlockFactor = 4;
// Padded DATA as long as this may be all padding.
constexpr uint32_t kMaxPaddingBytes = 256;
// Frames a read: above, reads get shorter; below half of it, longer.
constexpr std::size_t kFramesPerRead = 256;
constexpr std::size_t kUntrustedFramesPerRead = 64;
// Each may be a field of the HPACK table.
constexpr std::size_t kHeaderBytesPerCost = 128;

TimePoint after(TimePoint from, Milliseconds time) {
  return from == kNever || time == Milliseconds(0) ? kNever : saturating_add(from, time);
}

}  // namespace

bool TokenBucket::take(uint64_t tokens, TimePoint now) {
  if (tokens_ < burst_ && now > filled_) {
    const uint64_t ns = elapsed_ns(filled_, now);
    constexpr uint64_t kSecond = 1'000'000'000;
    if (rate_ != 0 && ns / kSecond >= burst_ / rate_ + 1) {
      tokens_ = burst_;
      filled_ = now;
    } else if (const uint64_t fresh = ns * rate_ / kSecond; fresh != 0) {
      tokens_ = std::min(burst_, tokens_ + fresh);
      // Only what was counted: the rest of a token goes on growing.
      filled_ += Nanoseconds(fresh * kSecond / rate_);
    }
  } else {
    filled_ = now;
  }
  if (tokens > tokens_) {
    tokens_ = 0;
    return false;
  }
  tokens_ -= tokens;
  return true;
}

void TokenBucket::give(uint64_t tokens) { tokens_ = std::min(burst_, tokens_ + tokens); }

ConnectionGuard::ConnectionGuard(const ConnectionLimits& limits, TimePoint now, double jitter,
                                 std::size_t max_frame_bytes)
    : limits_(limits),
      max_frame_bytes_(max_frame_bytes),
      glitches_(limits.glitch_burst, limits.glitch_rate, now),
      resets_(limits.reset_burst, limits.reset_rate, now),
      last_ping_(now),
      preface_by_(after(now, limits.preface_timeout)),
      idle_since_(now),
      received_(now),
      ending_at_(after(
          now, std::chrono::duration_cast<Milliseconds>(limits.max_age * (0.9 + 0.2 * jitter)))) {}

void ConnectionGuard::glitch(uint64_t count, TimePoint now) {
  trust_less(count);
  if (!glitches_.take(count, now)) exceeded_ = true;
}

std::optional<Limit> ConnectionGuard::on_bytes(std::span<const std::byte> bytes, TimePoint now) {
  if (exceeded_limit_) return exceeded_limit_;
  received_ = now;
  ping_sent_ = kNever;
  unit_began_ = scanner_.in_head() ? false : !scanner_.in_payload() && !in_block_;
  std::size_t frames = 0;
  std::size_t header_bytes = 0;
  const bool fine = scanner_.scan(bytes, [&](const FrameHead& head) {
    ++frames;
    if (head.type == NGHTTP2_HEADERS || head.type == NGHTTP2_CONTINUATION) {
      header_bytes += head.length;
    }
    return on_head(head, now);
  });
  if (!fine) return exceeded_limit_;
  if (exceeded_) return Limit::kGlitches;

  const std::size_t did = trusted() ? frames : frames + header_bytes / kHeaderBytesPerCost;
  const std::size_t most = trusted() ? kFramesPerRead : kUntrustedFramesPerRead;
  if (did > most) read_quota_ = std::max(kMinRead, read_quota_ / 2);
  if (did < most / 2) read_quota_ = std::min(kMaxRead, read_quota_ * 2);

  if (!settled_) {
    frames_ += frames;
    settled_ = frames_ > 1 || (frames_ == 1 && !scanner_.in_payload());
    if (settled_) preface_by_ = kNever;
  }
  const bool partial = scanner_.in_head() || in_block_ ||
                       (scanner_.in_payload() && settled_ && scanner_.last().type != NGHTTP2_DATA);
  if (!partial) {
    partial_since_ = kNever;
  } else if (partial_since_ == kNever || unit_began_) {
    partial_since_ = now;
  }
  return std::nullopt;
}

bool ConnectionGuard::on_head(const FrameHead& head, TimePoint now) {
  // A header block is one unit, CONTINUATION frames included.
  if (!in_block_) unit_began_ = true;
  const bool ack = (head.flags & NGHTTP2_FLAG_ACK) != 0;
  const uint64_t max_block = kHeaderBlockFactor * limits_.max_header_list_bytes;
  switch (head.type) {
    case NGHTTP2_DATA:
      answered_since_ping_ = true;
      if ((head.flags & NGHTTP2_FLAG_END_STREAM) == 0 &&
          (head.length == 0 ||
           ((head.flags & NGHTTP2_FLAG_PADDED) != 0 && head.length <= kMaxPaddingBytes))) {
        glitch(1, now);
      }
      break;
    case NGHTTP2_HEADERS:
      answered_since_ping_ = true;
      ++requests_;
      continuations_ = 0;
      block_bytes_ = head.length;
      in_block_ = (head.flags & NGHTTP2_FLAG_END_HEADERS) == 0;
      if (block_bytes_ > max_block && head.length <= max_frame_bytes_) {
        return exceed(Limit::kHeaderBlock);
      }
      break;
    case NGHTTP2_CONTINUATION:
      if (++continuations_ > limits_.max_continuations) return exceed(Limit::kContinuations);
      block_bytes_ += head.length;
      if (block_bytes_ > max_block && head.length <= max_frame_bytes_) {
        return exceed(Limit::kHeaderBlock);
      }
      if ((head.flags & NGHTTP2_FLAG_END_HEADERS) != 0) in_block_ = false;
      break;
    case NGHTTP2_RST_STREAM:
      trust_less(1);
      if (!resets_.take(1, now)) return exceed(Limit::kRapidReset);
      break;
    case NGHTTP2_SETTINGS:
      glitch(ack ? 1 : kSettingsGlitches, now);
      break;
    case NGHTTP2_PING:
      if (ack) {
        glitch(1, now);
      } else if (!on_ping(now)) {
        return exceed(Limit::kPings);
      }
      break;
    case NGHTTP2_WINDOW_UPDATE:
      if (++window_updates_ > 5 + 2 * (requests_ + 10 * data_sent_)) glitch(1, now);
      break;
    default:  // PRIORITY, GOAWAY, PUSH_PROMISE (the library's error), unknown ones
      glitch(1, now);
      break;
  }
  return !exceeded_ || exceed(Limit::kGlitches);
}

bool ConnectionGuard::on_ping(TimePoint now) {
  if (!answered_since_ping_) glitch(1, now);
  answered_since_ping_ = false;
  const Nanoseconds interval =
      open_streams_ == 0 && !limits_.permit_keepalive_without_calls
          ? std::max<Nanoseconds>(kIdlePingInterval, limits_.ping_min_interval)
          : Nanoseconds(limits_.ping_min_interval);
  // The first is free, as is one after we sent something: gRPC clients measure the line with them.
  const bool strike = ever_pinged_ && now - last_ping_ < interval;
  ever_pinged_ = true;
  last_ping_ = now;
  return !strike || limits_.ping_max_strikes == 0 || ++strikes_ <= limits_.ping_max_strikes;
}

void ConnectionGuard::on_stream_closed(bool well, TimePoint now) {
  if (well) {
    resets_.give(1);
    trust_more();
  }
  if (--open_streams_ == 0) idle_since_ = now;
}

void ConnectionGuard::on_written(bool blocked, bool progress, std::size_t held, TimePoint now) {
  if (held < limits_.stall_bytes || held == 0) {
    stalled_since_ = kNever;
  } else if (stalled_since_ == kNever || (blocked ? progress : data_sent_ != data_sent_at_stall_)) {
    stalled_since_ = now;
    data_sent_at_stall_ = data_sent_;
  }
  if (!blocked) {
    // Nothing was read meanwhile: the client may have spoken long ago.
    if (blocked_since_ != kNever) received_ = now;
    blocked_since_ = kNever;
  } else if (blocked_since_ == kNever || progress) {
    blocked_since_ = now;
  }
}

TimePoint ConnectionGuard::keepalive_at() const {
  if (blocked_since_ != kNever) return kNever;
  if (ping_sent_ != kNever) return after(ping_sent_, limits_.keepalive_timeout);
  return after(received_, limits_.keepalive_time);
}

TimePoint ConnectionGuard::next_step() const {
  return std::min({preface_by_, ending_at_, streams_check_, keepalive_at(), idle_at(),
                   after(partial_since_, limits_.header_timeout),
                   after(blocked_since_, limits_.write_timeout),
                   after(stalled_since_, limits_.stall_timeout)});
}

TimePoint ConnectionGuard::idle_at() const {
  const bool idle = open_streams_ == 0 && ending_ == Ending::kNo;
  return idle ? after(idle_since_, limits_.idle_timeout) : kNever;
}

ConnectionGuard::Step ConnectionGuard::step(TimePoint now) {
  if (now >= preface_by_) return {Action::kClose, Limit::kPreface};
  if (now >= after(partial_since_, limits_.header_timeout)) {
    return {Action::kClose, Limit::kHeaderTime};
  }
  if (now >= after(blocked_since_, limits_.write_timeout)) {
    return {Action::kClose, Limit::kWriteTime};
  }
  if (now >= after(stalled_since_, limits_.stall_timeout)) {
    return {Action::kClose, Limit::kStalled};
  }
  if (now >= keepalive_at()) {
    if (ping_sent_ != kNever) return {Action::kClose, Limit::kKeepalive};
    ping_sent_ = now;
    // Never unanswered: then it would be sent again and again.
    if (limits_.keepalive_timeout == Milliseconds(0)) received_ = now, ping_sent_ = kNever;
    return {Action::kPing, {}};
  }
  if (now >= ending_at_ || now >= idle_at()) return next_ending(now);
  if (now >= streams_check_) {
    streams_check_ = open_streams_ != 0 ? after(now, streams_interval()) : kNever;
    return {Action::kCheckStreams, {}};
  }
  return {};
}

ConnectionGuard::Step ConnectionGuard::next_ending(TimePoint now) {
  switch (ending_) {
    case Ending::kNo: {
      const Limit why = now >= ending_at_ ? Limit::kAge : Limit::kIdle;
      ending_ = Ending::kNotice;
      ending_at_ = saturating_add(now, kNoticeTime);
      return {Action::kBeginShutdown, why};
    }
    case Ending::kNotice:
      ending_ = Ending::kFinal;
      ending_at_ = after(now, limits_.max_age_grace);
      return {Action::kFinishShutdown, {}};
    case Ending::kFinal:
      ending_at_ = kNever;
      return {Action::kClose, Limit::kAgeGrace};
  }
  return {};
}

Milliseconds ConnectionGuard::streams_interval() const {
  Milliseconds least{0};
  for (const Milliseconds time :
       {limits_.body_timeout, limits_.first_window_timeout, limits_.window_timeout}) {
    if (least == Milliseconds(0) || (time != Milliseconds(0) && time < least)) least = time;
  }
  return least;
}

void ConnectionGuard::on_stream_opened(TimePoint now) {
  ++open_streams_;
  if (streams_check_ == kNever) streams_check_ = after(now, streams_interval());
}

}  // namespace headrace
