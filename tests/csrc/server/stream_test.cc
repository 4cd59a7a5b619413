// Streams through the whole server: sockets, I/O threads, instance threads.
#include <doctest/doctest.h>

#include <atomic>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "server/grpc_client.h"
#include "server/server.h"

using namespace headrace;
using namespace headrace::testing;
using namespace std::chrono_literals;

namespace {

const std::string kStream = "/inference.GRPCInferenceService/ModelStreamInfer";

struct StreamAnswer {
  std::string error;
  std::string id;
};

StreamAnswer stream_answer(const std::string& text) {
  StreamAnswer answer;
  protozero::pbf_reader reader(text);
  while (reader.next()) {
    if (reader.tag() == 1) {
      answer.error = reader.get_string();
      continue;
    }
    protozero::pbf_reader response(reader.get_message());
    while (response.next(3)) answer.id = response.get_string();
  }
  return answer;
}

// Sends as long as the client takes it.
class Fountain final : public Handler {
 public:
  void on_unary(Call& call, BufferRef) override { on_writable(call); }
  void on_writable(Call& call) override {
    while (call.writable()) test::StreamingHandler::send(call, text_);
  }
  void on_cancel(Call&) override {}

 private:
  const std::string text_ = test::pattern(20000);
};

}  // namespace

TEST_CASE("streams of several clients: every request is answered once, in order") {
  Reaper reaper;
  // Batches that end at random times, some with an error, on two threads.
  std::atomic<unsigned> batches{0};
  const auto version = make_version(reaper,
                                    [&](const Inputs& inputs, Outputs& outputs) -> Status {
                                      if (++batches % 7 == 0)
                                        return Status::unavailable("now and then");
                                      return identity(inputs, outputs);
                                    },
                                    {.instances = 2});
  Server server(loopback());
  REQUIRE(server.start().ok());
  server.publish(routes_to(version));
  std::atomic<int> errors{0};
  std::vector<std::thread> clients;
  for (unsigned n = 0; n < 3; ++n) {
    clients.emplace_back([&, n] {
      std::mt19937 random(n);
      for (int round = 0; round < 8; ++round) {
        GrpcClient client(server.port());
        const bool leaves = round % 4 == 3;
        std::vector<int32_t> streams;
        constexpr int kRequests = 400;  // more than a stream may have in flight
        for (int i = 0; i < 3; ++i) streams.push_back(client.session.open(kStream));
        for (int i = 0; i < kRequests; ++i) {
          for (const int32_t stream : streams) {
            client.session.send(stream, test::grpc_message(infer_message(i)));
          }
          if (random() % 20 == 0) client.flush();
        }
        if (leaves) {
          client.flush();
          if (n == 1) client.abort_connection();
          continue;
        }
        for (const int32_t stream : streams) client.session.end(stream);
        for (const int32_t stream : streams) {
          const test::Reply& reply = client.wait(stream);
          if (reply.status() != 0) std::abort();
          const auto messages = reply.messages();
          if (messages.size() != kRequests) std::abort();
          for (int i = 0; i < kRequests; ++i) {
            const StreamAnswer answer = stream_answer(messages[static_cast<std::size_t>(i)].text);
            if (answer.id != std::to_string(i)) std::abort();
            errors += !answer.error.empty();
          }
        }
      }
    });
  }
  for (std::thread& client : clients) client.join();
  CHECK(errors > 0);
  CHECK(server.stop(60s));
  CHECK(version->in_flight() == 0);
  const ServerCounters counters = server.counters();
  CHECK(counters.calls_started == counters.calls_finished);
  CHECK(counters.calls_active == 0);
}

TEST_CASE("a stream without end does not keep its I/O thread from others") {
  Server server(loopback(1));
  server.add_method(
      "/test.Fountain/Run", [](EventLoop&, CallSet&) { return std::make_unique<Fountain>(); }, 1000,
      MethodKind::kServerStreaming);
  REQUIRE(server.start().ok());
  std::atomic<bool> done{false};
  std::atomic<std::size_t> received{0};
  std::thread reader([&] {
    GrpcClient client(server.port());
    const int32_t stream = client.begin("/test.Fountain/Run", "");
    while (!done && client.receive()) received = client.session.reply(stream).body.size();
  });
  GrpcClient other(server.port());
  for (int i = 0; i < 20; ++i) {
    CHECK(other.call("/inference.GRPCInferenceService/ServerLive", "").status() == 0);
  }
  while (received < 2 << 20) std::this_thread::yield();
  done = true;
  reader.join();
  CHECK_FALSE(server.counters().calls_started < 21);
  server.stop(Nanoseconds(0));
}
