// Http2Connection does what its guard decides: frames in, GOAWAY or RST_STREAM out, and who behaves well
// notices nothing.
#include <doctest/doctest.h>

#include <array>
#include <functional>
#include <string>
#include <vector>

#include "transport/http2_connection.h"
#include "wire_client.h"

using namespace headrace;
using namespace headrace::test;
using namespace std::chrono_literals;

namespace {

// HPACK literals without indexing, and with.
std::string literal(std::string_view name, std::string_view value, char first = '\0') {
  const auto text = [](std::string_view part) {
    std::string out;
    std::size_t size = part.size();
    if (size < 127) {
      out += static_cast<char>(size);
    } else {
      out += '\x7f';
      for (size -= 127; size >= 128; size >>= 7) out += static_cast<char>(size % 128 | 128);
      out += static_cast<char>(size);
    }
    return out.append(part);
  };
  return std::string(1, first) + text(name) + text(value);
}

const std::string kRequest = "\x83\x86" + literal(":path", "/t/M") + literal(":authority", "s") +
                             literal("te", "trailers") +
                             literal("content-type", "application/grpc");

// A server with an Echo method at /t/M behind one connection, and raw frames into it.
struct Limited {
  explicit Limited(const ConnectionLimits& limits = {}, const ClientOptions& client = {})
      : wire(server.calls, options(limits), client) {
    server.methods.add("/t/M", {&handler});
    wire.connection->limit_counters = &counters;
    // The connection was made at time 0 of its clock.
    CHECK(wire.connection->advance(now));
    CHECK(wire.pump());
  }
  static Http2Options options(const ConnectionLimits& limits) {
    Http2Options all;
    all.limits = limits;
    return all;
  }
  // The error of the GOAWAY that `bytes` bring; nullopt: the connection goes on.
  std::optional<uint32_t> goaway(const std::string& bytes) {
    const bool alive = wire.feed(bytes);
    std::optional<uint32_t> error;
    for (const Frame& frame : parse_frames(wire.drain())) {
      last.push_back(frame);
      if (frame.type == NGHTTP2_GOAWAY) error = frame.number(4);
    }
    CHECK(alive == !error.has_value());
    return error;
  }
  bool serves() {
    const int32_t id = wire.client.call("/t/M", "hello");
    return wire.pump() && wire.client.reply(id).message() == "hello";
  }
  bool at(Nanoseconds time) {
    now = TimePoint{} + time;
    return wire.connection->advance(now);
  }
  std::vector<Frame> out() { return parse_frames(wire.drain()); }

  TimePoint now{};
  LimitCounters counters;
  ScriptedHandler handler;
  WireServer server;
  std::vector<Frame> last;
  Wire wire;
};

ConnectionLimits without_times() {
  ConnectionLimits limits;
  limits.idle_timeout = limits.keepalive_time = limits.max_age = 0ms;
  return limits;
}

constexpr uint32_t kCalm = NGHTTP2_ENHANCE_YOUR_CALM;

}  // namespace

TEST_CASE("floods end with GOAWAY(ENHANCE_YOUR_CALM), the reason in it and counted") {
  struct Flood {
    const char* name;
    std::string frame;
    Limit limit;
    std::size_t fine;  // how many must pass
  };
  const std::string zero(4, '\0');
  for (const Flood& flood : std::vector<Flood>{
           {"PRIORITY", http2_frame(NGHTTP2_PRIORITY, 0, 9, std::string("\0\0\0\0\1", 5)),
            Limit::kGlitches, 9980},
           {"unknown", http2_frame(0xee, 0, 0, "hello"), Limit::kGlitches, 9980},
           {"SETTINGS", http2_frame(NGHTTP2_SETTINGS, 0, 0, ""), Limit::kGlitches, 980},
           {"PING", http2_frame(NGHTTP2_PING, 0, 0, "12345678"), Limit::kPings, 3},
           {"PING acks", http2_frame(NGHTTP2_PING, NGHTTP2_FLAG_ACK, 0, "12345678"),
            Limit::kGlitches, 9980},
           {"WINDOW_UPDATE", http2_frame(NGHTTP2_WINDOW_UPDATE, 0, 0, std::string("\0\0\0\1", 4)),
            Limit::kGlitches, 9980},
       }) {
    CAPTURE(flood.name);
    Limited to(without_times());
    for (std::size_t i = 0; i < flood.fine; ++i) REQUIRE_FALSE(to.goaway(flood.frame));
    std::optional<uint32_t> error;
    for (int i = 0; i < 20 && !error; ++i) error = to.goaway(flood.frame);
    CHECK(error == kCalm);
    CHECK(to.last.back().payload.substr(8) == name_of(flood.limit));
    CHECK(to.counters.read(flood.limit) == 1);
    CHECK_FALSE(to.wire.feed("x"));
  }
}

