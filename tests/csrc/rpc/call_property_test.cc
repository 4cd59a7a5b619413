// Random schedules and random bytes: whatever comes in whatever order, every call a handler was
// given ends exactly once, and nothing is held at the end. Seeds are fixed; a failure names its
// round.
#include <doctest/doctest.h>

#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "deflate.h"
#include "rpc/call.h"
#include "wire_client.h"

using namespace headrace;
using namespace headrace::test;
using namespace std::chrono_literals;

namespace {

const std::string kPath = "/test.Any/Call";

// Holds every call, and counts how each one ended.
class LedgerHandler final : public Handler {
 public:
  void on_unary(Call& call, BufferRef) override {
    REQUIRE(endings.emplace(call.id(), 0).second);  // a new id
    open.push_back(call.id());
  }
  void on_cancel(Call& call) override { ++endings.at(call.id()); }
  std::map<uint64_t, int> endings;
  std::vector<uint64_t> open;  // some are gone already: find() tells
};

std::string request_body(std::mt19937& random) {
  const std::string text = pattern(random() % 4 == 0 ? random() % 60000 : random() % 200, random());
  switch (random() % 12) {
    case 0:
      return grpc_message(text, 0, static_cast<uint32_t>(random()));
    case 1:
      return grpc_message(text, static_cast<uint8_t>(random()));
    case 2:
      return grpc_message(text) + grpc_message(text);
    case 3:
      return grpc_message(compress_text(Encoding::kGzip, text), 1);
    default:
      return grpc_message(text);
  }
}

}  // namespace

TEST_CASE("random schedules: every handled call ends exactly once and nothing is left") {
  int handled = 0;
  int lost = 0;
  for (unsigned round = 0; round < 250; ++round) {
    CAPTURE(round);
    std::mt19937 random(round);
    WireServer server(300000);
    LedgerHandler handler;
    server.methods.add(kPath, {&handler, 50000});
    ClientOptions options;
    if (round % 3 == 0) {
      options.settings = {
          {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, static_cast<uint32_t>(random() % 2000)}};
      options.auto_window_update = false;
    }
    // Two connections share the calls, as they do on a loop.
    std::vector<std::unique_ptr<Wire>> wires;
    for (int i = 0; i < 2; ++i) {
      wires.push_back(std::make_unique<Wire>(server.calls, Http2Options{}, options));
      if (random() % 4 == 0) wires.back()->feed_at_once = 1 + random() % 20;
    }
    std::vector<std::pair<std::size_t, int32_t>> streams;  // of which wire
    const auto answered = [&](uint64_t id) { ++handler.endings.at(id); };
    for (int step = 0; step < 250; ++step) {
      const std::size_t which = random() % 2;
      Wire& wire = *wires[which];
      switch (random() % 10) {
        case 0:
        case 1: {
          Headers extra;
          if (random() % 2 == 0)
            extra.emplace_back("grpc-timeout", std::to_string(random() % 200) + "m");
          if (random() % 3 == 0) extra.emplace_back("grpc-encoding", "gzip");
          if (!wire.connection) break;
          streams.emplace_back(which, wire.client.open(kPath, extra));
          if (random() % 2 == 0) {  // a whole request; the others come in parts
            wire.client.send(streams.back().second, request_body(random));
            wire.client.end(streams.back().second);
          }
          break;
        }
        case 2:
        case 3:
          if (!streams.empty()) {
            const auto& [on, id] = streams[random() % streams.size()];
            const std::string body = request_body(random);
            const std::size_t cut = random() % (body.size() + 1);
            wires[on]->client.send(id, body.substr(0, cut), random() % 20);
            if (random() % 4 != 0) wires[on]->client.send(id, body.substr(cut));
            if (random() % 2 == 0) wires[on]->client.end(id);
          }
          break;
        case 4:
          if (!streams.empty()) {
            const auto& [on, id] = streams[random() % streams.size()];
            random() % 3 == 0 ? wires[on]->client.reset(id) : wires[on]->client.end(id);
          }
          break;
        case 5:
        case 6:
          if (!handler.open.empty()) {
            const uint64_t id = handler.open[random() % handler.open.size()];
            if (Call* call = server.calls.find(id)) {
              answered(id);
              if (random() % 3 == 0) {
                call->fail(Status::internal("x"));
              } else {
                ScriptedHandler::answer(*call, pattern(random() % 30000));
              }
              REQUIRE(server.calls.find(id) == nullptr);
            }
          }
          break;
        case 7:
          server.advance(Microseconds(random() % 8000));
          break;
        case 8:
          if (!streams.empty()) {
            const auto& [on, id] = streams[random() % streams.size()];
            wires[on]->client.credit(random() % 3 == 0 ? 0 : id,
                                     1 + static_cast<int>(random() % 20000));
          }
          break;
        default:
          if (random() % 60 == 0) {
            wire.lose();
            ++lost;
          } else if (random() % 80 == 0) {
            server.calls.fail_all(Status::unavailable("stop"));
          }
      }
      if (random() % 2 == 0) wire.pump();
      REQUIRE(server.budget.used() <= 300000);
      REQUIRE(server.calls.active() ==
              server.calls.counters().started - server.calls.counters().finished);
    }
    // The end, in one of several ways.
    if (random() % 2 == 0) server.calls.fail_all(Status::unavailable("stop"));
    if (random() % 2 == 0) {
      for (const auto& wire : wires) wire->pump();
    }
    for (const auto& wire : wires) wire->lose();
    for (const auto& [id, times] : handler.endings) REQUIRE(times == 1);
    REQUIRE(server.idle());
    handled += static_cast<int>(handler.endings.size());
  }
  // The schedules do reach the handler and do lose connections.
  CHECK(handled > 2000);
  CHECK(lost > 10);
}

