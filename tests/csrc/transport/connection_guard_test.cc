// Every limit: reached, and passed by one.
#include "transport/connection_guard.h"

#include <doctest/doctest.h>
#include <nghttp2/nghttp2.h>

#include <functional>
#include <string>
#include <vector>

#include "wire_client.h"

using namespace headrace;
using namespace headrace::test;
using namespace std::chrono_literals;
using Action = ConnectionGuard::Action;

namespace {

const std::string kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const std::string kSettings = http2_frame(NGHTTP2_SETTINGS, 0, 0, "");
const std::string kPing = http2_frame(NGHTTP2_PING, 0, 0, "12345678");

std::string headers(uint32_t stream, std::size_t size = 10, bool end_headers = true) {
  return http2_frame(NGHTTP2_HEADERS, end_headers ? NGHTTP2_FLAG_END_HEADERS : 0, stream,
                     std::string(size, 'h'));
}

struct Guarded {
  explicit Guarded(const ConnectionLimits& limits = {}, bool settled = true)
      : guard(limits, TimePoint{}, 0.5) {
    if (settled) CHECK_FALSE(feed(kPreface + kSettings));
  }
  std::optional<Limit> feed(const std::string& bytes) {
    return guard.on_bytes(bytes_of(bytes), now);
  }
  // How many of `frame` pass before one does not.
  std::size_t passes(const std::string& frame, std::size_t most = 100'000) {
    for (std::size_t i = 0; i < most; ++i) {
      if (feed(frame)) return i;
    }
    return most;
  }
  void open() { guard.on_stream_opened(now); }
  void close(bool well) { guard.on_stream_closed(well, now); }
  // Goes on to the next step that does something, at its time.
  ConnectionGuard::Step next() {
    now = guard.next_step();
    REQUIRE(now != kNever);
    const ConnectionGuard::Step early = guard.step(now - 1ns);
    CHECK(early.action == Action::kNone);
    return guard.step(now);
  }
  TimePoint now{};
  ConnectionGuard guard;
};

// Times that do not matter to a test.
ConnectionLimits untimed() {
  ConnectionLimits limits;
  for (auto time : {&ConnectionLimits::preface_timeout, &ConnectionLimits::header_timeout,
                    &ConnectionLimits::body_timeout, &ConnectionLimits::idle_timeout,
                    &ConnectionLimits::write_timeout, &ConnectionLimits::window_timeout,
                    &ConnectionLimits::first_window_timeout, &ConnectionLimits::keepalive_time,
                    &ConnectionLimits::stall_timeout, &ConnectionLimits::max_age}) {
    limits.*time = 0ms;
  }
  return limits;
}

}  // namespace

TEST_CASE("a token bucket gives its burst, then its rate, and never saves more than the burst") {
  TokenBucket bucket(10, 4, TimePoint{});
  TimePoint now{};
  CHECK(bucket.take(9, now));
  CHECK(bucket.take(1, now));
  CHECK_FALSE(bucket.take(1, now));
  now += 249ms;
  CHECK_FALSE(bucket.take(1, now));
  now += 1ms;
  CHECK(bucket.take(1, now));
  // Small steps lose nothing.
  for (int i = 0; i < 100; ++i) {
    now += 25ms;
    CHECK(bucket.take(i % 10 == 9 ? 1 : 0, now));
  }
  CHECK_FALSE(bucket.take(1, now));
  now += 1h;
  CHECK_FALSE(bucket.take(11, now));
  bucket.give(100);
  CHECK(bucket.take(10, now));
  CHECK_FALSE(bucket.take(1, now));
}

