#include "server/server.h"

#include <doctest/doctest.h>

#include <atomic>
#include <future>
#include <thread>

#include "server/grpc_client.h"

using namespace headrace;
using namespace headrace::testing;
using namespace std::chrono_literals;

namespace {

constexpr int code(StatusCode status) { return static_cast<int>(status); }

// A Servable that says on which thread it ended.
class Watched final : public Servable {
 public:
  explicit Watched(std::atomic<std::thread::id>& ended_on) : ended_on_(ended_on) {}
  ~Watched() override { ended_on_ = std::this_thread::get_id(); }
  void submit(RequestPtr request) override { answer(std::move(request), Status::aborted()); }
  const ModelSpec& spec() const override { return spec_; }

 private:
  struct Status : headrace::Status {
    static headrace::Status aborted() { return {StatusCode::kAborted, "watched"}; }
  };
  std::atomic<std::thread::id>& ended_on_;
  ModelSpec spec_;
};

const std::string kService = "/inference.GRPCInferenceService/";
const std::string kTrue("\x08\x01", 2);

void check_accounts(const ServerCounters& counters) {
  CHECK(counters.calls_started == counters.calls_finished);
  CHECK(counters.calls_active == 0);
  uint64_t by_codes = 0;
  for (const uint64_t n : counters.calls_by_code) by_codes += n;
  CHECK(by_codes == counters.calls_finished);
}

}  // namespace

TEST_CASE("the probes are answered in C++") {
  Reaper reaper;
  const auto version = make_version(reaper, identity);
  Server server(loopback());
  REQUIRE(server.start().ok());
  GrpcClient client(server.port());

  CHECK(client.call(kService + "ServerLive", "").message() == kTrue);
  CHECK(client.call(kService + "ServerReady", "").message() == "");  // false is no field
  server.set_ready(true);
  CHECK(client.call(kService + "ServerReady", "").message() == kTrue);

  const std::string ready = kService + "ModelReady";
  CHECK(client.call(ready, field(1, "m")).message() == "");  // unknown: OK, false
  server.publish(routes_to(version, 3));
  CHECK(client.call(ready, field(1, "m")).message() == kTrue);
  CHECK(client.call(ready, field(1, "m") + field(2, "3")).message() == kTrue);
  CHECK(client.call(ready, field(1, "m") + field(2, "4")).message() == "");
  CHECK(client.call(ready, field(1, "other")).message() == "");
  const test::Reply& malformed = client.call(ready, field(1, "m") + field(2, "x"));
  CHECK(malformed.status() == code(StatusCode::kInvalidArgument));
  CHECK(client.call(ready, "\xff").status() == code(StatusCode::kInternal));
  CHECK(client.call(ready, field(1, "\xff")).status() == code(StatusCode::kInternal));

  const std::string health = "/grpc.health.v1.Health/Check";
  CHECK(client.call(health, "").status() == code(StatusCode::kNotFound));
  server.set_health("", true);
  server.set_health("m", false);
  CHECK(client.call(health, "").message() == kTrue);
  CHECK(client.call(health, field(1, "m")).message() == std::string("\x08\x02", 2));
  CHECK(client.call(health, field(1, "n")).status() == code(StatusCode::kNotFound));
  server.set_health("", false);
  CHECK(client.call(health, "").message() == std::string("\x08\x02", 2));
  CHECK(client.call(kService + "Nope", "").status() == code(StatusCode::kUnimplemented));
  CHECK(server.stop(10s));
  check_accounts(server.counters());
}

TEST_CASE("a request's answer, and what is told first of several errors") {
  Reaper reaper;
  const auto version = make_version(reaper, identity, {.number = 7});
  Server server(loopback());
  REQUIRE(server.start().ok());
  server.publish(routes_to(version, 7));
  GrpcClient client(server.port());
  const InferAnswer answer = infer_answer(client.call(kInfer, infer_message(42)));
  CHECK(answer.version == "7");
  CHECK(answer.id == "42");
  CHECK(answer.values == std::vector<int64_t>{42, -42});

  const auto refused = [&](const std::string& bytes, StatusCode status, const std::string& text) {
    const test::Reply& reply = client.call(kInfer, bytes);
    CHECK(reply.status() == code(status));
    CHECK(reply.status_message() == text);
  };
  const std::string bad = parameter("priority", string_value("x"));
  refused("\xff", StatusCode::kInternal, "Exception deserializing request!");
  refused(infer_message(1, "", "n") + "\xff", StatusCode::kInternal,
          "Exception deserializing request!");
  // As in Triton, the model before the request's own faults.
  refused(infer_message(1, "", "n") + bad, StatusCode::kNotFound,
          "Request for unknown model: 'n' is not found");
  refused(infer_message(1, "x") + bad, StatusCode::kInvalidArgument,
          "failed to get model version from specified version string 'x' (details: stol), version "
          "should be an integral value > 0");
  refused(infer_message(1, "8"), StatusCode::kNotFound,
          "Request for unknown model: 'm' version 8 is not found");
  refused(infer_message(1) + bad, StatusCode::kInvalidArgument,
          "invalid value type for 'priority' parameter, expected int64_param or uint64_param.");
  CHECK(server.stop(10s));
  check_accounts(server.counters());
  CHECK(version->in_flight() == 0);
}

