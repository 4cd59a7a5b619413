// Every call is answered exactly once, whatever its client, its model or the control plane does.
#include <doctest/doctest.h>

#include <atomic>
#include <random>
#include <thread>

#include "server/grpc_client.h"

using namespace headrace;
using namespace headrace::testing;
using namespace std::chrono_literals;

namespace {

constexpr int code(StatusCode status) { return static_cast<int>(status); }
const std::string kLive = "/inference.GRPCInferenceService/ServerLive";

void check_ended(Server& server, ModelVersion& version) {
  CHECK(server.stop(60s));
  const ServerCounters counters = server.counters();
  CHECK(counters.calls_started == counters.calls_finished);
  CHECK(counters.calls_active == 0);
  CHECK(counters.connections_open == 0);
  CHECK(version.in_flight() == 0);
}

}  // namespace

TEST_CASE("a storm of cancels: the calls that are left get their own answer") {
  Reaper reaper;
  const auto version = make_version(reaper, identity, {.instances = 2});
  Server server(loopback());
  REQUIRE(server.start().ok());
  server.publish(routes_to(version));
  std::atomic<uint64_t> ok{0};
  std::atomic<uint64_t> sent{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      GrpcClient client(server.port());
      for (int round = 0; round < 25; ++round) {
        std::vector<std::pair<int32_t, int64_t>> kept;
        for (int i = 0; i < 16; ++i) {
          const int64_t value = 1000 * round + i;
          const int32_t id = client.session.call(kInfer, infer_message(value));
          ++sent;
          const unsigned fate = random() % 4;
          if (fate != 0) client.flush();  // else the RST follows in the same write
          if (fate <= 1) {
            client.session.reset(id);
          } else {
            kept.emplace_back(id, value);
          }
        }
        client.flush();
        for (const auto& [id, value] : kept) {
          const test::Reply& reply = client.wait(id);
          CHECK(reply.status() == 0);
          CHECK(reply.header_blocks == 2);
          CHECK(infer_answer(reply).values == std::vector<int64_t>{value, -value});
          if (reply.status() == 0) ++ok;
        }
      }
      client.call(kLive, "");  // all the RSTs have arrived
    });
  }
  for (std::thread& thread : threads) thread.join();
  check_ended(server, *version);
  const ServerCounters counters = server.counters();
  // A stream that is reset in the same write may never be opened.
  CHECK(counters.calls_started <= sent + 4);
  CHECK(by_code(counters, StatusCode::kOk) >= ok + 4);
  CHECK(by_code(counters, StatusCode::kOk) + by_code(counters, StatusCode::kCancelled) ==
        counters.calls_started);
}

TEST_CASE("clients that vanish mid-call leave nothing behind") {
  Reaper reaper;
  Gate gate;
  std::atomic<int> rows{0};
  const auto version = make_version(reaper, [&](const Inputs& in, Outputs& out) {
    gate.pass();
    rows += static_cast<int>(in[0]->tensor.shape[0]);
    return identity(in, out);
  });
  Server server(loopback());
  REQUIRE(server.start().ok());
  server.publish(routes_to(version));
  {
    GrpcClient stays(server.port());
    const int32_t mine = stays.begin(kInfer, infer_message(7));
    gate.wait_for(1);  // the instance is busy: all that follows is queued
    for (int i = 0; i < 20; ++i) {
      GrpcClient leaves(server.port());
      for (int n = 0; n < 5; ++n) leaves.begin(kInfer, infer_message(n));
      leaves.call(kLive, "");  // they have all arrived
      if (i % 2 == 0) leaves.abort_connection();
    }
    // The server has seen the ends when the connections are counted out.
    while (server.counters().connections_open != 1) std::this_thread::yield();
    gate.open();
    CHECK(infer_answer(stays.wait(mine)).values == std::vector<int64_t>{7, -7});
  }
  check_ended(server, *version);
  CHECK(rows == 1);  // what nobody waits for is not executed
  CHECK(by_code(server.counters(), StatusCode::kCancelled) == 100);
}

TEST_CASE("a deadline is told while the model still works, and its answer is dropped") {
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
  const int32_t executing = client.begin(kInfer, infer_message(1), {{"grpc-timeout", "200m"}});
  gate.wait_for(1);
  const int32_t queued = client.begin(kInfer, infer_message(2), {{"grpc-timeout", "100m"}});
  const int32_t patient = client.begin(kInfer, infer_message(3), {{"grpc-timeout", "9000S"}});
  CHECK(client.wait(queued).status() == code(StatusCode::kDeadlineExceeded));
  CHECK(client.wait(executing).status() == code(StatusCode::kDeadlineExceeded));
  gate.open();
  CHECK(infer_answer(client.wait(patient)).values == std::vector<int64_t>{3, -3});
  CHECK(client.session.reply(executing).header_blocks == 1);
  check_ended(server, *version);
  CHECK(gate.arrived() == 2);  // the queued one never cost anything
}