TEST_CASE("frames that serve no call: the burst passes, one more does not, the rate comes back") {
  const std::string empty_data = http2_frame(NGHTTP2_DATA, 0, 1, "");
  for (const std::string& frame :
       {http2_frame(NGHTTP2_PRIORITY, 0, 3, "12345"), http2_frame(0x77, 0, 0, "unknown"),
        http2_frame(NGHTTP2_PING, NGHTTP2_FLAG_ACK, 0, "12345678"), empty_data,
        http2_frame(NGHTTP2_SETTINGS, NGHTTP2_FLAG_ACK, 0, ""),
        http2_frame(NGHTTP2_DATA, NGHTTP2_FLAG_PADDED, 1, std::string(256, '\xff'))}) {
    CAPTURE(int(frame[3]));
    ConnectionLimits limits = untimed();
    limits.glitch_burst = 110;
    Guarded to(limits);  // its SETTINGS took 10
    CHECK(to.passes(frame) == 100);
    CHECK(to.feed(frame) == Limit::kGlitches);
  }
  ConnectionLimits limits = untimed();
  limits.glitch_burst = 110;
  Guarded slow(limits);
  for (int i = 0; i < 3300; ++i) {
    CHECK_FALSE(slow.feed(empty_data));
    slow.now += Nanoseconds(1s) / 330 + 1ns;
  }
  CHECK(slow.passes(empty_data) <= 110);
}

TEST_CASE("frames of calls are no glitches") {
  ConnectionLimits limits = untimed();
  limits.glitch_burst = 10;
  Guarded to(limits);
  for (uint32_t id = 1; id < 20'000; id += 2) {
    CHECK_FALSE(to.feed(headers(id)));
    CHECK_FALSE(to.feed(http2_frame(NGHTTP2_DATA, 0, id, "x")));
    CHECK_FALSE(to.feed(http2_frame(NGHTTP2_DATA, NGHTTP2_FLAG_END_STREAM, id, "")));
    CHECK_FALSE(
        to.feed(http2_frame(NGHTTP2_DATA, NGHTTP2_FLAG_PADDED, id, std::string(257, '\1'))));
  }
}

TEST_CASE("SETTINGS count ten") {
  ConnectionLimits limits = untimed();
  limits.glitch_burst = 100;
  Guarded to(limits);
  CHECK(to.passes(kSettings) == 9);
}

TEST_CASE("glitches that others report count too") {
  ConnectionLimits limits = untimed();
  limits.glitch_burst = 20;
  Guarded to(limits);
  to.guard.glitch(10, to.now);
  CHECK_FALSE(to.guard.exceeded());
  to.guard.glitch(1, to.now);
  CHECK(to.guard.exceeded());
  CHECK(to.feed("") == Limit::kGlitches);
}

TEST_CASE("WINDOW_UPDATE: as many as the calls and the DATA sent explain") {
  ConnectionLimits limits = untimed();
  limits.glitch_burst = 10;
  const std::string update = http2_frame(NGHTTP2_WINDOW_UPDATE, 0, 0, std::string("\0\0\0\1", 4));
  Guarded silent(limits);
  CHECK(silent.passes(update) == 5);
  Guarded to(limits);
  for (uint32_t id = 1; id <= 9; id += 2) CHECK_FALSE(to.feed(headers(id)));
  for (int i = 0; i < 7; ++i) to.guard.on_sent(true);
  to.guard.on_sent(false);
  CHECK(to.passes(update) == 5 + 2 * (5 + 10 * 7));
}

TEST_CASE("rapid reset: the burst, then the rate; calls that end well allow as many again") {
  const std::string reset = http2_frame(NGHTTP2_RST_STREAM, 0, 1, std::string("\0\0\0\x8", 4));
  Guarded to(untimed());
  CHECK(to.passes(reset) == 1000);
  CHECK(to.feed(reset) == Limit::kRapidReset);
  Guarded slow(untimed());
  CHECK(slow.passes(reset, 1000) == 1000);
  for (int i = 0; i < 330; ++i) {
    slow.now += Nanoseconds(1s) / 33 + 1ns;
    CHECK_FALSE(slow.feed(reset));
  }
  CHECK(slow.feed(reset) == Limit::kRapidReset);
  // Half of all calls cancelled, for ever.
  Guarded half(untimed());
  for (int i = 0; i < 10'000; ++i) {
    half.open();
    half.open();
    CHECK_FALSE(half.feed(reset));
    half.close(false);
    half.close(true);
  }
}

