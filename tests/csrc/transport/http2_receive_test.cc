// The receive budget of one connection, and requests that wait until the client has taken answers, with
// calls on top: every message completes in the end, whatever is held meanwhile.
#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "transport/http2_connection.h"
#include "wire_client.h"

using namespace headrace;
using namespace headrace::test;
using namespace std::chrono_literals;

namespace {

constexpr std::size_t kWindow = 256 * 1024;
constexpr uint32_t kBudget = 1 << 20;

struct Budgeted {
  explicit Budgeted(const ClientOptions& client = {}, std::size_t connection_window = 8 << 20)
      : wire(server.calls, options(connection_window), client) {
    server.methods.add("/t/M", {&handler, 64 << 20});
    server.methods.add("/t/S", {&streaming, 64 << 20, MethodKind::kBidiStreaming});
    streaming.opened = [](Call&) {};
    wire.connection->limit_counters = &counters;
    CHECK(wire.connection->advance(now));
    CHECK(wire.pump());
  }
  static Http2Options options(std::size_t connection_window) {
    Http2Options all;
    all.limits.max_received_bytes = kBudget;
    all.limits.idle_timeout = all.limits.keepalive_time = all.limits.max_age = 0ms;
    all.limits.window_timeout = 0ms;
    all.connection_window_bytes = static_cast<uint32_t>(connection_window);
    return all;
  }
  // As Wire::pump(), and how much was held at most.
  std::size_t pump() {
    std::size_t most = server.budget.used();
    while (wire.connection) {
      const std::string request = wire.client.output();
      for (std::size_t at = 0; at < request.size(); at += 16'384) {
        REQUIRE(wire.feed(std::string_view(request).substr(at, 16'384)));
        most = std::max(most, server.budget.used());
      }
      const std::string answer = wire.drain();
      CHECK(wire.client.input(answer));
      if (request.empty() && answer.empty()) break;
    }
    return most;
  }
  bool at(Nanoseconds time) {
    now = TimePoint{} + time;
    return wire.connection->advance(now);
  }
  // Answers the oldest call that is held.
  void answer_one() {
    const ScriptedHandler::Record& record = handler.records[answered++];
    ScriptedHandler::answer(*server.calls.find(record.id), record.message);
  }

  TimePoint now{};
  LimitCounters counters;
  ScriptedHandler handler;
  StreamingHandler streaming;
  WireServer server;
  std::size_t answered = 0;
  Wire wire;
};

}  // namespace

TEST_CASE("a message larger than the budget completes") {
  Budgeted to;
  const int32_t id = to.wire.client.call("/t/M", pattern(10 * kBudget));
  to.pump();
  CHECK((to.wire.client.reply(id).message() == pattern(10 * kBudget)));
  CHECK(to.counters.read(Limit::kReceivedBytes) == 1);
  CHECK(to.server.idle());
}

TEST_CASE("messages that come side by side go on one after the other, and all complete") {
  Budgeted to;
  const std::size_t size = 2 << 20;
  std::vector<int32_t> ids;
  for (int i = 0; i < 40; ++i) ids.push_back(to.wire.client.call("/t/M", pattern(size)));
  const std::size_t most = to.pump();
  for (const int32_t id : ids) CHECK((to.wire.client.reply(id).message() == pattern(size)));
  // 80 MiB without it. A buffer may be four times what has come.
  CHECK(most <= kBudget + size + ids.size() * (kWindow + 3 * kWindow));
  CHECK(most < 40 << 20);
  CHECK(to.server.idle());
}

TEST_CASE("whole messages over the budget shut the connection's window until some are answered") {
  Budgeted to({}, 2 << 20);
  to.handler.hold = true;
  const std::size_t size = 600'000;
  std::vector<int32_t> ids;
  for (int i = 0; i < 50; ++i) ids.push_back(to.wire.client.call("/t/M", pattern(size)));
  CHECK(to.pump() <= kBudget + size + ids.size() * 2 * kWindow);
  CHECK(to.handler.records.size() <= 4);
  // The client is held up, not slow.
  for (int second = 1; second < 60; ++second) REQUIRE(to.at(std::chrono::seconds(second)));
  CHECK(to.counters.read(Limit::kBodyTime) == 0);
  while (to.answered < ids.size()) {
    REQUIRE(to.answered < to.handler.records.size());
    to.answer_one();
    CHECK(to.pump() <= kBudget + size + ids.size() * 2 * kWindow);
  }
  for (const int32_t id : ids) CHECK((to.wire.client.reply(id).message() == pattern(size)));
  CHECK(to.server.idle());
}

TEST_CASE("a window that opened just before a look leaves the client its time") {
  Budgeted to({}, 2 << 20);
  to.handler.hold = true;
  for (int i = 0; i < 40; ++i) to.wire.client.call("/t/M", pattern(600'000));
  to.pump();
  CHECK(to.at(2s));
  CHECK(to.at(4s - 1ms));
  // All is answered, and the client takes its time to go on.
  const std::size_t count = to.handler.records.size();
  while (to.answered < count) to.answer_one();
  to.wire.drain();
  CHECK(to.at(4s));
  CHECK(to.counters.read(Limit::kBodyTime) == 0);
  // But not for ever.
  to.at(6s);
  to.wire.drain();
  to.at(8s);
  CHECK(to.counters.read(Limit::kBodyTime) >= 1);
}

TEST_CASE("who holds the budget and does not go on is slow") {
  Budgeted to;
  std::vector<int32_t> ids;
  for (int i = 0; i < 20; ++i) {
    ids.push_back(to.wire.client.open("/t/M"));
    to.wire.client.send(ids.back(), grpc_message(pattern(1 << 20)).substr(0, 100'000));
  }
  to.pump();
  CHECK(to.counters.read(Limit::kReceivedBytes) == 1);
  CHECK(to.at(2s));
  CHECK_FALSE(to.at(4s));
  CHECK(to.counters.read(Limit::kBodyTime) == 1);
}

TEST_CASE("bytes that handlers have not asked for leave the connection open") {
  Budgeted to;
  // Far over the budget, each held by its own window.
  for (int i = 0; i < 40; ++i) to.wire.client.send(to.wire.client.open("/t/S"), pattern(1 << 20));
  const int32_t chat = to.wire.client.open("/t/S");
  to.pump();
  CHECK(to.server.budget.used() == 40 * kWindow);
  to.streaming.got = [](Call& call, std::string_view message) {
    StreamingHandler::send(call, message.substr(0, 1));
    call.release(message.size());
    call.request_messages(1);
  };
  uint64_t last = 0;
  for (const auto& [id, record] : to.streaming.records) last = std::max(last, id & 0xffffffff);
  for (const auto& [id, record] : to.streaming.records) {
    if ((id & 0xffffffff) == last) to.server.calls.find(id)->request_messages(1);
  }
  const std::string text = pattern(300'000);
  for (int i = 0; i < 50; ++i) {
    to.wire.client.send(chat, grpc_message(text));
    to.pump();
  }
  CHECK(to.wire.client.reply(chat).messages().size() == 50);
  to.wire.lose();
  CHECK(to.server.idle());
}

TEST_CASE("streams with their messages in parts: one is preferred, and the next when it ends") {
  Budgeted to;
  to.streaming.opened = [](Call& call) { call.request_messages(1); };
  to.streaming.got = [](Call& call, std::string_view message) {
    call.release(message.size());
    call.request_messages(1);
  };
  const std::size_t size = 3 << 20;
  std::vector<int32_t> ids;
  for (int i = 0; i < 20; ++i) {
    ids.push_back(to.wire.client.open("/t/S"));
    to.wire.client.send(ids.back(), grpc_message(pattern(size)));
    to.wire.client.send(ids.back(), grpc_message(pattern(size)));
    if (i % 3 != 0) to.wire.client.end(ids.back());
  }
  to.pump();
  std::size_t messages = 0;
  for (const auto& [id, record] : to.streaming.records) messages += record.messages.size();
  CHECK(messages == 2 * ids.size());
  for (const int32_t id : ids) to.wire.client.reset(id);
  to.pump();
  CHECK(to.server.idle());
}

TEST_CASE("resets of the preferred and of others, at any point, leave nothing behind") {
  Budgeted to;
  std::vector<int32_t> ids;
  uint32_t state = 1;
  const auto random = [&](std::size_t below) {
    state = state * 1'664'525 + 1'013'904'223;
    return (state >> 8) % below;
  };
  for (int round = 0; round < 400; ++round) {
    const std::size_t act = random(8);
    if (act < 4 || ids.empty()) {
      ids.push_back(to.wire.client.open("/t/M"));
      const std::string message = grpc_message(pattern(1 + random(3 * kBudget)));
      const bool whole = random(2) == 0;
      to.wire.client.send(ids.back(), whole ? message : message.substr(0, message.size() / 2));
      if (whole) to.wire.client.end(ids.back());
    } else if (act < 6) {
      const std::size_t i = random(ids.size());
      to.wire.client.reset(ids[i]);
      ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(i));
    } else {
      to.handler.hold = act == 6;
      while (act == 7 && to.answered < to.handler.records.size()) {
        if (to.server.calls.find(to.handler.records[to.answered].id) != nullptr) {
          to.answer_one();
        } else {
          ++to.answered;
        }
      }
    }
    to.pump();
  }
  for (const int32_t id : ids) to.wire.client.reset(id);
  to.pump();
  CHECK(to.server.budget.used() == 0);
  to.handler.hold = false;
  // All of its window is back.
  const int32_t last = to.wire.client.call("/t/M", pattern(20 << 20));
  to.pump();
  CHECK((to.wire.client.reply(last).message() == pattern(20 << 20)));
  CHECK(to.server.idle());
}

TEST_CASE("a client that takes no answers has no more than a megabyte's worth of calls begun") {
  ClientOptions closed;
  closed.settings = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 1}};
  closed.auto_window_update = false;
  Budgeted to(closed);
  std::vector<int32_t> ids;
  for (int i = 0; i < 40; ++i) ids.push_back(to.wire.client.call("/t/M", pattern(100'000)));
  to.pump();
  CHECK(to.handler.records.size() == 11);
  CHECK(to.wire.connection->unsent() < (1 << 20) + 100'005);
  // One that waits is cancelled.
  to.wire.client.reset(ids[20]);
  to.pump();
  // In the order in which they came; each answer that is taken lets the next begin.
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (i == 20) continue;
    to.wire.client.credit(ids[i], 200'000);
    to.pump();
    REQUIRE((to.wire.client.reply(ids[i]).message() == pattern(100'000)));
    CHECK(to.wire.connection->unsent() < (1 << 20) + 100'005);
  }
  CHECK(to.handler.records.size() == 39);
  CHECK(to.server.idle());
}

TEST_CASE("streams whose messages rest untaken do not hold requests up") {
  ClientOptions closed;
  closed.settings = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 1}};
  closed.auto_window_update = false;
  Budgeted to(closed);
  to.streaming.opened = [](Call& call) {
    for (int i = 0; i < 3; ++i) StreamingHandler::send(call, pattern(1 << 20));
    call.finish(Status());
  };
  to.wire.client.open("/t/S");
  const int32_t call = to.wire.client.call("/t/M", "x");
  to.pump();
  CHECK(to.wire.connection->unsent() > 3 << 20);
  to.wire.client.credit(call, 100);
  to.pump();
  CHECK(to.wire.client.reply(call).message() == "x");
}

TEST_CASE("the deadline of a call that waits to begin") {
  ClientOptions closed;
  closed.settings = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 1}};
  closed.auto_window_update = false;
  Budgeted to(closed);
  const int32_t first = to.wire.client.call("/t/M", pattern(2 << 20));
  to.pump();
  const int32_t second = to.wire.client.call("/t/M", "x", {{"grpc-timeout", "1S"}});
  to.pump();
  CHECK(to.handler.records.size() == 1);
  to.server.advance(1s);
  to.pump();
  CHECK(to.wire.client.reply(second).status() == 4);
  to.wire.client.credit(first, 4 << 20);
  to.pump();
  CHECK((to.wire.client.reply(first).message() == pattern(2 << 20)));
  CHECK(to.handler.records.size() == 1);
  CHECK(to.handler.cancels == 0);
  CHECK(to.server.idle());
}