TEST_CASE("what does not fit in the queue is refused at once, the rest served") {
  Reaper reaper;
  Gate gate;
  const auto version = make_version(reaper,
                                    [&](const Inputs& in, Outputs& out) {
                                      gate.pass();
                                      return identity(in, out);
                                    },
                                    {.max_batch_size = 1, .queue_bound = 4});
  Server server(loopback(1));
  REQUIRE(server.start().ok());
  server.publish(routes_to(version));
  GrpcClient client(server.port());
  std::vector<int32_t> calls = {client.begin(kInfer, infer_message(0))};
  gate.wait_for(1);
  for (int i = 1; i < 20; ++i) calls.push_back(client.begin(kInfer, infer_message(i)));
  for (std::size_t i = 5; i < calls.size(); ++i) {
    CHECK(client.wait(calls[i]).status() == code(StatusCode::kUnavailable));
    CHECK(client.session.reply(calls[i]).status_message().find("Exceeds maximum queue size") !=
          std::string::npos);
  }
  gate.open();
  for (int64_t i = 0; i < 5; ++i) {
    CHECK(infer_answer(client.wait(calls[static_cast<std::size_t>(i)])).values ==
          std::vector<int64_t>{i, -i});
  }
  check_ended(server, *version);
  CHECK(version->statistics().failures[static_cast<std::size_t>(FailureReason::kRejected)] == 15);
}

TEST_CASE("a backend that throws fails the requests that made it throw, and only those") {
  Reaper reaper;
  const auto version = make_version(reaper, [](const Inputs& in, Outputs& out) {
    std::vector<int64_t> values(in[0]->tensor.data.size() / sizeof(int64_t));
    std::memcpy(values.data(), in[0]->tensor.data.data(), in[0]->tensor.data.size());
    for (std::size_t i = 0; i < values.size(); i += 2) {
      if (values[i] % 3 == 0) throw std::runtime_error("three");
    }
    return identity(in, out);
  });
  Server server(loopback());
  REQUIRE(server.start().ok());
  server.publish(routes_to(version));
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      GrpcClient client(server.port());
      std::vector<int32_t> calls;
      for (int i = 0; i < 60; ++i) calls.push_back(client.begin(kInfer, infer_message(t * 60 + i)));
      for (int i = 0; i < 60; ++i) {
        const int64_t value = t * 60 + i;
        const test::Reply& reply = client.wait(calls[static_cast<std::size_t>(i)]);
        if (value % 3 == 0) {
          CHECK(reply.status() == code(StatusCode::kInternal));
          CHECK(reply.status_message().find("three") != std::string::npos);
        } else {
          CHECK(infer_answer(reply).values == std::vector<int64_t>{value, -value});
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  check_ended(server, *version);
  CHECK(by_code(server.counters(), StatusCode::kInternal) == 80);
  CHECK(by_code(server.counters(), StatusCode::kOk) == 160);
}

TEST_CASE("routes are swapped under load: no error, each answer from the version it names") {
  Reaper reaper;
  const auto make = [&](int64_t number) {
    return make_version(
        reaper,
        [number](const Inputs& in, Outputs& out) {
          BufferRef values = BufferRef::allocate(in[0]->tensor.data.size());
          for (std::size_t at = 0; at < values.size(); at += sizeof(number)) {
            std::memcpy(values.data() + at, &number, sizeof(number));
          }
          out.push_back(
              {{DType::kInt64, in[0]->tensor.shape, std::as_const(values).span()}, values});
          return Status();
        },
        {.number = number, .instances = 2});
  };
  Server server(loopback());
  REQUIRE(server.start().ok());
  std::shared_ptr<ModelVersion> current = make(1);
  server.publish(routes_to(current, 1));
  std::atomic<bool> done{false};
  std::atomic<uint64_t> answers{0};
  std::atomic<int64_t> newest{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      GrpcClient client(server.port());
      int64_t last = 0;
      while (!done) {
        std::vector<int32_t> calls;
        for (int i = 0; i < 8; ++i) calls.push_back(client.begin(kInfer, infer_message(i)));
        for (const int32_t id : calls) {
          const test::Reply& reply = client.wait(id);
          CHECK(reply.status() == 0);
          const InferAnswer answer = infer_answer(reply);
          const int64_t number = answer.version.empty() ? 0 : std::stoll(answer.version);
          CHECK(answer.values == std::vector<int64_t>{number, number});
          last = std::max(last, number);
          ++answers;
        }
        int64_t seen = newest.load();
        while (seen < last && !newest.compare_exchange_weak(seen, last)) {
        }
      }
    });
  }
  for (int64_t number = 2; number <= 20; ++number) {
    // Each version serves before the next comes.
    while (newest.load() < number - 1) std::this_thread::yield();
    const std::shared_ptr<ModelVersion> next = make(number);
    const std::shared_ptr<ModelVersion> old = std::exchange(current, next);
    server.publish(routes_to(next, number));
    CHECK(old.use_count() == 1);  // ours alone
    CHECK(old->close(Batcher::Close::kDrain));
    CHECK(old->in_flight() == 0);
  }
  done = true;
  for (std::thread& thread : threads) thread.join();
  check_ended(server, *current);
  CHECK(by_code(server.counters(), StatusCode::kOk) == answers.load());
  CHECK(server.counters().calls_finished == answers.load());
}