TEST_CASE("CONTINUATION: eight pass, nine do not; every list counts anew") {
  const std::string more = http2_frame(NGHTTP2_CONTINUATION, 0, 1, "x");
  const std::string last = http2_frame(NGHTTP2_CONTINUATION, NGHTTP2_FLAG_END_HEADERS, 1, "x");
  Guarded to(untimed());
  for (int list = 0; list < 3; ++list) {
    CHECK_FALSE(to.feed(headers(1, 10, false)));
    for (int i = 0; i < 7; ++i) CHECK_FALSE(to.feed(more));
    CHECK_FALSE(to.feed(last));
  }
  CHECK_FALSE(to.feed(headers(3, 10, false)));
  CHECK(to.passes(more) == 8);
  CHECK(to.feed(more) == Limit::kContinuations);
}

TEST_CASE("a header block: four times the list's limit on the wire passes, a byte more does not") {
  ConnectionLimits limits = untimed();
  limits.max_header_list_bytes = 1000;
  CHECK_FALSE(Guarded(limits).feed(headers(1, 4000)));
  CHECK(Guarded(limits).feed(headers(1, 4001)) == Limit::kHeaderBlock);
  Guarded parts(limits);
  CHECK_FALSE(parts.feed(headers(1, 2000, false)));
  CHECK_FALSE(parts.feed(http2_frame(NGHTTP2_CONTINUATION, 0, 1, std::string(2000, 'x'))));
  // Known by its head, before its bytes came.
  CHECK(parts.feed(http2_frame(NGHTTP2_CONTINUATION, 0, 1, "x").substr(0, 9)) ==
        Limit::kHeaderBlock);
}

TEST_CASE("pings: one free, two strikes, the third is one too many") {
  Guarded to(untimed());
  to.open();
  CHECK(to.passes(kPing) == 3);
  CHECK(to.feed(kPing) == Limit::kPings);
}

TEST_CASE("pings at the interval are no strikes, a little sooner they are") {
  Guarded to(untimed());
  to.open();
  for (int i = 0; i < 20; ++i) {
    CHECK_FALSE(to.feed(kPing));
    to.now += 300s;
  }
  for (int i = 0; i < 3; ++i) {
    CHECK_FALSE(to.feed(kPing));
    to.now += 300s - 1ns;
  }
  CHECK(to.feed(kPing) == Limit::kPings);
}

TEST_CASE("pings without a call: every two hours, unless they are permitted") {
  Guarded to(untimed());
  for (int i = 0; i < 3; ++i) {
    CHECK_FALSE(to.feed(kPing));
    to.now += 301s;
  }
  CHECK(to.feed(kPing) == Limit::kPings);
  ConnectionLimits limits = untimed();
  limits.permit_keepalive_without_calls = true;
  Guarded permitted(limits);
  for (int i = 0; i < 20; ++i) {
    CHECK_FALSE(permitted.feed(kPing));
    permitted.now += 300s;
  }
}

TEST_CASE("gRPC's bandwidth probes: a ping for every answer, for ever") {
  ConnectionLimits limits = untimed();
  limits.glitch_burst = 10;
  Guarded to(limits);
  for (int i = 0; i < 50'000; ++i) {
    to.open();
    CHECK_FALSE(to.feed(headers(1)));
    to.guard.on_sent(false);
    to.guard.on_sent(true);
    CHECK_FALSE(to.feed(kPing));
    to.close(true);
  }
}

TEST_CASE("no limit on strikes leaves pings to the glitches") {
  ConnectionLimits limits = untimed();
  limits.ping_max_strikes = 0;
  limits.glitch_burst = 60;
  Guarded to(limits);
  CHECK(to.passes(kPing) == 51);  // the first follows nothing
  CHECK(to.feed(kPing) == Limit::kGlitches);
}

