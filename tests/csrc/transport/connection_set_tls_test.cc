// Connections with TLS over real sockets.
#include <doctest/doctest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "certificates.h"
#include "socket_rig.h"
#include "tls_client.h"
#include "transport/connection_set.h"

using namespace headrace;
using namespace headrace::test;

namespace {

std::shared_ptr<const TlsContext> make_context() {
  static const Certificate certificate({.name = "server"});
  TlsOptions options;
  options.certificate_chain.pem = certificate.certificate();
  options.private_key.pem = certificate.key();
  Result<std::shared_ptr<const TlsContext>> context = TlsContext::make(options);
  REQUIRE(context);
  return std::move(*context);
}

uint64_t handshakes(Rig& rig, TlsResult result) {
  return rig.set->counters().tls_handshakes[static_cast<std::size_t>(result)].read();
}

// A blocking HTTP/2 client over TLS.
class TlsSocketClient {
 public:
  explicit TlsSocketClient(int fd, const ClientOptions& options = {},
                           const TlsClientOptions& tls_options = {})
      : client(options), tls(tls_options), raw_(fd) {}

  // Reads and answers until `done`. False: the server closed, or nothing came for a minute.
  bool exchange(const std::function<bool()>& done) {
    const bool met = raw_.exchange_raw(
        [&] {
          if (tls.open()) tls.write(client.output());
          raw_.send_raw(tls.take());
          return done();
        },
        [&](const std::string& bytes) {
          tls.feed(bytes);
          const std::string plain = std::move(tls.received);
          tls.received.clear();
          if (!plain.empty()) last_plain = plain;
          return client.input(plain);
        });
    return met;
  }
  bool finish(int32_t id) {
    return exchange([&] { return client.reply(id).ended; });
  }
  SocketClient& raw() { return raw_; }

  TestClient client;
  TlsClient tls;
  std::string last_plain;

 private:
  SocketClient raw_;
};

}  // namespace

TEST_CASE("calls over TLS, small and large, beside plain ones") {
  Rig rig;
  const auto context = make_context();
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    TlsClientOptions options;
    options.max_version = version;
    TlsSocketClient sealed(rig.connect(context), {}, options);
    SocketClient plain(rig.connect());
    for (const std::size_t size :
         {std::size_t{0}, std::size_t{5}, std::size_t{100000}, std::size_t{5} << 20}) {
      const std::string text = pattern(size);
      const int32_t id = sealed.client.call(kPath, text);
      REQUIRE(sealed.finish(id));
      CHECK(sealed.client.reply(id).status() == 0);
      CHECK((sealed.client.reply(id).message() == text));
      REQUIRE(plain.finish(plain.client.call(kPath, "x")));
    }
  }
  CHECK(handshakes(rig, TlsResult::kOk) == 2);
}

TEST_CASE("large answers through small socket buffers, many at once") {
  Rig rig;
  const auto context = make_context();
  ClientOptions options;
  options.settings = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 1 << 30}};
  TlsSocketClient client(rig.connect(context, 4096), options);
  rig.handler.hold = true;
  std::vector<int32_t> ids;
  for (int i = 0; i < 8; ++i) ids.push_back(client.client.call(kPath, "x"));
  REQUIRE(client.exchange([&] { return client.tls.open(); }));
  REQUIRE(client.exchange([&] { return client.client.settings_acks > 0; }));
  REQUIRE(rig.until([&] { return rig.handler.records.size() == 8; }));
  const std::string text = pattern(700000);
  rig.on_loop([&] {
    for (const ScriptedHandler::Record& record : rig.handler.records) {
      ScriptedHandler::answer(*rig.calls.find(record.id), text);
    }
  });
  for (const int32_t id : ids) {
    REQUIRE(client.finish(id));
    CHECK((client.client.reply(id).message() == text));
  }
}

TEST_CASE("a TLS client that does not read holds nobody else up") {
  Rig rig;
  const auto context = make_context();
  ClientOptions options;
  options.settings = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 1 << 30}};
  TlsSocketClient stuck(rig.connect(context), options);
  const int32_t first = stuck.client.call(kPath, std::string(4 << 20, 'a'));
  REQUIRE(stuck.exchange([&] { return stuck.raw().received > 100000; }));
  TlsSocketClient other(rig.connect(context));
  for (int i = 0; i < 20; ++i) REQUIRE(other.finish(other.client.call(kPath, "y")));
  REQUIRE(stuck.finish(first));
  CHECK(stuck.client.reply(first).message()->size() == 4 << 20);
}

TEST_CASE("the connection ends with close_notify, and a client's ends the connection") {
  Rig rig;
  const auto context = make_context();
  TlsSocketClient stays(rig.connect(context));
  REQUIRE(stays.finish(stays.client.call(kPath, "x")));
  TlsSocketClient leaves(rig.connect(context));
  REQUIRE(leaves.finish(leaves.client.call(kPath, "x")));
  leaves.tls.close();
  CHECK_FALSE(leaves.exchange([] { return false; }));
  CHECK(leaves.tls.closed_by_server());
  CHECK(rig.until([&] { return rig.open_connections() == 1; }));
  rig.on_loop([&] { rig.set->begin_shutdown(); });
  CHECK(stays.exchange([&] { return stays.client.goaways.size() == 1; }));
  rig.on_loop([&] { rig.set->finish_shutdown(); });
  CHECK_FALSE(stays.exchange([] { return false; }));
  // nghttp2's client looks at nothing after a first GOAWAY that leaves it no streams.
  REQUIRE(stays.last_plain.size() == 17);
  CHECK(stays.last_plain[3] == NGHTTP2_GOAWAY);
  CHECK(stays.tls.closed_by_server());
  CHECK(rig.until([&] { return rig.set->empty(); }));
}

