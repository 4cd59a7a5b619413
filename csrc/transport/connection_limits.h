// ConnectionLimits: what one client may make the server spend, and for how long it may do nothing.
// Limit: the table of reasons for which a connection or stream was ended or refused; the metrics'
// label.
//
// Values; no threads. docs/CONFIGURATION.md lists them for operators.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/clock.h"
#include "base/counter.h"

namespace headrace {

// Durations: zero means never. Counts: zero means no limit where the comment says so.
struct ConnectionLimits {
  // Connections; looked at when one is accepted.
  uint32_t max_connections = 10000;
  uint32_t max_connections_per_peer = 1000;  // of one address; 0: no limit
  // Of an I/O thread's time, for connections that are not trusted, while trusted ones have calls; 1 to
  // 100 (untrusted_share.h).
  uint32_t untrusted_percent = 25;
  // TLS handshakes going on at once, over all loops; past it the oldest ends (handshakes.h).
  uint32_t max_tls_handshakes = 1000;

  // Requests.
  uint32_t max_concurrent_streams = 256;       // a connection
  uint32_t max_header_list_bytes = 16 * 1024;  // name + value + 32 each (RFC 9113 6.5.2)
  uint32_t max_header_fields = 100;
  uint32_t max_continuations = 8;  // CONTINUATION frames a header block
  // Of request messages and parts of them that are held at once, a connection; past it the client gets
  // no more window. One message may be larger. 0: no limit.
  uint32_t max_received_bytes = 32 << 20;
  // Likewise, of one that is not trusted. 0: as of others.
  uint32_t untrusted_received_bytes = 4 << 20;

  // Token buckets: `burst` at once, refilled by `rate` a second. An RST_STREAM takes a token of the
  // second, and a stream that ends well gives one back, so that half of all calls may be cancelled.
  uint32_t glitch_burst = 10000;  // see ConnectionGuard::glitch
  uint32_t glitch_rate = 330;
  uint32_t reset_burst = 1000;
  uint32_t reset_rate = 33;

  // Frames other than DATA that wait because the client does not read, beyond one an open stream.
  uint32_t max_queued_frames = 1000;

  // Pings as gRPC counts them (grpc/grpc doc/keepalive.md): one that comes sooner than the interval
  // after the one before, without HEADERS or DATA sent in between, is a strike.
  uint32_t ping_max_strikes = 2;  // 0: no limit
  Milliseconds ping_min_interval{300'000};
  bool permit_keepalive_without_calls = false;  // else two hours while no stream is open

  Milliseconds preface_timeout{4'000};  // TLS, preface and SETTINGS
  Milliseconds header_timeout{4'000};   // a header block, or any frame but DATA
  // A message that has begun must go on: looked at every `body_timeout`, at least `body_min_rate`
  // bytes a second since the last look. Time in which our own flow control held the client up does
  // not count. Two looks make the end: after twice this time at most.
  Milliseconds body_timeout{2'000};
  uint32_t body_min_rate = 1024;
  Milliseconds idle_timeout{900'000};  // without a stream
  Milliseconds write_timeout{30'000};  // the socket takes not a byte
  // While a client makes the server hold so much that it could take: complete answers that its windows do
  // not let out, and whatever a socket that is full does not take. Not a byte of it leaves.
  Milliseconds stall_timeout{4'000};
  uint32_t stall_bytes = 64 * 1024;
  // Bytes that wait for a flow-control window which its stream never had: no client that wants an
  // answer begins with none. Looked at as often as bodies.
  Milliseconds first_window_timeout{2'000};
  Milliseconds window_timeout{300'000};  // a complete response whose window stays shut
  Milliseconds keepalive_time{60'000};   // of silence, then a PING
  Milliseconds keepalive_timeout{20'000};
  Milliseconds max_age{1'800'000};  // +-10 %, then GOAWAY
  Milliseconds max_age_grace{30'000};
};

enum class Limit : uint8_t {
  // Connections that were ended with GOAWAY(ENHANCE_YOUR_CALM).
  kGlitches,
  kRapidReset,
  kContinuations,
  kHeaderBlock,
  kPings,
  kQueuedFrames,
  kPreface,
  kHeaderTime,
  // The stream; the connection when none of its streams does better.
  kBodyTime,
  kWindowTime,
  kStalled,  // the connection
  // Connections that were ended without blame, or are beyond hearing of it.
  kWriteTime,
  kKeepalive,
  kIdle,
  kAge,
  kAgeGrace,
  // Streams.
  kHeaderList,
  kConcurrentStreams,
  // Connections that were held back.
  kReceivedBytes,
  // Connections that were not taken.
  kConnections,
  kConnectionsPerPeer,
};

inline constexpr std::size_t kLimitCount = 21;
inline constexpr std::array<std::string_view, kLimitCount> kLimitNames = {
    "glitches",
    "rapid_reset",
    "continuations",
    "header_block_bytes",
    "too_many_pings",  // gRPC clients look for this word in GOAWAY and ping less often
    "queued_frames",
    "preface_timeout",
    "header_timeout",
    "body_timeout",
    "window_timeout",
    "stalled_answers",
    "write_timeout",
    "keepalive_timeout",
    "idle",
    "max_age",
    "max_age_grace",
    "header_list",
    "concurrent_streams",
    "received_bytes",
    "max_connections",
    "max_connections_per_peer",
};

constexpr std::string_view name_of(Limit limit) {
  return kLimitNames[static_cast<std::size_t>(limit)];
}

class LimitCounters {
 public:
  void add(Limit limit) { counters_[static_cast<std::size_t>(limit)].add(); }
  uint64_t read(Limit limit) const { return counters_[static_cast<std::size_t>(limit)].read(); }

 private:
  std::array<Counter, kLimitCount> counters_;
};

}  // namespace headrace
