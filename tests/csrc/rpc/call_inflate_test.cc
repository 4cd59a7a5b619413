// Compressed messages over the turns of a loop: what is inflated when, who goes first, and what is held.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "deflate.h"
#include "rpc/call.h"
#include "wire_client.h"

using namespace headrace;
using namespace headrace::test;

namespace {

const std::string kPath = "/test.Echo/Call";
const std::string kStream = "/test.Echo/Chat";
const Headers kGzip = {{"grpc-encoding", "gzip"}};
const Headers kDeflate = {{"grpc-encoding", "deflate"}};

std::string packed(const std::string& text, Encoding encoding = Encoding::kGzip) {
  return grpc_message(compress_text(encoding, text), 1);
}

// The loop does not run: the tests take its turns.
struct Turns {
  explicit Turns(const Http2Options& options = {}, std::size_t budget = 512 << 20)
      : server(budget), wire(server.calls, options) {
    server.methods.add(kPath, {&handler, 512 << 20});
    server.methods.add(kStream, {&chat, 512 << 20, MethodKind::kBidiStreaming});
    server.calls.spread_over(loop);
  }
  int32_t send(const std::string& body, const Headers& headers = kGzip) {
    const int32_t id = wire.client.open(kPath, headers);
    wire.client.send(id, body);
    wire.client.end(id);
    alive = wire.pump();
    return id;
  }
  // Of connections that are not trusted; as no slice ends, all that waits.
  void untrusted_turn() {
    server.calls.on_untrusted_turn();
    alive = wire.pump();
  }
  // Of trusted ones: a slice.
  void trusted_turn() {
    server.calls.on_turn_end();
    alive = wire.pump();
  }
  void earn_trust() {
    for (int i = 0; i < 40; ++i) send(grpc_message("x"), {});
    REQUIRE(wire.connection->trusted());
  }
  std::size_t seen() const { return handler.records.size(); }
  const Reply& reply(int32_t id) const { return wire.client.reply(id); }

  EventLoop loop;
  ScriptedHandler handler;
  StreamingHandler chat;
  WireServer server;
  Wire wire;
  bool alive = true;
};

}  // namespace