TEST_CASE("random damage to a valid stream of bytes never does more than end the connection") {
  ScriptedHandler recording;
  std::string good;
  {
    WireServer server;
    server.methods.add(kPath, {&recording});
    Wire wire(server.calls);
    for (int i = 0; i < 6; ++i) {
      const int32_t id =
          wire.client.open(kPath, {{"k" + std::to_string(i), "value"},
                                   {"grpc-timeout", "1S"},
                                   {"grpc-encoding", i % 2 == 0 ? "gzip" : "identity"}});
      const std::string text = pattern(20 + 40U * static_cast<unsigned>(i));
      wire.client.send(
          id,
          i % 2 == 0 ? grpc_message(compress_text(Encoding::kGzip, text), 1) : grpc_message(text),
          static_cast<std::size_t>(i));
      wire.client.end(id);
      if (i == 3) wire.client.reset(id);
      wire.client.ping("12345678");
      wire.pump();
    }
    good = wire.sent;
    REQUIRE(recording.records.size() == 5);
  }
  int survived = 0;
  for (unsigned round = 0; round < 5000; ++round) {
    CAPTURE(round);
    std::mt19937 random(round);
    std::string bytes = good;
    const std::size_t start = random() % 20 == 0 ? 0 : 24;  // mostly past the preface
    for (unsigned i = 0; i < 1 + random() % 5; ++i) {
      const std::size_t at = start + random() % (bytes.size() - start);
      switch (random() % 5) {
        case 0:
          bytes[at] = static_cast<char>(bytes[at] ^ 1 << random() % 8);
          break;
        case 1:
          bytes[at] = static_cast<char>(random());
          break;
        case 2:
          bytes.erase(at, 1 + random() % 12);
          break;
        case 3:
          bytes.insert(at, bytes.substr(random() % bytes.size(), random() % 60));
          break;
        default:
          bytes.insert(at, pattern(random() % 12, random()));
      }
    }
    WireServer server(100000);
    ScriptedHandler handler;
    handler.hold = random() % 3 == 0;
    server.methods.add(kPath, {&handler, 10000});
    {
      Wire wire(server.calls);
      wire.feed_at_once = random() % 2 == 0 ? SIZE_MAX : 1 + random() % 100;
      const bool alive = wire.feed(bytes);
      wire.drain();
      if (random() % 2 == 0) server.advance(2s);
      wire.drain();
      survived += alive && !wire.broken;
    }
    REQUIRE(server.idle());
    for (const ScriptedHandler::Record& record : handler.records) {
      REQUIRE(record.cancels == (handler.hold ? 1 : 0));
    }
  }
  CHECK(survived > 100);  // some damage is harmless: the loop is not all refused prefaces
}