TEST_CASE("heads are seen whatever pieces they come in") {
  ConnectionLimits limits = untimed();
  limits.glitch_burst = 12;
  const std::string bytes = kPreface + kSettings + headers(1, 50) +
                            http2_frame(NGHTTP2_DATA, 0, 1, std::string(300, '\0')) +
                            http2_frame(NGHTTP2_PRIORITY, 0, 3, "12345") +
                            http2_frame(NGHTTP2_PRIORITY, 0, 3, "12345");
  const std::string over = http2_frame(NGHTTP2_PRIORITY, 0, 3, "12345");
  for (std::size_t piece = 1; piece < 80; ++piece) {
    Guarded to(limits, false);
    for (std::size_t at = 0; at < bytes.size(); at += piece) {
      CHECK_FALSE(to.feed(bytes.substr(at, piece)));
    }
    CHECK(to.feed(over) == Limit::kGlitches);
  }
}

TEST_CASE("many small frames make reads shorter, few make them longer again") {
  Guarded to(untimed());
  const std::size_t most = 128 * 1024;
  CHECK(to.guard.read_quota() <= 8192);
  for (int i = 0; i < 20; ++i) CHECK_FALSE(to.feed(headers(1)));
  CHECK(to.guard.read_quota() == most);
  std::string flood;
  for (uint32_t id = 1; id < 1000; id += 2) flood += headers(id, 1);
  for (int i = 0; i < 20; ++i) CHECK_FALSE(to.feed(flood));
  CHECK(to.guard.read_quota() == 4096);
  for (int i = 0; i < 20; ++i) CHECK_FALSE(to.feed(headers(1)));
  CHECK(to.guard.read_quota() == most);
}

TEST_CASE("trust: earned with calls, lost with resets and glitches") {
  Guarded to(untimed());
  CHECK_FALSE(to.guard.trusted());
  for (int i = 0; i < 16; ++i) {
    CHECK_FALSE(to.guard.trusted());
    to.open();
    to.guard.on_sent(true);
    to.close(true);
  }
  CHECK(to.guard.trusted());
  const std::string reset = http2_frame(NGHTTP2_RST_STREAM, 0, 1, std::string("\0\0\0\x8", 4));
  CHECK_FALSE(to.feed(reset));
  CHECK_FALSE(to.guard.trusted());
  // Half of all calls cancelled is not held against anyone.
  for (int i = 0; i < 1000; ++i) {
    to.open();
    to.guard.on_sent(true);
    to.close(true);
    to.open();
    CHECK_FALSE(to.feed(reset));
    to.close(false);
  }
  CHECK(to.guard.trusted());
  to.guard.glitch(40, to.now);
  CHECK_FALSE(to.guard.trusted());
}

TEST_CASE("preface and SETTINGS have five seconds") {
  ConnectionLimits limits = untimed();
  limits.preface_timeout = 5s;
  const std::string hello = kPreface + http2_frame(NGHTTP2_SETTINGS, 0, 0, "123456");
  for (std::size_t sent = 0; sent <= hello.size(); ++sent) {
    Guarded to(limits, false);
    CHECK_FALSE(to.feed(hello.substr(0, sent)));
    CHECK(to.guard.step(TimePoint{} + 5s - 1ns).action == Action::kNone);
    const auto step = to.guard.step(TimePoint{} + 5s);
    if (sent == hello.size()) {
      CHECK(step.action == Action::kNone);
      CHECK(to.guard.next_step() == kNever);
    } else {
      CHECK(step.action == Action::kClose);
      CHECK(step.limit == Limit::kPreface);
    }
  }
}