TEST_CASE("who publishes has the old version alone, whatever the loop was about to submit") {
  class Slow final : public Servable {
   public:
    explicit Slow(std::shared_ptr<ModelVersion> version) : version_(std::move(version)) {}
    void submit(RequestPtr request) override {
      std::this_thread::sleep_for(50ms);  // time enough to be found in use
      version_->submit(std::move(request));
    }
    const ModelSpec& spec() const override { return version_->spec(); }

   private:
    std::shared_ptr<ModelVersion> version_;
  };
  // Holds the loop between a request it has routed and the end of its turn.
  class Holding final : public Handler {
   public:
    explicit Holding(Gate& gate) : gate_(gate) {}
    void on_unary(Call& call, BufferRef) override {
      gate_.pass();
      call.fail({StatusCode::kNotFound, "nothing here"});
    }
    void on_cancel(Call&) override {}

   private:
    Gate& gate_;
  };
  Reaper reaper;
  Gate gate;
  const auto version = make_version(reaper, identity);
  Server server(loopback(1));
  server.add_method(
      "/test/Hold", [&](EventLoop&, CallSet&) { return std::make_unique<Holding>(gate); }, 1024);
  REQUIRE(server.start().ok());
  auto slow = std::make_shared<Slow>(version);
  server.publish(routes_to(slow));
  GrpcClient client(server.port());
  const int32_t infer = client.session.call(kInfer, infer_message(1), {});
  const int32_t hold = client.begin("/test/Hold", "");
  gate.wait_for(1);
  std::thread control([&] {
    server.publish(routes_to(version));
    CHECK(slow.use_count() == 1);
  });
  std::this_thread::sleep_for(50ms);  // until it waits for the loop
  gate.open();
  control.join();
  CHECK(client.wait(hold).status() == code(StatusCode::kNotFound));
  CHECK(infer_answer(client.wait(infer)).values == std::vector<int64_t>{1, -1});
  check_ended(server, *version);
}

TEST_CASE("stop() in the middle of everything answers every call once") {
  for (int round = 0; round < 6; ++round) {
    Reaper reaper;
    const auto version = make_version(reaper, identity, {.instances = 2});
    Server server(loopback());
    REQUIRE(server.start().ok());
    server.publish(routes_to(version));
    std::atomic<uint64_t> ok{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      // Connected here: a thread may start only after the listener is closed.
      threads.emplace_back([&, connection = std::make_unique<GrpcClient>(server.port())] {
        GrpcClient& client = *connection;
        for (;;) {
          std::vector<int32_t> calls;
          for (int i = 0; i < 8; ++i) calls.push_back(client.begin(kInfer, infer_message(i)));
          bool ended = false;
          for (std::size_t i = 0; i < calls.size(); ++i) {
            const test::Reply& reply = client.wait(calls[i]);
            if (reply.status() == 0) {
              CHECK(infer_answer(reply).values.at(0) == static_cast<int64_t>(i));
              ++ok;
            } else {
              // Told so, or the connection ended before the call was taken or its answer came.
              CHECK((reply.status() == code(StatusCode::kUnavailable) || reply.status() == -1));
              ended = true;
            }
          }
          if (ended) return;
        }
      });
    }
    while (ok.load() < 50) std::this_thread::yield();
    server.stop(round % 2 == 0 ? 0s : 60s);
    for (std::thread& thread : threads) thread.join();
    const ServerCounters counters = server.counters();
    CHECK(counters.calls_started == counters.calls_finished);
    CHECK(counters.calls_active == 0);
    CHECK(by_code(counters, StatusCode::kOk) >= ok.load());
    CHECK(version->in_flight() == 0);
  }
}