TEST_CASE("a server starts once and may end without having started") {
  {
    Server never(loopback());
    CHECK(never.stop(0s));
    CHECK(never.start().code() == StatusCode::kFailedPrecondition);
  }
  Server first(loopback());
  REQUIRE(first.start().ok());
  CHECK(first.start().code() == StatusCode::kFailedPrecondition);
  ServerOptions taken = loopback();
  taken.port = first.port();
  Server second(taken);
  const Status status = second.start();
  CHECK(status.code() == StatusCode::kUnavailable);
  CHECK(status.message().find("127.0.0.1:" + std::to_string(first.port())) != std::string::npos);
  CHECK(second.start().code() == StatusCode::kFailedPrecondition);
  CHECK(second.stop(0s));
  CHECK(GrpcClient(first.port()).call(kService + "ServerLive", "").message() == kTrue);
  CHECK(first.stop(1s));
  CHECK(first.stop(1s));
  // Nothing of these keeps or breaks anything any more.
  first.publish(std::make_shared<RouteTable>());
  first.set_ready(true);
  first.set_health("", true);
  CHECK_THROWS(GrpcClient(first.port()).call(kService + "ServerLive", ""));
}

TEST_CASE("publish() returns when nobody uses the old routes, and ends them on its own thread") {
  Reaper reaper;
  const auto version = make_version(reaper, identity);
  Server server(loopback(3));
  REQUIRE(server.start().ok());
  std::vector<std::unique_ptr<GrpcClient>> clients;
  for (int i = 0; i < 6; ++i) clients.push_back(std::make_unique<GrpcClient>(server.port()));
  for (int round = 0; round < 20; ++round) {
    std::atomic<std::thread::id> ended_on;
    std::weak_ptr<Servable> weak;
    {
      const auto watched = std::make_shared<Watched>(ended_on);
      weak = watched;
      server.publish(routes_to(watched));
    }
    // Every loop has looked at it.
    for (const auto& client : clients) {
      CHECK(client->call(kInfer, infer_message(1)).status() == code(StatusCode::kAborted));
    }
    CHECK_FALSE(weak.expired());
    server.publish(routes_to(version));
    CHECK(weak.expired());
    CHECK(ended_on.load() == std::this_thread::get_id());
  }
  CHECK(server.stop(10s));
}

TEST_CASE("stop() lets go of the routes") {
  std::atomic<std::thread::id> ended_on;
  std::weak_ptr<Servable> weak;
  Server server(loopback());
  REQUIRE(server.start().ok());
  {
    const auto watched = std::make_shared<Watched>(ended_on);
    weak = watched;
    server.publish(routes_to(watched));
  }
  GrpcClient client(server.port());
  client.call(kInfer, infer_message(1));
  CHECK(server.stop(10s));
  CHECK(weak.expired());
}

TEST_CASE("stop() with time lets running calls finish") {
  Reaper reaper;
  Gate gate;
  const auto version = make_version(reaper, [&](const Inputs& in, Outputs& out) {
    gate.pass();
    return identity(in, out);
  });
  Server server(loopback());
  REQUIRE(server.start().ok());
  server.publish(routes_to(version));
  GrpcClient client(server.port());
  const int32_t first = client.begin(kInfer, infer_message(1));
  gate.wait_for(1);
  const int32_t queued = client.begin(kInfer, infer_message(2));
  auto stopped = std::async(std::launch::async, [&] { return server.stop(600s); });
  while (client.session.goaways.empty()) REQUIRE(client.receive());
  gate.open();
  CHECK(infer_answer(client.wait(first)).values == std::vector<int64_t>{1, -1});
  CHECK(infer_answer(client.wait(queued)).values == std::vector<int64_t>{2, -2});
  CHECK(stopped.get());
  check_accounts(server.counters());
  CHECK(by_code(server.counters(), StatusCode::kOk) == 2);
  CHECK(version->in_flight() == 0);
}

