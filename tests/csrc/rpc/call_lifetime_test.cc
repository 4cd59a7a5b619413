// How calls end: deadlines, cancellation, lost connections, shutdown; each exactly once.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "rpc/call.h"
#include "wire_client.h"

using namespace headrace;
using namespace headrace::test;
using namespace std::chrono_literals;

namespace {

const std::string kPath = "/test.Slow/Call";

struct Slow {
  explicit Slow(const ClientOptions& options = {}) : wire(server.calls, {}, options) {
    server.methods.add(kPath, {&handler});
    handler.hold = true;
  }
  // A call that the handler holds; answers with its id.
  uint64_t hold(const Headers& extra = {}) {
    stream = wire.client.call(kPath, "work", extra);
    REQUIRE(wire.pump());
    return handler.records.back().id;
  }
  void advance(Nanoseconds by) {
    server.advance(by);
    wire.pump();
  }
  const Reply& reply() const { return wire.client.reply(stream); }

  ScriptedHandler handler;
  WireServer server;
  Wire wire;
  int32_t stream = 0;
};

}  // namespace

TEST_CASE("a deadline ends a call that is being handled") {
  Slow slow;
  const uint64_t id = slow.hold({{"grpc-timeout", "100m"}});
  CHECK(slow.server.calls.find(id)->deadline() == slow.server.now + 100ms);
  slow.advance(99ms);
  CHECK_FALSE(slow.reply().ended);
  slow.advance(2ms);
  CHECK(slow.reply().status() == 4);
  CHECK(slow.reply().trailers_only());
  CHECK(slow.handler.records.at(0).cancels == 1);
  CHECK(slow.server.calls.find(id) == nullptr);
  CHECK(slow.server.idle());
  CHECK(slow.server.finished(StatusCode::kDeadlineExceeded) == 1);
}

TEST_CASE("a deadline ends a call whose request is still coming") {
  for (const std::string& sent :
       {std::string(), std::string(3, '\0'), grpc_message("x", 0, 100000)}) {
    Slow slow;
    const int32_t id = slow.wire.client.open(kPath, {{"grpc-timeout", "50m"}});
    if (!sent.empty()) slow.wire.client.send(id, sent);
    slow.wire.pump();
    slow.advance(51ms);
    CHECK(slow.wire.client.reply(id).status() == 4);
    CHECK(slow.wire.client.reply(id).reset == NGHTTP2_NO_ERROR);
    CHECK(slow.handler.cancels == 0);  // it never had the call
    CHECK(slow.server.idle());
  }
}

TEST_CASE("a timeout of zero") {
  Slow slow;
  slow.hold({{"grpc-timeout", "0n"}});
  slow.advance(1ms);
  CHECK(slow.reply().status() == 4);
  CHECK(slow.server.idle());
}

TEST_CASE("no timeout is no deadline") {
  Slow slow;
  const uint64_t id = slow.hold();
  slow.advance(1000h);
  REQUIRE(slow.server.calls.find(id) != nullptr);
  CHECK(slow.server.calls.find(id)->deadline() == kNever);
  ScriptedHandler::answer(*slow.server.calls.find(id), "late");
  slow.wire.pump();
  CHECK(slow.reply().message() == "late");
}

TEST_CASE("a deadline that passes while the answer waits for the client's window changes nothing") {
  ClientOptions options;
  options.settings = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 0}};
  Slow slow(options);
  const uint64_t id = slow.hold({{"grpc-timeout", "100m"}});
  ScriptedHandler::answer(*slow.server.calls.find(id), "answer");
  slow.wire.pump();
  CHECK(slow.server.calls.find(id) == nullptr);
  CHECK(slow.server.idle());
  slow.advance(1s);
  CHECK(slow.handler.cancels == 0);
  slow.wire.client.credit(slow.stream, 1000);
  slow.wire.pump();
  CHECK(slow.reply().message() == "answer");
  CHECK(slow.reply().status() == 0);
}

TEST_CASE("the client resets a call that is being handled: the handler hears it once") {
  Slow slow;
  const uint64_t id = slow.hold({{"grpc-timeout", "1S"}});
  slow.wire.client.reset(slow.stream);
  slow.wire.pump();
  CHECK(slow.handler.records.at(0).cancels == 1);
  CHECK(slow.server.calls.find(id) == nullptr);
  CHECK(slow.server.idle());
  CHECK(slow.server.finished(StatusCode::kCancelled) == 1);
  slow.advance(2s);
  slow.wire.lose();
  CHECK(slow.handler.cancels == 1);
  CHECK(slow.server.idle());
}

TEST_CASE("the client resets when the answer is queued, half sent, or the request half received") {
  ClientOptions options;
  options.settings = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 10000}};
  options.auto_window_update = false;
  Slow slow(options);
  const uint64_t id = slow.hold();
  ScriptedHandler::answer(*slow.server.calls.find(id), pattern(50000));
  SUBCASE("queued") {}
  SUBCASE("half sent") { slow.wire.pump(); }
  slow.wire.client.reset(slow.stream);
  slow.wire.pump();
  CHECK(slow.handler.cancels == 0);
  CHECK(slow.server.finished(StatusCode::kOk) == 1);
  CHECK(slow.server.idle());

  const int32_t half = slow.wire.client.open(kPath);
  slow.wire.client.send(half, grpc_message("abc", 0, 1000));
  slow.wire.pump();
  CHECK(slow.server.budget.used() == 1000);
  slow.wire.client.reset(half);
  slow.wire.pump();
  CHECK(slow.server.idle());
  CHECK(slow.wire.connection->open_streams() == 0);
}