TEST_CASE("a refused handshake is told why, counted, and closed") {
  Rig rig;
  const auto context = make_context();
  TlsClientOptions options;
  options.alpn = "http/1.1";
  TlsSocketClient no_alpn(rig.connect(context), {}, options);
  CHECK_FALSE(no_alpn.exchange([] { return false; }));
  CHECK(no_alpn.tls.alert() == SSL_AD_NO_APPLICATION_PROTOCOL);
  SocketClient plain(rig.connect(context));  // HTTP/2 without TLS
  CHECK_FALSE(plain.exchange([] { return false; }));
  SocketClient leaves(rig.connect(context));
  leaves.send_raw(TlsClient().take().substr(0, 50));
  leaves.close();
  CHECK(rig.until([&] { return rig.set->empty(); }));
  CHECK(handshakes(rig, TlsResult::kNoAlpn) == 1);
  CHECK(handshakes(rig, TlsResult::kMalformed) == 1);
  CHECK(handshakes(rig, TlsResult::kDisconnected) == 1);
  CHECK(handshakes(rig, TlsResult::kOk) == 0);
}

TEST_CASE("handshakes that stand still are ended, before and after TLS; others go on") {
  TlsLimits limits;
  limits.handshake_timeout = Milliseconds(50);  // real: how long it takes does not matter
  Rig rig({}, limits);
  const auto context = make_context();
  TlsSocketClient good(rig.connect());
  SocketClient silent(rig.connect(context));
  SocketClient slow(rig.connect(context));
  slow.send_raw(TlsClient().take().substr(0, 50));
  CHECK_FALSE(silent.exchange_raw([] { return false; }, [](const std::string&) { return true; }));
  CHECK_FALSE(slow.exchange_raw([] { return false; }, [](const std::string&) { return true; }));
  CHECK(rig.until([&] { return handshakes(rig, TlsResult::kTimeout) == 2; }));
  CHECK(rig.until([&] { return rig.open_connections() == 1; }));
}

TEST_CASE("a client that says nothing after the handshake is ended, too") {
  TlsLimits limits;
  limits.handshake_timeout = std::chrono::seconds(2);
  Rig rig({}, limits);
  SocketClient raw(rig.connect(make_context()));
  TlsClient tls;
  raw.send_raw(tls.take());
  CHECK_FALSE(raw.exchange_raw(
      [&] {
        raw.send_raw(tls.take());
        return false;
      },
      [&](const std::string& bytes) {
        tls.feed(bytes);
        return true;
      }));
  CHECK(rig.until([&] { return rig.set->empty(); }));
}

TEST_CASE("past the bound of handshakes the oldest goes, and who talks gets in") {
  TlsLimits limits;
  limits.max_handshakes = 3;
  Rig rig({}, limits);
  const auto context = make_context();
  std::vector<std::unique_ptr<SocketClient>> silent;
  for (int i = 0; i < 10; ++i)
    silent.push_back(std::make_unique<SocketClient>(rig.connect(context)));
  TlsSocketClient good(rig.connect(context));
  REQUIRE(good.finish(good.client.call(kPath, "x")));
  CHECK(handshakes(rig, TlsResult::kCrowdedOut) == 8);
  CHECK(rig.until([&] { return rig.open_connections() == 3; }));
}

TEST_CASE("many handshakes at once all get their turn") {
  TlsLimits limits;
  limits.handshakes_per_turn = 1;
  Rig rig({}, limits);
  const auto context = make_context();
  std::vector<std::unique_ptr<TlsSocketClient>> clients;
  std::vector<int32_t> ids;
  for (int i = 0; i < 40; ++i) {
    clients.push_back(std::make_unique<TlsSocketClient>(rig.connect(context)));
    clients.back()->raw().send_raw(clients.back()->tls.take());
    ids.push_back(clients.back()->client.call(kPath, std::to_string(i)));
  }
  for (std::size_t i = 0; i < clients.size(); ++i) {
    REQUIRE(clients[i]->finish(ids[i]));
    CHECK(clients[i]->client.reply(ids[i]).message() == std::to_string(i));
  }
  CHECK(handshakes(rig, TlsResult::kOk) == 40);
}

TEST_CASE("destroyed with handshakes and calls going on") {
  Rig rig;
  rig.handler.hold = true;
  const auto context = make_context();
  std::vector<std::unique_ptr<TlsSocketClient>> clients;
  for (int i = 0; i < 6; ++i) {
    clients.push_back(std::make_unique<TlsSocketClient>(rig.connect(context)));
    clients.back()->client.call(kPath, pattern(2000));
    if (i % 2 == 0) {
      REQUIRE(clients.back()->exchange([&] { return clients.back()->tls.open(); }));
    } else {
      clients.back()->raw().send_raw(clients.back()->tls.take().substr(0, 100));
    }
  }
}