TEST_CASE("a flood in one read ends as well") {
  Limited to(without_times());
  std::string flood;
  for (int i = 0; i < 3000; ++i) flood += http2_frame(NGHTTP2_SETTINGS, 0, 0, "");
  CHECK(to.goaway(flood) == kCalm);
}

TEST_CASE("empty DATA that never ends its stream") {
  Limited to(without_times());
  CHECK_FALSE(to.goaway(http2_frame(NGHTTP2_HEADERS, NGHTTP2_FLAG_END_HEADERS, 1, kRequest)));
  std::optional<uint32_t> error;
  for (int i = 0; i < 10'001 && !error; ++i) {
    error = to.goaway(http2_frame(NGHTTP2_DATA, 0, 1, ""));
  }
  CHECK(error == kCalm);
}

TEST_CASE("rapid reset: opened and cancelled at once, a thousand times") {
  Limited to(without_times());
  std::optional<uint32_t> error;
  uint32_t id = 1;
  for (; !error && id < 10'000; id += 2) {
    error = to.goaway(http2_frame(NGHTTP2_HEADERS, NGHTTP2_FLAG_END_HEADERS, id, kRequest) +
                      http2_frame(NGHTTP2_RST_STREAM, 0, id, std::string("\0\0\0\x8", 4)));
  }
  CHECK(error == kCalm);
  CHECK(id / 2 == 1001);
  CHECK(to.counters.read(Limit::kRapidReset) == 1);
  to.wire.lose();
  CHECK(to.server.idle());
}

TEST_CASE("made you reset: the client makes the server reset its streams") {
  for (const std::string& bad :
       {http2_frame(NGHTTP2_WINDOW_UPDATE, 0, 0, std::string("\x7f\xff\xff\xff", 4)),
        // More than its content-length says.
        http2_frame(NGHTTP2_DATA, 0, 0, "xx")}) {
    ConnectionLimits limits = without_times();
    limits.glitch_burst = 200;
    Limited to(limits);
    std::optional<uint32_t> error;
    uint32_t id = 1;
    for (; !error && id < 2000; id += 2) {
      std::string frame = bad;
      frame[7] = static_cast<char>(id >> 8);
      frame[8] = static_cast<char>(id);
      const std::string request = kRequest + literal("content-length", "1");
      error =
          to.goaway(http2_frame(NGHTTP2_HEADERS, NGHTTP2_FLAG_END_HEADERS, id, request) + frame);
    }
    CHECK(error == kCalm);
    CHECK(id / 2 > 150);
    CHECK(id / 2 < 220);
  }
}

TEST_CASE("streams over the limit are refused, counted, and too many of them end it") {
  ConnectionLimits limits = without_times();
  limits.max_concurrent_streams = 4;
  limits.glitch_burst = 60;
  Limited to(limits);
  to.handler.hold = true;
  std::optional<uint32_t> error;
  uint32_t id = 1;
  for (; !error && id < 1000; id += 2) {
    error = to.goaway(http2_frame(NGHTTP2_HEADERS, NGHTTP2_FLAG_END_HEADERS, id, kRequest));
  }
  CHECK(error == kCalm);
  CHECK(to.counters.read(Limit::kConcurrentStreams) == id / 2 - 4);
  CHECK(id / 2 - 4 == 50);  // SETTINGS and an ack took eleven
}

TEST_CASE("requests that reach no method count") {
  ConnectionLimits limits = without_times();
  limits.glitch_burst = 60;
  Limited to(limits);
  int answered = 0;
  for (; answered < 1000; ++answered) {
    const int32_t id = to.wire.client.call("/no/Such", "x");
    if (!to.wire.pump()) break;
    CHECK(to.wire.client.reply(id).status() == 12);
  }
  CHECK(answered == 49);  // SETTINGS and an ack took eleven
  CHECK(to.wire.client.goaways.back().error == kCalm);
}

TEST_CASE("CONTINUATION flood") {
  Limited to(without_times());
  CHECK_FALSE(to.goaway(http2_frame(NGHTTP2_HEADERS, 0, 1, kRequest)));
  for (int i = 0; i < 8; ++i) {
    CHECK_FALSE(to.goaway(http2_frame(NGHTTP2_CONTINUATION, 0, 1, literal("a", "b"))));
  }
  CHECK(to.goaway(http2_frame(NGHTTP2_CONTINUATION, 0, 1, "")) == kCalm);
  CHECK(to.counters.read(Limit::kContinuations) == 1);
}