TEST_CASE("the connection is lost with calls in every state") {
  ClientOptions options;
  options.settings = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 10}};
  options.auto_window_update = false;
  Slow slow(options);
  slow.wire.client.open(kPath, {{"grpc-timeout", "1S"}});                          // headers only
  slow.wire.client.send(slow.wire.client.open(kPath), grpc_message("", 0, 5000));  // half a message
  const uint64_t held = slow.hold({{"grpc-timeout", "1S"}});
  const uint64_t answered = slow.hold();
  ScriptedHandler::answer(*slow.server.calls.find(answered), pattern(1000));
  slow.wire.pump();
  const uint64_t failed = slow.hold();
  slow.server.calls.find(failed)->fail(Status::internal("x"));  // not even drained
  CHECK(slow.server.calls.active() == 3);
  slow.wire.lose();
  CHECK(slow.server.calls.find(held) == nullptr);
  CHECK(slow.handler.cancels == 1);
  CHECK(slow.handler.records.at(0).cancels == 1);
  CHECK(slow.server.idle());
  slow.server.advance(2s);
  CHECK(slow.handler.cancels == 1);
}

TEST_CASE("ids do not come back: an old one finds nothing, though its slot is used again") {
  Slow slow;
  std::vector<uint64_t> old;
  for (int i = 0; i < 100; ++i) {
    const uint64_t id = slow.hold();
    for (const uint64_t other : old) REQUIRE(other != id);
    REQUIRE(slow.server.calls.find(id) != nullptr);
    switch (i % 3) {
      case 0:
        ScriptedHandler::answer(*slow.server.calls.find(id), "x");
        break;
      case 1:
        slow.server.calls.find(id)->fail(Status::internal("x"));
        break;
      default:
        slow.wire.client.reset(slow.stream);
    }
    slow.wire.pump();
    old.push_back(id);
    for (const uint64_t other : old) REQUIRE(slow.server.calls.find(other) == nullptr);
  }
  for (const uint64_t never : {uint64_t{0}, uint64_t{1} << 32 | 12345, ~uint64_t{0}}) {
    CHECK(slow.server.calls.find(never) == nullptr);
  }
  CHECK(slow.server.idle());
}

TEST_CASE("an id is found only while a handler has the call") {
  Slow slow;
  const uint64_t id = slow.hold();
  ScriptedHandler::answer(*slow.server.calls.find(id), "x");
  slow.wire.pump();
  // The slot's next call is being received: not the handler's yet, under either number.
  slow.wire.client.open(kPath);
  slow.wire.pump();
  CHECK(slow.server.calls.active() == 1);
  CHECK(slow.server.calls.find(id) == nullptr);
  CHECK(slow.server.calls.find(id + (uint64_t{1} << 32)) == nullptr);
}

TEST_CASE("shutdown: new calls are refused, the rest is failed, all exactly once") {
  Slow slow;
  const uint64_t id = slow.hold({{"grpc-timeout", "1H"}});
  const int32_t held = slow.stream;
  const int32_t coming = slow.wire.client.open(kPath);
  slow.wire.client.send(coming, grpc_message("", 0, 100));
  slow.wire.pump();
  slow.server.calls.refuse_new(Status::unavailable("shutting down"));
  const int32_t refused = slow.wire.client.call(kPath, "x");
  slow.wire.pump();
  CHECK(slow.wire.client.reply(refused).status() == 14);
  CHECK(slow.handler.records.size() == 1);
  slow.server.calls.fail_all(Status::unavailable("stopped"));
  slow.server.calls.fail_all(Status::unavailable("stopped"));
  slow.wire.pump();
  CHECK(slow.wire.client.reply(held).status() == 14);
  CHECK(slow.wire.client.reply(coming).status() == 14);
  CHECK(slow.handler.records.at(0).cancels == 1);
  CHECK(slow.server.calls.find(id) == nullptr);
  CHECK(slow.server.idle());
}

TEST_CASE("a handler that is told of one call's end may end others") {
  // As an ensemble would: cancelling one step fails its siblings on the same connection.
  class Linked final : public Handler {
   public:
    explicit Linked(CallSet& calls) : calls_(calls) {}
    void on_unary(Call& call, BufferRef) override { ids.push_back(call.id()); }
    void on_cancel(Call& call) override {
      ++cancels;
      for (const uint64_t id : ids) {
        if (id == call.id()) continue;
        if (Call* other = calls_.find(id)) other->fail(Status::cancelled("sibling"));
      }
    }
    std::vector<uint64_t> ids;
    int cancels = 0;

   private:
    CallSet& calls_;
  };
  WireServer server;
  Linked linked(server.calls);
  server.methods.add(kPath, {&linked});
  Wire wire(server.calls);
  std::vector<int32_t> streams;
  for (int i = 0; i < 5; ++i) {
    streams.push_back(wire.client.call(kPath, "x", {{"grpc-timeout", "10m"}}));
  }
  wire.pump();
  SUBCASE("reset") {
    wire.client.reset(streams[2]);
    wire.pump();
    for (const int i : {0, 1, 3, 4})
      CHECK(wire.client.reply(streams[static_cast<std::size_t>(i)]).status() == 1);
  }
  SUBCASE("deadline") {
    server.advance(20ms);
    wire.pump();
    CHECK(wire.client.reply(streams[0]).status() == 4);
  }
  SUBCASE("fail_all") { server.calls.fail_all(Status::unavailable("x")); }
  SUBCASE("lost") { wire.lose(); }
  CHECK(linked.cancels == 1);
  CHECK(server.idle());
}
