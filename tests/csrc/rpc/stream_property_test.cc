// Random schedules of streams: messages arrive in order, exactly once, however they are cut and whoever
// is slow; every call ends once; what is held keeps to its bounds. Seeds are fixed.
#include <doctest/doctest.h>

#include <map>
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

const std::string kPath = "/test.Any/Stream";
constexpr std::size_t kWindow = 30000;
constexpr std::size_t kQueued = 20000;
constexpr std::size_t kMessage = 12000;

// One stream as both ends see it.
struct Ledger {
  std::vector<std::string> sent;      // by the client, whole messages
  std::string unsent;                 // the rest of the bytes of the last
  std::vector<std::string> received;  // by the handler
  std::vector<std::string> answered;  // by the handler
  bool client_ended = false;
  bool client_left = false;
  bool half_closed = false;
  int endings = 0;
};

class LedgerHandler final : public Handler {
 public:
  explicit LedgerHandler(std::map<std::string, Ledger>& ledgers) : ledgers_(ledgers) {}
  void on_open(Call& call) override {
    Ledger& ledger = ledgers_.at(call.metadata().at(0).second);
    by_id[call.id()] = &ledger;
  }
  void on_message(Call& call, BufferRef message) override {
    Ledger& ledger = *by_id.at(call.id());
    REQUIRE_FALSE(ledger.half_closed);
    REQUIRE(ledger.endings == 0);
    ledger.received.emplace_back(message.view());
    call.release(message.size());
  }
  void on_half_close(Call& call) override {
    Ledger& ledger = *by_id.at(call.id());
    REQUIRE_FALSE(ledger.half_closed);
    ledger.half_closed = true;
  }
  void on_cancel(Call& call) override { ++by_id.at(call.id())->endings; }
  std::map<uint64_t, Ledger*> by_id;

 private:
  std::map<std::string, Ledger>& ledgers_;
};

}  // namespace

