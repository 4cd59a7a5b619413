// ConnectionGuard: decides when a connection has had enough: floods, silence, age. Pure logic over
// frame heads and a clock that is passed in; Http2Connection does what it decides.
//
// nghttp2 1.52 by itself bounds CONTINUATION frames a block, SETTINGS entries a frame, unsent acks and
// incoming resets, and answers with INTERNAL_ERROR or by breaking off. The limits here come first and say
// ENHANCE_YOUR_CALM. What the library does not bound at all: PRIORITY, WINDOW_UPDATE, PING, SETTINGS,
// unknown and empty DATA frames that are taken as fast as they come, streams that it resets itself
// ("made you reset"), the size of a header block, and time.
//
// Threads: belongs to its connection's I/O thread.
//
//   ConnectionGuard guard(limits, now, 0.5);
//   if (auto limit = guard.on_bytes(bytes, now)) close(*limit);
//   while ((step = guard.step(now)).action != ConnectionGuard::Action::kNone) ...
//   wake_me_at(guard.next_step());
// ---------------------------------------------------------------------------------------------
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "base/clock.h"
#include "transport/connection_limits.h"
#include "transport/frame_scanner.h"

namespace headrace {

// `burst` tokens at first and at most, `rate` more a second.
class TokenBucket {
 public:
  TokenBucket(uint32_t burst, uint32_t rate, TimePoint now)
      : burst_(burst), rate_(rate), tokens_(burst), filled_(now) {}
  // False: there were not so many; then none are left.
  bool take(uint64_t tokens, TimePoint now);
  void give(uint64_t tokens);

 private:
  const uint64_t burst_;
  const uint64_t rate_;
  uint64_t tokens_;
  TimePoint filled_;
};

class ConnectionGuard {
 public:
  enum class Action : uint8_t {
    kNone,
    kPing,           // a keepalive PING
    kCheckStreams,   // bodies and windows; see Http2Connection::check_streams
    kBeginShutdown,  // `limit` says why
    kFinishShutdown,
    kClose,  // `limit` says why
  };
  struct Step {
    Action action = Action::kNone;
    Limit limit = Limit::kGlitches;
  };

  // `jitter`: 0 to 1, so that connections of one moment do not end in one moment. Frames over
  // `max_frame_bytes` are left to the library: FRAME_SIZE_ERROR (RFC 9113 4.2).
  ConnectionGuard(const ConnectionLimits& limits, TimePoint now, double jitter,
                  std::size_t max_frame_bytes = SIZE_MAX);

  // Bytes from the client, before anything parses them. The limit that they exceed.
  std::optional<Limit> on_bytes(std::span<const std::byte> bytes, TimePoint now);
  // A peer's doing that costs it little and the server something: +1 each for a frame that made the
  // library reset a stream, a refused stream, a request that failed before it reached a handler,
  // and, counted by on_bytes(), frames that serve no call. After it on_bytes() or exceeded() tell.
  void glitch(uint64_t count, TimePoint now);
  bool exceeded() const { return exceeded_; }

  void on_stream_opened(TimePoint now);
  // `well`: with all of request and response.
  void on_stream_closed(bool well, TimePoint now);
  // HEADERS or DATA was sent.
  void on_sent(bool data) {
    if (data) trust_more();
    strikes_ = 0;
    answered_since_ping_ = true;
    if (data) ++data_sent_;
  }
  // After a write: whether the socket would take no more, and whether it took anything.
  // `held`: bytes that the client could take and has not (ConnectionLimits::stall_bytes).
  void on_written(bool blocked, bool progress, std::size_t held, TimePoint now);

  // What is due by now, one thing a call. Each is answered once.
  Step step(TimePoint now);
  TimePoint next_step() const;

  // How many bytes to read at once: fewer when they are many small frames, so that a flood on one
  // connection does not hold up the others of its loop.
  std::size_t read_quota() const { return read_quota_; }
  // Calls were answered, and far more than reset or wrong. Those who have not got so far share a part of
  // the loop's time (untrusted_share.h): a crowd of them holds up one another, not the others.
  bool trusted() const { return trust_ >= kTrusted; }

 private:
  static constexpr uint32_t kTrusted = 32;  // answered and ended well, a point each
  static constexpr uint32_t kMostTrust = 64;
  static constexpr std::size_t kMaxRead = 128 * 1024;
  static constexpr std::size_t kMinRead = 4 * 1024;

  // False: `exceeded_limit_`.
  bool on_head(const FrameHead& head, TimePoint now);
  bool on_ping(TimePoint now);
  bool exceed(Limit limit) {
    exceeded_limit_ = limit;
    return false;
  }
  void trust_more() {
    if (trust_ < kMostTrust) ++trust_;
  }
  void trust_less(uint64_t by) { trust_ -= static_cast<uint32_t>(std::min<uint64_t>(by, trust_)); }
  TimePoint keepalive_at() const;
  TimePoint idle_at() const;
  Step next_ending(TimePoint now);
  Milliseconds streams_interval() const;

  const ConnectionLimits limits_;
  const std::size_t max_frame_bytes_;
  FrameScanner scanner_;
  std::optional<Limit> exceeded_limit_;
  bool exceeded_ = false;  // the glitch bucket is empty
  TokenBucket glitches_;
  TokenBucket resets_;

  // Frames.
  std::size_t frames_ = 0;  // until settled_
  bool settled_ = false;    // the client's first frame came, and all of it
  bool in_block_ = false;
  uint32_t continuations_ = 0;
  uint64_t block_bytes_ = 0;
  uint64_t requests_ = 0;
  uint64_t data_sent_ = 0;
  uint64_t window_updates_ = 0;
  bool unit_began_ = false;  // in the bytes at hand: a frame, or a header block
  std::size_t read_quota_ = kMinRead;
  uint32_t trust_ = 0;

  // Pings.
  uint32_t strikes_ = 0;
  bool answered_since_ping_ = true;
  TimePoint last_ping_;
  bool ever_pinged_ = false;

  // Times; kNever: does not run.
  std::size_t open_streams_ = 0;
  TimePoint preface_by_;
  TimePoint partial_since_ = kNever;
  TimePoint idle_since_;
  TimePoint blocked_since_ = kNever;
  TimePoint stalled_since_ = kNever;
  uint64_t data_sent_at_stall_ = 0;
  TimePoint received_;
  TimePoint ping_sent_ = kNever;
  TimePoint streams_check_ = kNever;
  TimePoint ending_at_;  // the next stage of the end
  enum class Ending : uint8_t { kNo, kNotice, kFinal } ending_ = Ending::kNo;
};

}  // namespace headrace