TEST_CASE("a header list, or any frame but DATA, has five seconds, however its bytes drip") {
  ConnectionLimits limits = untimed();
  limits.header_timeout = 5s;
  for (const std::string& bytes :
       {headers(1, 2000), headers(1, 10, false) + http2_frame(9, 0, 1, std::string(2000, 'x')),
        http2_frame(NGHTTP2_SETTINGS, 0, 0, std::string(2000, 's')), std::string("\0\0", 2)}) {
    Guarded to(limits);
    std::size_t at = 0;
    while (to.guard.step(to.now).action == Action::kNone && at < bytes.size()) {
      CHECK_FALSE(to.feed(bytes.substr(at++, 1)));
      to.now += 100ms;
    }
    to.now += 5s;  // for those that end first
    const auto step = to.guard.step(to.now);
    CHECK(step.action == Action::kClose);
    CHECK(step.limit == Limit::kHeaderTime);
    CHECK(to.now - TimePoint{} <= 11s);
  }
  // In time, again and again.
  Guarded slow(limits);
  for (int i = 0; i < 10; ++i) {
    CHECK_FALSE(slow.feed(headers(1).substr(0, 12)));
    slow.now += 4999ms;
    CHECK(slow.guard.step(slow.now).action == Action::kNone);
    CHECK_FALSE(slow.feed(headers(1).substr(12)));
    slow.now += 1h;
    CHECK(slow.guard.step(slow.now).action == Action::kNone);
  }
  // DATA may take its time here: bodies have a limit of their own.
  CHECK_FALSE(slow.feed(http2_frame(NGHTTP2_DATA, 0, 1, std::string(100, 'x')).substr(0, 50)));
  CHECK(slow.guard.next_step() == kNever);
}

TEST_CASE("a socket that takes nothing has thirty seconds; each byte it takes begins them again") {
  ConnectionLimits limits = untimed();
  limits.write_timeout = 30s;
  Guarded to(limits);
  to.guard.on_written(false, true, 0, to.now);
  CHECK(to.guard.next_step() == kNever);
  to.guard.on_written(true, true, 0, to.now);
  to.now += 29s;
  to.guard.on_written(true, true, 0, to.now);
  to.now += 29s;
  to.guard.on_written(true, false, 0, to.now);
  CHECK(to.guard.next_step() == to.now + 1s);
  const auto step = to.next();
  CHECK(step.action == Action::kClose);
  CHECK(step.limit == Limit::kWriteTime);
  to.guard.on_written(false, true, 0, to.now);
  CHECK(to.guard.next_step() == kNever);
}

TEST_CASE(
    "who holds much and takes none of it is ended; who takes a little, or holds little, is not") {
  ConnectionLimits limits = untimed();
  limits.stall_timeout = 4s;
  limits.stall_bytes = 1000;
  for (const bool blocked : {false, true}) {
    CAPTURE(blocked);
    Guarded to(limits);
    const auto writes = [&](std::size_t held, bool takes) {
      if (takes && !blocked) to.guard.on_sent(true);
      to.guard.on_written(blocked, takes, held, to.now);
    };
    writes(999, false);
    CHECK(to.guard.next_step() == kNever);
    writes(1000, false);
    for (int i = 0; i < 20; ++i) {
      to.now += 3s;
      CHECK(to.guard.step(to.now).action == Action::kNone);
      writes(1000 + static_cast<std::size_t>(i), true);
    }
    writes(999, true);
    CHECK(to.guard.next_step() == kNever);
    writes(5000, true);
    const TimePoint began = to.now;
    to.now += 2s;
    writes(6000, false);
    const ConnectionGuard::Step end = to.next();
    CHECK(to.now == began + 4s);
    CHECK(end.action == Action::kClose);
    CHECK(end.limit == Limit::kStalled);
  }
  limits.stall_bytes = 0;  // every byte; none is none
  Guarded to(limits);
  to.guard.on_written(false, true, 0, to.now);
  CHECK(to.guard.next_step() == kNever);
}

TEST_CASE("keepalive: a PING after a minute of silence, the end twenty seconds later") {
  ConnectionLimits limits = untimed();
  limits.keepalive_time = 60s;
  Guarded to(limits);
  for (int i = 0; i < 3; ++i) {
    CHECK(to.guard.next_step() == to.now + 60s);
    CHECK(to.next().action == Action::kPing);
    CHECK(to.guard.step(to.now).action == Action::kNone);  // once
    to.now += 19s;
    CHECK(to.guard.step(to.now).action == Action::kNone);
    CHECK_FALSE(to.feed(http2_frame(NGHTTP2_PING, NGHTTP2_FLAG_ACK, 0, "12345678")));
  }
  CHECK(to.next().action == Action::kPing);
  CHECK(to.guard.next_step() == to.now + 20s);
  const auto step = to.next();
  CHECK(step.action == Action::kClose);
  CHECK(step.limit == Limit::kKeepalive);
}

