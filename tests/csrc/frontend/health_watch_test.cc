// Health/Watch over the in-memory wire.
#include "frontend/health_watch.h"

#include <doctest/doctest.h>

#include <memory>
#include <string>

#include "frontend/messages.h"
#include "wire_client.h"

using namespace headrace;
using namespace headrace::testing;
using test::Reply;

namespace {

const std::string kPath = "/grpc.health.v1.Health/Watch";

struct Service {
  explicit Service(const Http2Options& options = {}, const test::ClientOptions& client = {})
      : watch(server.calls, health), wire(server.calls, options, client) {
    server.methods.add(kPath,
                       {&watch, HealthWatch::kMaxRequestBytes, MethodKind::kServerStreaming});
  }
  ~Service() {
    wire.lose();
    CHECK(watch.watchers() == 0);
    CHECK(server.idle());
  }
  void set(const std::string& service, bool serving) {
    auto table = std::make_shared<HealthTable>(*health.load());
    (*table)[service] = serving;
    health.publish(std::move(table));
    watch.refresh();
    wire.pump();
  }
  int32_t start(const std::string& service) {
    const int32_t id = wire.client.call(kPath, service.empty() ? "" : field(1, service));
    wire.pump();
    return id;
  }
  // What came so far, a digit a message.
  std::string statuses(int32_t id) {
    std::string result;
    for (const Reply::Message& message : wire.client.reply(id).messages()) {
      CHECK(message.text.size() == 2);
      CHECK(message.text.at(0) == 8);
      result += static_cast<char>('0' + message.text.at(1));
    }
    return result;
  }
  const Reply& reply(int32_t id) { return wire.client.reply(id); }

  Snapshot<HealthTable> health;
  test::WireServer server;
  HealthWatch watch;
  test::Wire wire;
};

}  // namespace

TEST_CASE("a watcher is told the status at once, then each change, once") {
  Service service;
  service.set("", true);
  const int32_t all = service.start("");
  const int32_t model = service.start("m");
  CHECK(service.statuses(all) == "1");
  CHECK(service.statuses(model) == "3");
  service.set("m", false);
  CHECK(service.statuses(model) == "32");
  service.set("m", false);
  service.set("other", true);
  service.watch.refresh();
  CHECK(service.statuses(model) == "32");
  service.set("m", true);
  service.set("", false);
  CHECK(service.statuses(model) == "321");
  CHECK(service.statuses(all) == "12");
  CHECK_FALSE(service.reply(all).ended);
  CHECK_FALSE(service.reply(model).ended);
}

TEST_CASE("a watcher may leave at any time") {
  Service service;
  const int32_t first = service.start("a");
  const int32_t second = service.start("a");
  service.wire.client.reset(first);
  service.wire.pump();
  CHECK(service.watch.watchers() == 1);
  service.set("a", true);
  CHECK(service.statuses(second) == "31");
  service.wire.client.reset(second);
  service.set("a", false);
}

TEST_CASE("a watch has a deadline like any call") {
  Service service;
  const int32_t id = service.wire.client.call(kPath, "", {{"grpc-timeout", "2S"}});
  service.wire.pump();
  service.server.advance(std::chrono::seconds(3));
  service.wire.pump();
  CHECK(service.reply(id).status() == static_cast<int>(StatusCode::kDeadlineExceeded));
  CHECK(service.watch.watchers() == 0);
}

TEST_CASE("a client that does not read is told what holds when it reads again") {
  Http2Options options;
  options.max_stream_queued_bytes = 64;
  test::ClientOptions client;
  client.auto_window_update = false;
  client.settings = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 7}};
  Service service(options, client);
  const int32_t id = service.start("m");
  CHECK(service.statuses(id) == "3");
  bool serving = false;
  for (int i = 0; i < 1001; ++i) service.set("m", serving = !serving);
  CHECK(serving);
  CHECK(service.statuses(id) == "3");
  service.wire.client.credit(id, 1 << 20);
  service.wire.pump();
  const std::string statuses = service.statuses(id);
  CHECK(statuses.size() < 20);
  CHECK(statuses.back() == '1');
  service.set("m", false);
  CHECK(service.statuses(id) == statuses + "2");
}

TEST_CASE("a server that stops ends its watches, and those that come late") {
  Service service;
  const int32_t id = service.start("");
  service.watch.end_all(Status::unavailable("stops"));
  service.wire.pump();
  CHECK(service.reply(id).status() == static_cast<int>(StatusCode::kUnavailable));
  const int32_t late = service.start("");
  CHECK(service.statuses(late) == "3");
  CHECK(service.reply(late).status() == static_cast<int>(StatusCode::kUnavailable));
}

TEST_CASE("what is no HealthCheckRequest is refused") {
  Service service;
  const auto status_of = [&](const std::string& message) {
    const int32_t id = service.wire.client.call(kPath, message);
    service.wire.pump();
    return service.reply(id).status();
  };
  CHECK(status_of("\x0a\x05m") == static_cast<int>(StatusCode::kInternal));
  CHECK(status_of(field(1, "\xff")) == static_cast<int>(StatusCode::kInternal));
  CHECK(status_of(field(1, std::string(5000, 'a'))) ==
        static_cast<int>(StatusCode::kResourceExhausted));
}