TEST_CASE("small messages are inflated as they come, a turn's worth of them; then the others") {
  for (const auto& [headers, encoding] :
       {std::pair(kGzip, Encoding::kGzip), std::pair(kDeflate, Encoding::kDeflate)}) {
    Turns turns;
    const std::string text = pattern(60'000);
    std::vector<int32_t> ids;
    for (int i = 0; i < 6; ++i) ids.push_back(turns.send(packed(text, encoding), headers));
    CHECK(turns.seen() == 4);  // 256 KiB
    turns.untrusted_turn();
    CHECK(turns.seen() == 6);
    turns.server.advance(Milliseconds(1));
    ids.push_back(turns.send(packed(text, encoding), headers));
    CHECK(turns.seen() == 7);
    for (const int32_t id : ids) CHECK((turns.reply(id).message() == text));
    CHECK(turns.server.idle());
  }
}

TEST_CASE("a large message waits for turns, and what waits holds only what came") {
  for (const auto& [headers, encoding] :
       {std::pair(kGzip, Encoding::kGzip), std::pair(kDeflate, Encoding::kDeflate)}) {
    Turns turns;
    const std::string text = pattern(100'000) + std::string(5'000'000, 'z');
    const std::string body = packed(text, encoding);
    const int32_t id = turns.send(body, headers);
    CHECK(turns.seen() == 0);
    CHECK(turns.server.budget.used() == body.size() - 5);
    // Others are not held up.
    CHECK(turns.reply(turns.send(grpc_message("other"), {})).message() == "other");
    turns.untrusted_turn();
    REQUIRE(turns.seen() == 2);
    CHECK((turns.reply(id).message() == text));
    CHECK(turns.server.idle());
  }
}

TEST_CASE(
    "a trusted client's messages are inflated by the slice, and end in the middle without a "
    "trace") {
  const std::string text(16 << 20, 'z');
  enum class End { kNot, kCancel, kDeadline, kShutdown, kDisconnect };
  for (const End end :
       {End::kNot, End::kCancel, End::kDeadline, End::kShutdown, End::kDisconnect}) {
    for (const auto& [name, encoding] :
         {std::pair("gzip", Encoding::kGzip), std::pair("deflate", Encoding::kDeflate)}) {
      CAPTURE(static_cast<int>(end));
      Turns turns;
      turns.earn_trust();
      const std::size_t before = turns.seen();
      const int32_t id =
          turns.send(packed(text, encoding), {{"grpc-encoding", name}, {"grpc-timeout", "10S"}});
      turns.trusted_turn();
      CHECK(turns.seen() == before);
      // gzip says how much it will be.
      if (encoding == Encoding::kGzip) CHECK(turns.server.budget.used() > text.size());
      if (end == End::kCancel) turns.wire.client.reset(id);
      if (end == End::kDeadline) turns.server.advance(std::chrono::seconds(11));
      if (end == End::kShutdown) turns.server.calls.fail_all(Status::unavailable("over"));
      if (end == End::kDisconnect) {
        turns.wire.connection.reset();
        turns.server.calls.on_turn_end();
        CHECK(turns.server.idle());
        continue;
      }
      turns.wire.pump();
      for (int i = 0; i < 1'000'000 && turns.server.calls.active() != 0; ++i) turns.trusted_turn();
      CHECK(turns.seen() == before + (end == End::kNot ? 1 : 0));
      if (end == End::kNot) CHECK((turns.reply(id).message() == text));
      if (end == End::kDeadline) CHECK(turns.reply(id).status() == 4);
      if (end == End::kShutdown) CHECK(turns.reply(id).status() == 14);
      turns.trusted_turn();
      CHECK(turns.server.idle());
    }
  }
}

TEST_CASE("in a stream the messages keep their order around one that is being inflated") {
  Turns turns;
  const int32_t id = turns.wire.client.open(kStream, kGzip);
  const std::string large = pattern(1'000'000);
  turns.wire.client.send(id, grpc_message("first"));
  turns.wire.client.send(id, packed(large));
  turns.wire.client.send(id, packed("third") + grpc_message("fourth"));
  turns.wire.client.end(id);
  REQUIRE(turns.wire.pump());
  CHECK(turns.chat.only().messages == std::vector<std::string>{"first"});
  CHECK(turns.chat.only().half_closes == 0);
  turns.untrusted_turn();
  const std::vector<std::string> expected = {"first", large, "third", "fourth"};
  CHECK((turns.chat.only().messages == expected));
  CHECK(turns.chat.only().half_closes == 1);
  CHECK(turns.reply(id).status() == 0);
  CHECK(turns.server.idle());
}

TEST_CASE("a bomb in a stream ends it, though more has come since") {
  Turns turns;
  const int32_t id = turns.wire.client.open(kStream, kDeflate);
  turns.wire.client.send(id, packed(std::string(17 << 20, 'x'), Encoding::kDeflate));
  turns.wire.client.send(id, grpc_message("never seen"));
  turns.wire.client.end(id);
  REQUIRE(turns.wire.pump());
  CHECK(turns.chat.only().cancels == 0);
  turns.untrusted_turn();
  CHECK(turns.chat.only().cancels == 1);
  CHECK(turns.chat.only().messages.empty());
  CHECK(turns.reply(id).status() == 8);
  CHECK(turns.server.idle());
}

TEST_CASE(
    "gzip that says that it is too large is refused at once; that lies about it, when it is more") {
  Turns turns;
  CHECK(turns.reply(turns.send(packed(std::string(100 << 20, 'x')))).status() == 8);
  std::string lie = compress_text(Encoding::kGzip, std::string(17 << 20, 'x'));
  for (const std::string& size : {std::string(4, '\0'), std::string("\0\0\x1\0", 4)}) {
    const int32_t id = turns.send(grpc_message(lie.substr(0, lie.size() - 4) + size, 1));
    turns.untrusted_turn();
    CHECK(turns.reply(id).status() == 13);
  }
  CHECK(turns.seen() == 0);
  CHECK(turns.server.idle());
}

TEST_CASE("gzip that lies ends the connection, of a client that was good before the second time") {
  Turns turns;
  std::string lie = compress_text(Encoding::kGzip, std::string(17 << 20, 'x'));
  lie.replace(lie.size() - 4, 4, std::string("\0\0\x20\0", 4));
  SUBCASE("good before") {
    turns.earn_trust();
    const int32_t id = turns.send(grpc_message(lie, 1));
    while (turns.alive && !turns.reply(id).closed) turns.trusted_turn();
    CHECK(turns.reply(id).status() == 13);
    CHECK(turns.alive);
  }
  SUBCASE("new") {}
  turns.send(grpc_message(lie, 1));
  turns.untrusted_turn();
  CHECK_FALSE(turns.alive);
}

TEST_CASE("a connection holds one inflated message, or as many as its budget has room for") {
  Http2Options options;
  options.limits.max_received_bytes = 8 << 20;
  Turns turns(options);
  turns.handler.hold = true;
  // Small on the wire: all of them come.
  const std::string text(6 << 20, 'z');
  for (int i = 0; i < 3; ++i) turns.send(packed(text));
  turns.untrusted_turn();
  CHECK(turns.seen() == 1);
  turns.untrusted_turn();
  CHECK(turns.seen() == 1);
  for (std::size_t i = 0; i < 3; ++i) {
    REQUIRE(turns.seen() == i + 1);
    CHECK((turns.handler.records[i].message == text));
    ScriptedHandler::answer(*turns.server.calls.find(turns.handler.records[i].id), "");
    turns.wire.pump();
    turns.untrusted_turn();
  }
  CHECK(turns.server.idle());
  // One that is larger than the budget passes.
  turns.handler.hold = false;
  turns.send(packed(std::string(12 << 20, 'y')));
  turns.untrusted_turn();
  CHECK(turns.seen() == 4);
  CHECK(turns.server.idle());
}

TEST_CASE(
    "messages that inflate to much and come to nothing end the connection; good ones do not") {
  Http2Options options;
  options.limits.glitch_burst = 8000;
  options.limits.glitch_rate = 0;
  // 15 MiB beyond what is free, untrusted: 3840 glitches for a call that fails, 240 in a stream.
  const std::string body = packed(std::string(16 << 20, 'z'));
  SUBCASE("they are answered well") {
    Turns turns(options);
    turns.handler.hold = true;
    for (std::size_t i = 0; i < 10; ++i) {
      turns.send(body);
      turns.untrusted_turn();
      REQUIRE(turns.seen() == i + 1);
      ScriptedHandler::answer(*turns.server.calls.find(turns.handler.records[i].id), "well");
      CHECK(turns.wire.pump());
    }
  }
  SUBCASE("they fail") {
    Turns turns(options);
    turns.handler.hold = true;
    std::size_t sent = 0;
    while (turns.alive && sent < 10) {
      turns.send(body);
      turns.untrusted_turn();
      turns.server.calls.find(turns.handler.records[sent++].id)
          ->fail(Status::invalid_argument("no"));
      turns.alive = turns.wire.pump();
    }
    CHECK_FALSE(turns.alive);
    CHECK(sent == 3);
  }
  SUBCASE("in a stream, which may never end, they count at once") {
    options.limits.glitch_burst = 1000;
    Turns turns(options);
    turns.chat.got = [](Call& call, std::string_view message) {
      call.release(message.size());
      call.request_messages(1);
    };
    const int32_t id = turns.wire.client.open(kStream, kGzip);
    int sent = 0;
    while (turns.alive && sent < 10) {
      turns.wire.client.send(id, body);
      ++sent;
      turns.alive = turns.wire.pump();
      if (turns.alive) turns.untrusted_turn();
    }
    CHECK_FALSE(turns.alive);
    CHECK(sent == 5);
  }
}

TEST_CASE("what a connection sent after a bomb is looked at before what others sent") {
  Http2Options options;
  options.limits.glitch_burst = 8000;  // two bombs end it
  options.limits.glitch_rate = 0;
  Turns turns(options);
  Wire second(turns.server.calls, options);
  const std::string bomb = packed(std::string(40 << 20, 'z'), Encoding::kDeflate);
  const auto send = [](Wire& wire, const std::string& path, const std::string& body) {
    const int32_t id = wire.client.open(path, kDeflate);
    wire.client.send(id, body);
    if (path == kPath) wire.client.end(id);
    return wire.pump();
  };
  const auto& failed = turns.server.calls.counters().finished_by_code;
  uint64_t failed_before = 0;
  turns.chat.got = [&](Call&, std::string_view) {
    failed_before = failed[static_cast<std::size_t>(StatusCode::kResourceExhausted)].read();
  };
  CHECK(send(turns.wire, kPath, bomb));
  CHECK(send(second, kStream, packed(std::string(1 << 20, 'z'), Encoding::kDeflate)));
  CHECK(send(turns.wire, kPath, bomb));
  turns.untrusted_turn();
  CHECK_FALSE(turns.alive);
  CHECK(failed_before == 2);
}