TEST_CASE("random schedules of streams") {
  std::size_t delivered = 0;
  std::size_t finished = 0;
  for (unsigned round = 0; round < 150; ++round) {
    CAPTURE(round);
    std::mt19937 random(round);
    const auto one_in = [&](unsigned n) { return random() % n == 0; };
    WireServer server;
    std::map<std::string, Ledger> ledgers;
    LedgerHandler handler(ledgers);
    server.methods.add(kPath, {&handler, kMessage, MethodKind::kBidiStreaming});
    if (round % 2 == 0) server.calls.set_compression(Encoding::kGzip);
    Http2Options options;
    options.stream_window_bytes = kWindow;
    options.connection_window_bytes = 100000;
    options.max_stream_queued_bytes = kQueued;
    options.max_connection_queued_bytes = 3 * kQueued;
    options.max_unsent_bytes = 5000;
    ClientOptions client_options;
    if (round % 3 == 0) {
      client_options.settings = {
          {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, static_cast<uint32_t>(random() % 5000)}};
    }
    Wire wire(server.calls, options, client_options);
    if (round % 4 == 0) wire.feed_at_once = 1 + random() % 50;
    if (round % 5 == 0) wire.write_at_once = 1 + random() % 50;
    std::map<int32_t, Ledger*> by_stream;
    const auto any = [&](auto& map) {
      return std::next(map.begin(), static_cast<std::ptrdiff_t>(random() % map.size()));
    };
    for (int step = 0; step < 400; ++step) {
      switch (random() % 9) {
        case 0:
          if (by_stream.size() < 6) {
            const std::string name = std::to_string(ledgers.size());
            Ledger* ledger = &ledgers[name];
            const int32_t id = wire.client.open(
                kPath,
                {{"name", name}, {"grpc-encoding", "gzip"}, {"grpc-accept-encoding", "gzip"}});
            by_stream[id] = ledger;
          }
          break;
        case 1:
        case 2:
        case 3:
          if (!by_stream.empty()) {  // a part of a message, or several
            const auto& [id, ledger] = *any(by_stream);
            if (ledger->client_ended || ledger->client_left) break;
            if (ledger->unsent.empty()) {
              for (unsigned n = 1 + random() % 4; n != 0; --n) {
                const std::string text =
                    pattern(one_in(4) ? random() % kMessage : random() % 50, random());
                ledger->sent.push_back(text);
                ledger->unsent += one_in(3) ? grpc_message(compress_text(Encoding::kGzip, text), 1)
                                            : grpc_message(text);
              }
            }
            const std::size_t n =
                one_in(2) ? ledger->unsent.size() : 1 + random() % ledger->unsent.size();
            wire.client.send(id, ledger->unsent.substr(0, n), one_in(3) ? random() % 100 : 0);
            ledger->unsent.erase(0, n);
          }
          break;
        case 4:
          if (!by_stream.empty() && one_in(4)) {
            const auto& [id, ledger] = *any(by_stream);
            if (ledger->client_ended || ledger->client_left || !ledger->unsent.empty()) break;
            ledger->client_ended = true;
            wire.client.end(id);
          }
          break;
        case 5:
          if (!by_stream.empty() && one_in(15)) {
            const auto& [id, ledger] = *any(by_stream);
            ledger->client_left = true;
            wire.client.reset(id);
          }
          break;
        case 6:
          if (!handler.by_id.empty()) {
            if (Call* call = server.calls.find(any(handler.by_id)->first)) {
              call->request_messages(1 + random() % 3);
            }
          }
          break;
        case 7:
          if (!handler.by_id.empty()) {
            const auto [id, ledger] = *any(handler.by_id);
            Call* call = server.calls.find(id);
            while (call != nullptr && call->writable()) {
              const std::string text = std::string(random() % 100, 'x') + pattern(3000, random());
              ledger->answered.push_back(text);
              REQUIRE(StreamingHandler::send(*call, text));
              if (one_in(4)) break;
            }
            if (call != nullptr && one_in(10)) {
              call->finish(Status());
              ++ledger->endings;
              ++finished;
            }
          }
          break;
        default:
          wire.pump();
          for (const auto& [id, ledger] : handler.by_id) {
            // In order, exactly once: what came is the beginning of what was sent.
            REQUIRE(ledger->received.size() <= ledger->sent.size());
          }
      }
      REQUIRE(server.budget.used() <= by_stream.size() * (kWindow + 2 * kMessage));
      REQUIRE(wire.connection->unsent() <= 3 * kQueued + 4000);
    }
    // Everything that is left is read to the end.
    for (const auto& [id, ledger] : by_stream) {
      if (!ledger->client_ended && !ledger->client_left) {
        wire.client.send(id, ledger->unsent);
        wire.client.end(id);
        ledger->client_ended = true;
      }
    }
    wire.pump();
    for (const auto& [id, ledger] : handler.by_id) {
      for (int i = 0; i < 3; ++i) {
        if (Call* call = server.calls.find(id)) call->request_messages(1000);
        wire.pump();
      }
      if (Call* call = server.calls.find(id)) {
        REQUIRE(ledger->half_closed);
        REQUIRE((ledger->received == ledger->sent));
        call->finish(Status());
        ++ledger->endings;
        ++finished;
        delivered += ledger->received.size();
      }
      wire.pump();
    }
    wire.pump();
    for (const auto& [stream, ledger] : by_stream) {
      const Reply& reply = wire.client.reply(stream);
      REQUIRE(reply.closed);
      for (std::size_t i = 0; i < ledger->received.size(); ++i) {
        REQUIRE((ledger->received[i] == ledger->sent.at(i)));
      }
      const auto messages = reply.messages();
      if (!ledger->client_left) {
        REQUIRE(messages.size() == ledger->answered.size());
        REQUIRE(reply.status() == 0);
      }
      for (std::size_t i = 0; i < messages.size(); ++i) {
        std::string text = messages[i].text;
        if (messages[i].flag == 1) {
          const Result<BufferRef> out = inflate_message(Encoding::kGzip, bytes_of(text), 1 << 20,
                                                        [](std::size_t) { return true; });
          REQUIRE(out);
          text = std::string(out->view());
        }
        REQUIRE((text == ledger->answered.at(i)));
      }
    }
    for (const auto& [id, ledger] : handler.by_id) REQUIRE(ledger->endings == 1);
    REQUIRE(server.idle());
    REQUIRE(wire.connection->unsent() == 0);
  }
  CHECK(delivered > 2000);
  CHECK(finished > 300);
}