TEST_CASE("stop() tells health's watchers first, and does not wait for them") {
  Server server(loopback());
  REQUIRE(server.start().ok());
  server.set_health("", true);
  server.set_health("m", false);
  GrpcClient client(server.port());
  const std::string watch = "/grpc.health.v1.Health/Watch";
  const int32_t all = client.begin(watch, "");
  const int32_t model = client.begin(watch, testing::field(1, "m"));
  const auto told = [&](int32_t id) {
    std::string statuses;
    for (const auto& message : client.session.reply(id).messages()) {
      statuses += static_cast<char>('0' + message.text.at(1));
    }
    return statuses;
  };
  const auto hear = [&](int32_t id, const std::string& statuses) {
    while (told(id) != statuses && client.receive()) {
    }
    CHECK(told(id) == statuses);
  };
  hear(all, "1");
  hear(model, "2");
  server.set_health("m", true);
  hear(model, "21");
  auto stopped = std::async(std::launch::async, [&] { return server.stop(600s); });
  while (client.session.goaways.empty()) REQUIRE(client.receive());
  CHECK(told(all) == "12");
  CHECK(told(model) == "212");
  CHECK(client.wait(all).status() == code(StatusCode::kUnavailable));
  CHECK(client.wait(model).status() == code(StatusCode::kUnavailable));
  CHECK(stopped.get());
  check_accounts(server.counters());
}

TEST_CASE("stop() without time ends running calls with UNAVAILABLE, and nobody hangs") {
  Reaper reaper;
  Gate gate;
  const auto version = make_version(reaper, [&](const Inputs& in, Outputs& out) {
    gate.pass();
    return identity(in, out);
  });
  Server server(loopback());
  REQUIRE(server.start().ok());
  server.publish(routes_to(version));
  GrpcClient client(server.port());
  std::vector<int32_t> calls = {client.begin(kInfer, infer_message(1))};
  gate.wait_for(1);
  for (int i = 2; i < 10; ++i) calls.push_back(client.begin(kInfer, infer_message(i)));
  // All have arrived: a connection's calls come in order.
  client.call(kService + "ServerLive", "");
  auto stopped = std::async(std::launch::async, [&] { return server.stop(0s); });
  for (const int32_t id : calls) {
    const test::Reply& reply = client.wait(id);
    CHECK(reply.status() == code(StatusCode::kUnavailable));
    CHECK(reply.status_message() ==
          "GRPC server is shutting down and has stopped accepting new requests.");
  }
  gate.open();
  CHECK_FALSE(stopped.get());
  check_accounts(server.counters());
  version->close(Batcher::Close::kDrain);
  CHECK(gate.arrived() == 1);  // what was queued was cancelled before it cost anything
  CHECK(version->in_flight() == 0);
}

TEST_CASE("a model that never returns does not hold up stop() for ever") {
  Reaper reaper;
  Gate gate;
  const auto version = make_version(reaper, [&](const Inputs& in, Outputs& out) {
    gate.pass();
    return identity(in, out);
  });
  auto server = std::make_unique<Server>(loopback());
  REQUIRE(server->start().ok());
  server->publish(routes_to(version));
  {
    GrpcClient client(server->port());
    client.begin(kInfer, infer_message(1));
    gate.wait_for(1);
    CHECK_FALSE(server->stop(0s));  // five seconds' patience
    server->publish(routes_to(version));
    server->set_health("", true);
    check_accounts(server->counters());
  }
  gate.open();
  version->close(Batcher::Close::kDrain);
  server.reset();
}

TEST_CASE("connections over the limit are refused, the others served") {
  ServerOptions options = loopback();
  options.limits.max_connections = 3;
  Server server(options);
  REQUIRE(server.start().ok());
  std::vector<std::unique_ptr<GrpcClient>> clients;
  for (int i = 0; i < 3; ++i) {
    clients.push_back(std::make_unique<GrpcClient>(server.port()));
    CHECK(clients.back()->call(kService + "ServerLive", "").message() == kTrue);
  }
  GrpcClient fourth(server.port());
  CHECK(fourth.call(kService + "ServerLive", "").status() == -1);  // closed without a word
  CHECK(server.counters().connections_refused == 1);
  CHECK(server.counters().connections_open == 3);
  for (const auto& client : clients) {
    CHECK(client->call(kService + "ServerLive", "").message() == kTrue);
  }
  CHECK(server.stop(1s));
  CHECK(server.counters().connections_open == 0);
  CHECK(server.counters().connections_total == 3);
}

TEST_CASE("counters may be read while the server stops") {
  Server server(loopback());
  REQUIRE(server.start().ok());
  GrpcClient client(server.port());
  client.call(kService + "ServerLive", "");
  std::atomic<bool> done{false};
  std::thread reader([&] {
    while (!done) CHECK(server.counters().calls_started == 1);
  });
  CHECK(server.stop(0s));
  done = true;
  reader.join();
  CHECK(server.counters().bytes_received > 0);
}