TEST_CASE("keepalive rests while nothing is read because the client reads nothing") {
  ConnectionLimits limits = untimed();
  limits.keepalive_time = 60s;
  Guarded to(limits);
  to.guard.on_written(true, true, 0, to.now);
  CHECK(to.guard.next_step() == kNever);
  to.now += 1h;
  to.guard.on_written(false, true, 0, to.now);
  CHECK(to.guard.next_step() == to.now + 60s);
  // Without a limit on the answer: a PING a minute.
  limits.keepalive_timeout = 0ms;
  Guarded patient(limits);
  for (int i = 0; i < 5; ++i) CHECK(patient.next().action == Action::kPing);
  CHECK(patient.now == TimePoint{} + 5 * 60s);
}

TEST_CASE("idle: fifteen minutes after the last stream, with notice") {
  ConnectionLimits limits = untimed();
  limits.idle_timeout = 900s;
  Guarded to(limits);
  to.open();
  to.open();
  to.now += 10h;
  to.close(true);
  CHECK(to.guard.next_step() == kNever);
  to.close(false);
  const TimePoint last = to.now;
  to.now += 800s;
  CHECK_FALSE(to.feed(kPing));  // no sign of use
  const auto notice = to.next();
  CHECK(to.now == last + 900s);
  CHECK(notice.action == Action::kBeginShutdown);
  CHECK(notice.limit == Limit::kIdle);
  CHECK(to.next().action == Action::kFinishShutdown);
  CHECK(to.now == last + 901s);
}

TEST_CASE("age: thirty minutes, ten per cent to either side, then the grace") {
  ConnectionLimits limits = untimed();
  limits.max_age = 1800s;
  for (const auto& [jitter, age] :
       {std::pair{0.0, 1620s}, std::pair{0.5, 1800s}, std::pair{1.0, 1980s}}) {
    ConnectionGuard guard(limits, TimePoint{}, jitter);
    const TimePoint at = TimePoint{} + age;
    CHECK(guard.next_step() == at);
    CHECK(guard.step(at - 1ms).action == Action::kNone);
    const auto notice = guard.step(at);
    CHECK(notice.action == Action::kBeginShutdown);
    CHECK(notice.limit == Limit::kAge);
    CHECK(guard.step(at).action == Action::kNone);
    CHECK(guard.step(at + 1s).action == Action::kFinishShutdown);
    CHECK(guard.step(at + 31s - 1ns).action == Action::kNone);
    const auto close = guard.step(at + 31s);
    CHECK(close.action == Action::kClose);
    CHECK(close.limit == Limit::kAgeGrace);
  }
}

TEST_CASE("streams are looked at as long as there are any") {
  ConnectionLimits limits = untimed();
  limits.body_timeout = 10s;
  limits.window_timeout = 300s;
  Guarded to(limits);
  CHECK(to.guard.next_step() == kNever);
  to.open();
  CHECK(to.next().action == Action::kCheckStreams);
  CHECK(to.now == TimePoint{} + 10s);
  CHECK(to.next().action == Action::kCheckStreams);
  to.close(true);
  to.open();
  to.close(true);
  CHECK(to.next().action == Action::kCheckStreams);
  CHECK(to.guard.next_step() == kNever);
  to.open();
  CHECK(to.guard.next_step() == to.now + 10s);
}

TEST_CASE("every reason has a name of its own") {
  for (std::size_t i = 0; i < kLimitCount; ++i) {
    CHECK_FALSE(kLimitNames[i].empty());
    for (std::size_t j = 0; j < i; ++j) CHECK(kLimitNames[i] != kLimitNames[j]);
  }
  CHECK(name_of(Limit::kConnectionsPerPeer) == "max_connections_per_peer");
  CHECK(name_of(Limit::kPings) == "too_many_pings");
}