TEST_CASE("HPACK bomb: one large field, referred to by a byte each") {
  Limited to(without_times());
  const std::string large = literal("x", std::string(3000, 'v'), '\x40');
  CHECK_FALSE(
      to.goaway(http2_frame(NGHTTP2_HEADERS, NGHTTP2_FLAG_END_HEADERS, 1, kRequest + large)));
  // It is field 62 of the table now: 20,000 references are 60 MB.
  const std::string bomb = kRequest + std::string(20'000, '\xbe');
  std::optional<uint32_t> error;
  uint32_t id = 3;
  for (; !error && id < 1000; id += 2) {
    to.last.clear();
    error = to.goaway(http2_frame(NGHTTP2_HEADERS, NGHTTP2_FLAG_END_HEADERS, id, bomb));
    if (error) break;
    REQUIRE(to.last.size() == 1);
    CHECK(to.last[0].type == NGHTTP2_RST_STREAM);
    CHECK(to.last[0].number(0) == kCalm);
  }
  CHECK(error == kCalm);
  CHECK(id <= 11);
  CHECK(to.counters.read(Limit::kHeaderList) >= 3);
}

TEST_CASE("an HPACK bomb in the trailers of a request") {
  Limited to(without_times());
  const std::string large = literal("x", std::string(3000, 'v'), '\x40');
  std::optional<uint32_t> error;
  uint32_t id = 1;
  for (; !error && id < 1000; id += 2) {
    error =
        to.goaway(http2_frame(NGHTTP2_HEADERS, NGHTTP2_FLAG_END_HEADERS, id, kRequest) +
                  http2_frame(NGHTTP2_HEADERS, NGHTTP2_FLAG_END_HEADERS | NGHTTP2_FLAG_END_STREAM,
                              id, large + std::string(20'000, '\xbe')));
  }
  CHECK(error == kCalm);
  CHECK(id <= 13);
}

TEST_CASE("a header list a little too large is answered, and the connection kept") {
  Limited to(without_times());
  for (int i = 0; i < 10; ++i) {
    const int32_t id = to.wire.client.call("/t/M", "x", {{"big", std::string(20'000, 'v')}});
    CHECK(to.wire.pump());
    CHECK(to.wire.client.reply(id).status() == 8);
  }
  Headers many;
  for (int i = 0; i < 94; ++i) many.emplace_back("k" + std::to_string(i), "v");
  const int32_t fine = to.wire.client.call("/t/M", "x", many);  // with the six others: 100
  many.emplace_back("one", "more");
  const int32_t over = to.wire.client.call("/t/M", "x", many);
  CHECK(to.wire.pump());
  CHECK(to.wire.client.reply(fine).status() == 0);
  CHECK(to.wire.client.reply(over).status() == 8);
  CHECK(to.serves());
  CHECK(to.counters.read(Limit::kHeaderList) == 11);
}

TEST_CASE("answers that the client does not read are bounded") {
  ConnectionLimits limits = without_times();
  limits.ping_max_strikes = 0;
  limits.max_queued_frames = 100;
  Limited to(limits);
  const std::string ping = http2_frame(NGHTTP2_PING, 0, 0, "12345678");
  for (int i = 0; i < 100; ++i) REQUIRE(to.wire.feed(ping));
  CHECK_FALSE(to.wire.feed(ping));
  CHECK(to.counters.read(Limit::kQueuedFrames) == 1);
}

TEST_CASE("a preface that does not come, headers that drip") {
  WireServer server;
  for (const std::string& sent : {std::string(), std::string("PRI * HTTP/2.0\r\n"),
                                  std::string("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")}) {
    Http2Connection connection({}, server.calls, "ipv4:192.0.2.1:1");
    CHECK(connection.feed(bytes_of(sent)));
    CHECK(connection.next_step() == TimePoint{} + 4s);
    CHECK(connection.advance(TimePoint{} + 4s - 1ms));
    CHECK_FALSE(connection.advance(TimePoint{} + 4s));
    OutputQueue output;
    CHECK_FALSE(connection.drain(output));
    const std::vector<Frame> frames = parse_frames(take_all(output));
    CHECK(frames.back().type == NGHTTP2_GOAWAY);
    CHECK(frames.back().number(4) == kCalm);
  }
  Limited to(without_times());
  CHECK(to.at(10s));
  CHECK(to.serves());
  CHECK_FALSE(to.goaway(http2_frame(NGHTTP2_HEADERS, 0, 3, kRequest)));
  CHECK(to.at(14s - 1ms));
  CHECK_FALSE(to.goaway(http2_frame(NGHTTP2_CONTINUATION, 0, 3, literal("a", "b"))));
  CHECK_FALSE(to.at(14s));
  CHECK(to.counters.read(Limit::kHeaderTime) == 1);
}

TEST_CASE("a body that stands still: its stream is reset, or the connection ends with it") {
  Limited to(without_times());
  const int32_t slow = to.wire.client.open("/t/M");
  to.wire.client.send(slow, grpc_message("abc").substr(0, 6));
  const int32_t good = to.wire.client.open("/t/M");
  to.wire.client.send(good, grpc_message(pattern(100'000)).substr(0, 20'000));
  CHECK(to.wire.pump());
  CHECK(to.at(2s));  // seen
  to.wire.client.send(slow, "x");
  to.wire.client.send(good, pattern(2048));
  CHECK(to.wire.pump());
  CHECK(to.at(4s - 1ms));
  CHECK_FALSE(to.wire.client.reply(slow).closed);
  CHECK(to.at(4s));
  CHECK(to.wire.pump());
  CHECK(to.wire.client.reply(slow).reset == kCalm);
  CHECK_FALSE(to.wire.client.reply(good).closed);
  CHECK(to.counters.read(Limit::kBodyTime) == 1);
  // One byte too few.
  to.wire.client.send(good, pattern(2047));
  CHECK(to.wire.pump());
  CHECK_FALSE(to.at(6s));
  CHECK_FALSE(to.wire.pump());
  CHECK(to.wire.client.goaways.back().error == kCalm);
}

TEST_CASE("a call that its handler works on, and one that has just begun, are not slow") {
  Limited to(without_times());
  to.handler.hold = true;
  to.wire.client.call("/t/M", "x");
  CHECK(to.wire.pump());
  for (int second = 9; second < 3600; second += 10) {
    const int32_t late = to.wire.client.open("/t/M");
    CHECK(to.wire.pump());
    CHECK(to.at(std::chrono::seconds(second + 1)));
    to.wire.client.send(late, grpc_message("x"));
    to.wire.client.end(late);
    CHECK(to.wire.pump());
  }
  CHECK(to.counters.read(Limit::kBodyTime) == 0);
}

TEST_CASE("an answer that a shut window holds") {
  ClientOptions closed;
  closed.settings = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 10}};
  closed.auto_window_update = false;
  ConnectionLimits limits = without_times();
  limits.body_timeout = 0ms;
  limits.window_timeout = 10s;
  Limited to(limits, closed);
  const int32_t id = to.wire.client.call("/t/M", pattern(1000));
  CHECK(to.wire.pump());
  CHECK(to.at(10s));
  CHECK(to.at(20s));
  to.wire.client.credit(id, 5);  // it goes on a little
  CHECK(to.wire.pump());
  CHECK(to.at(30s));
  CHECK(to.at(40s));
  CHECK_FALSE(to.at(50s));
  CHECK(to.counters.read(Limit::kWindowTime) == 1);
}

TEST_CASE("an answer whose window was never open ends within four seconds") {
  ClientOptions closed;
  closed.settings = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 0}};
  closed.auto_window_update = false;
  Limited to(without_times(), closed);
  const int32_t shut = to.wire.client.call("/t/M", "shut");
  const int32_t slow = to.wire.client.call("/t/M", pattern(1000));
  CHECK(to.wire.pump());
  to.wire.client.credit(slow, 1);
  CHECK(to.wire.pump());
  CHECK(to.at(2s));
  CHECK(to.at(4s - 1ms));
  CHECK(to.counters.read(Limit::kWindowTime) == 0);
  CHECK(to.at(4s));
  CHECK(to.wire.pump());
  CHECK(to.wire.client.reply(shut).reset == kCalm);
  CHECK(to.counters.read(Limit::kWindowTime) == 1);
  // Who has taken something may go on in its own time.
  CHECK(to.at(200s));
  CHECK_FALSE(to.wire.client.reply(slow).closed);
  // Alone, and none does better: the connection.
  to.wire.client.credit(slow, 1 << 20);
  CHECK(to.wire.pump());
  CHECK(to.wire.client.reply(slow).message() == pattern(1000));
  to.wire.client.call("/t/M", "shut again");
  CHECK(to.wire.pump());
  CHECK(to.at(202s));
  CHECK_FALSE(to.at(204s));
  CHECK(to.counters.read(Limit::kWindowTime) == 2);
}

TEST_CASE("a first window that comes late is in time, and so is a call that has nothing to send") {
  ClientOptions closed;
  closed.settings = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 0}};
  closed.auto_window_update = false;
  Limited to(without_times(), closed);
  to.handler.hold = true;
  to.wire.client.call("/t/M", "held");
  CHECK(to.wire.pump());
  for (int second = 1; second < 100; ++second) CHECK(to.at(std::chrono::seconds(second)));
  to.handler.hold = false;
  const int32_t late = to.wire.client.call("/t/M", "late");
  CHECK(to.wire.pump());
  CHECK(to.at(102s - 1ms));
  to.wire.client.credit(late, 100);
  CHECK(to.wire.pump());
  CHECK(to.wire.client.reply(late).message() == "late");
  CHECK(to.at(110s));
  CHECK(to.counters.read(Limit::kWindowTime) == 0);
}

TEST_CASE("keepalive, idle and age, as a client sees them") {
  ConnectionLimits limits;
  limits.max_age = 0ms;
  Limited to(limits);
  CHECK(to.serves());
  for (int minute = 1; minute < 15; ++minute) {
    CHECK(to.at(std::chrono::minutes(minute)));
    const std::vector<Frame> ping = to.out();
    REQUIRE(ping.size() == 1);
    CHECK(ping[0].type == NGHTTP2_PING);
    CHECK_FALSE(to.goaway(http2_frame(NGHTTP2_PING, NGHTTP2_FLAG_ACK, 0, ping[0].payload)));
  }
  CHECK(to.at(15min));
  CHECK(to.wire.pump());
  REQUIRE(to.wire.client.goaways.size() == 1);
  CHECK(to.wire.client.goaways[0].error == NGHTTP2_NO_ERROR);
  CHECK(to.wire.client.goaways[0].last_stream == 0x7fffffff);
  CHECK(to.at(15min + 1s));
  const std::vector<Frame> last = to.out();
  REQUIRE(last.size() == 1);
  CHECK(last[0].type == NGHTTP2_GOAWAY);
  CHECK(last[0].number(0) == 1);
  CHECK(last[0].number(4) == NGHTTP2_NO_ERROR);
  CHECK(to.wire.connection->finished());
  CHECK(to.counters.read(Limit::kIdle) == 1);

  limits = without_times();
  limits.keepalive_time = 60s;
  Limited silent(limits);
  CHECK(silent.at(60s));
  CHECK(silent.at(80s - 1ms));
  CHECK_FALSE(silent.at(80s));
  CHECK(silent.counters.read(Limit::kKeepalive) == 1);

  limits = without_times();
  limits.max_age = 1800s;
  Limited old(limits);
  old.handler.hold = true;
  const int32_t id = old.wire.client.call("/t/M", "x");
  CHECK(old.wire.pump());
  CHECK(old.at(1800s));
  CHECK(old.wire.pump());
  CHECK(old.at(1801s));
  CHECK(old.wire.pump());
  CHECK(old.wire.client.goaways.size() == 2);
  CHECK(old.wire.client.goaways[1].last_stream == id);
  CHECK(old.at(1831s - 1ms));
  CHECK_FALSE(old.at(1831s));
  CHECK(old.counters.read(Limit::kAge) == 1);
  CHECK(old.counters.read(Limit::kAgeGrace) == 1);
}

TEST_CASE("a busy connection that behaves well is never ended") {
  ConnectionLimits limits;
  limits.max_age = 0ms;
  Limited to(limits);
  Nanoseconds time{};
  uint64_t answered = 0;
  for (int round = 0; round < 1500; ++round) {
    std::vector<int32_t> calls;
    for (int i = 0; i < 16; ++i) calls.push_back(to.wire.client.call("/t/M", "hello"));
    // One in sixteen gives up, in the middle of its request.
    const int32_t late = to.wire.client.open("/t/M");
    to.wire.client.send(late, grpc_message("hello").substr(0, 7));
    REQUIRE(to.wire.pump());
    to.wire.client.reset(late);
    // As gRPC's core does: a probe of the bandwidth and a window update for what came.
    to.wire.client.ping("probeprb");
    to.wire.client.credit(0, 1000);
    for (const int32_t id : calls) to.wire.client.credit(id, 1000);
    REQUIRE(to.wire.pump());
    for (const int32_t id : calls) answered += to.wire.client.reply(id).message() == "hello";
    time += 2ms;
    REQUIRE(to.at(time));
  }
  CHECK(answered == 1500 * 16);
  CHECK(to.wire.client.goaways.empty());
  for (std::size_t i = 0; i < kLimitCount; ++i) {
    CHECK(to.counters.read(static_cast<Limit>(i)) == 0);
  }
}
