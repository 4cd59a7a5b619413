#include "transport/connection_set.h"

#include <doctest/doctest.h>

#include <functional>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "deflate.h"
#include "socket_rig.h"

using namespace headrace;
using namespace headrace::test;

TEST_CASE("a call over a socket, small and large") {
  Rig rig;
  SocketClient socket(rig.connect());
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{5}, std::size_t{100000}, std::size_t{20} << 20}) {
    const std::string text = pattern(size);
    const int32_t id = socket.client.call(kPath, text);
    REQUIRE(socket.finish(id));
    CHECK(socket.client.reply(id).status() == 0);
    CHECK((socket.client.reply(id).message() == text));
  }
  CHECK(rig.set->counters().bytes_sent.read() > 20 << 20);
  CHECK(rig.set->counters().bytes_received.read() > 20 << 20);
}

TEST_CASE("answers go on past drain()'s bound while the socket takes them") {
  Http2Options options;
  options.max_unsent_bytes = 2000;  // far below what the socket's buffer holds
  Rig rig(options);
  SocketClient socket(rig.connect());
  std::vector<int32_t> ids;
  for (int i = 0; i < 50; ++i) ids.push_back(socket.client.call(kPath, pattern(1000)));
  ids.push_back(socket.client.call(kPath, pattern(50000)));
  for (const int32_t id : ids) {
    REQUIRE(socket.finish(id));
    CHECK(socket.client.reply(id).status() == 0);
  }
}

TEST_CASE("a crowd of new connections: each gets its turn, those that leave before it are gone") {
  Rig rig;
  std::vector<std::unique_ptr<SocketClient>> stay;
  std::vector<std::unique_ptr<SocketClient>> leave;
  std::vector<int32_t> last;
  // All at once: the loop waits until everything has been sent.
  std::promise<void> sent;
  for (int i = 0; i < 40; ++i) {
    (i % 2 == 0 ? stay : leave).push_back(std::make_unique<SocketClient>(rig.connect()));
  }
  REQUIRE(rig.loop.post([wait = sent.get_future().share()] { wait.wait(); }));
  for (const auto& crowd : {&stay, &leave}) {
    for (const std::unique_ptr<SocketClient>& one : *crowd) {
      int32_t id = 0;
      for (int k = 0; k < 100; ++k) id = one->client.call(kPath, std::to_string(k));
      if (crowd == &stay) last.push_back(id);
      one->send();
    }
  }
  for (std::size_t i = 0; i < leave.size(); i += 2) leave[i]->close();
  sent.set_value();
  for (std::size_t i = 1; i < leave.size(); i += 2) leave[i]->close();
  for (std::size_t i = 0; i < stay.size(); ++i) {
    REQUIRE(stay[i]->finish(last[i]));
    CHECK(stay[i]->client.reply(last[i]).message() == "99");
  }
  CHECK(rig.until([&] { return rig.open_connections() == 20; }));
  stay.clear();
  CHECK(rig.until([&] { return rig.open_connections() == 0; }));
  CHECK(rig.on_loop([&] { return rig.calls.active(); }) == 0);
}

TEST_CASE(
    "beside a trusted connection a crowd has its share of the time, and all of it is served") {
  Rig rig;
  SocketClient neighbour(rig.connect());
  const auto call = [&] {
    const int32_t id = neighbour.client.call(kPath, "known");
    REQUIRE(neighbour.finish(id));
    CHECK(neighbour.client.reply(id).message() == "known");
  };
  for (int i = 0; i < 50; ++i) call();  // trusted by now
  for (int round = 0; round < 3; ++round) {
    std::vector<std::unique_ptr<SocketClient>> crowd;
    std::vector<int32_t> last;
    for (int i = 0; i < 30; ++i) {
      crowd.push_back(std::make_unique<SocketClient>(rig.connect()));
      for (int k = 0; k < 20; ++k) last.push_back(crowd.back()->client.call(kPath, "new"));
      crowd.back()->send();
      call();
    }
    for (std::size_t i = 0; i < crowd.size(); i += 3) crowd[i]->close();
    for (std::size_t i = 0; i < crowd.size(); ++i) {
      if (i % 3 != 0) REQUIRE(crowd[i]->finish(last[20 * i + 19]));
    }
    call();
  }
  CHECK(rig.until([&] { return rig.open_connections() == 1; }));
}

TEST_CASE("large compressed messages over a running loop; some leave in the middle") {
  Rig rig;
  const std::string text = pattern(100'000) + std::string(3 << 20, 'z');
  const Headers gzip = {{"grpc-encoding", "gzip"}};
  const std::string body = grpc_message(compress_text(Encoding::kGzip, text), 1);
  std::vector<std::unique_ptr<SocketClient>> clients;
  std::vector<int32_t> ids;
  for (int i = 0; i < 12; ++i) {
    clients.push_back(std::make_unique<SocketClient>(rig.connect()));
    const int32_t id = clients.back()->client.open(kPath, gzip);
    clients.back()->client.send(id, body);
    clients.back()->client.end(id);
    clients.back()->send();
    ids.push_back(id);
  }
  for (std::size_t i = 0; i < clients.size(); i += 4) clients[i]->close();
  for (std::size_t i = 0; i < clients.size(); ++i) {
    if (i % 4 == 0) continue;
    REQUIRE(clients[i]->finish(ids[i]));
    CHECK((clients[i]->client.reply(ids[i]).message() == text));
  }
  clients.clear();
  CHECK(rig.until([&] { return rig.open_connections() == 0; }));
}

TEST_CASE("many connections, each with calls in flight, answered from another thread") {
  Rig rig;
  rig.handler.hold = true;
  std::vector<std::unique_ptr<SocketClient>> sockets;
  std::vector<int32_t> ids;
  for (int i = 0; i < 60; ++i) {
    sockets.push_back(std::make_unique<SocketClient>(rig.connect()));
    for (int k = 0; k < 3; ++k)
      ids.push_back(sockets.back()->client.call(kPath, std::to_string(i * 3 + k)));
    sockets.back()->send();
  }
  REQUIRE(rig.until([&] { return rig.handler.records.size() == 180; }));
  CHECK(rig.open_connections() == 60);
  rig.on_loop([&] {
    for (const ScriptedHandler::Record& record : rig.handler.records) {
      ScriptedHandler::answer(*rig.calls.find(record.id), record.message);
    }
  });
  for (std::size_t i = 0; i < sockets.size(); ++i) {
    for (std::size_t k = 0; k < 3; ++k) {
      const int32_t id = ids[i * 3 + k];
      REQUIRE(sockets[i]->finish(id));
      CHECK(sockets[i]->client.reply(id).message() == std::to_string(i * 3 + k));
    }
  }
  sockets.clear();
  CHECK(rig.until([&] { return rig.open_connections() == 0; }));
  CHECK(rig.handler.cancels == 0);
}

TEST_CASE("a client that leaves cancels its call") {
  Rig rig;
  rig.handler.hold = true;
  SocketClient socket(rig.connect());
  socket.client.call(kPath, "x");
  socket.send();
  REQUIRE(rig.until([&] { return rig.handler.records.size() == 1; }));
  socket.close();
  CHECK(rig.until([&] { return rig.open_connections() == 0 && rig.handler.cancels == 1; }));
  CHECK(rig.on_loop([&] { return rig.calls.find(rig.handler.records[0].id) == nullptr; }));
}

TEST_CASE("a client that leaves in the middle of its answer") {
  Rig rig;
  rig.handler.hold = true;
  ClientOptions options;
  options.settings = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 1 << 30}};
  SocketClient socket(rig.connect(), options);
  socket.client.call(kPath, "x");
  socket.send();
  REQUIRE(rig.until([&] { return rig.handler.records.size() == 1; }));
  rig.on_loop([&] {
    ScriptedHandler::answer(*rig.calls.find(rig.handler.records[0].id), std::string(16 << 20, 'x'));
  });
  CHECK(socket.exchange([&] { return socket.received > 1 << 20; }));
  socket.close();
  CHECK(rig.until([&] { return rig.open_connections() == 0; }));
  CHECK(rig.handler.cancels == 0);
}

TEST_CASE("a client that does not read holds nobody else up") {
  Rig rig;
  ClientOptions options;
  options.settings = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 1 << 30}};
  SocketClient stuck(rig.connect(), options);
  const int32_t first = stuck.client.call(kPath, std::string(8 << 20, 'a'));
  // Its requests leave, and windows open, without a byte being read by hand afterwards.
  REQUIRE(stuck.exchange([&] { return stuck.received > 100000; }));
  SocketClient other(rig.connect());
  for (int i = 0; i < 20; ++i) REQUIRE(other.finish(other.client.call(kPath, "y")));
  REQUIRE(stuck.finish(first));
  CHECK(stuck.client.reply(first).message()->size() == 8 << 20);
}

TEST_CASE("what is not HTTP/2 is closed, and other connections go on") {
  Rig rig;
  SocketClient good(rig.connect());
  SocketClient bad(rig.connect());
  bad.send_raw("GET / HTTP/1.1\r\n\r\n");
  CHECK_FALSE(bad.exchange([] { return false; }));
  REQUIRE(good.finish(good.client.call(kPath, "x")));
  CHECK(rig.until([&] { return rig.open_connections() == 1; }));
}

TEST_CASE("graceful shutdown over sockets: calls finish, then connections close by themselves") {
  Rig rig;
  rig.handler.hold = true;
  SocketClient busy(rig.connect());
  SocketClient idle(rig.connect());
  const int32_t id = busy.client.call(kPath, "x");
  busy.send();
  REQUIRE(rig.until([&] { return rig.handler.records.size() == 1; }));
  rig.on_loop([&] { rig.set->begin_shutdown(); });
  CHECK(busy.exchange([&] { return busy.client.goaways.size() == 1; }));
  rig.on_loop([&] { rig.set->finish_shutdown(); });
  CHECK_FALSE(idle.exchange([] { return false; }));
  CHECK(idle.closed_by_server);
  CHECK(rig.until([&] { return rig.open_connections() == 1; }));
  // One that comes now is told so, and closed.
  SocketClient late(rig.connect());
  CHECK_FALSE(late.exchange([] { return false; }));
  CHECK(late.client.goaways.size() == 1);
  rig.on_loop([&] { ScriptedHandler::answer(*rig.calls.find(rig.handler.records[0].id), "done"); });
  CHECK(busy.finish(id));
  CHECK(busy.client.reply(id).message() == "done");
  CHECK_FALSE(busy.exchange([] { return false; }));
  CHECK(rig.until([&] { return rig.set->empty(); }));
}

TEST_CASE("close_all() ends connections in every state, and what was answered just before leaves") {
  Rig rig;
  rig.handler.hold = true;
  SocketClient held(rig.connect());
  SocketClient answered(rig.connect());
  SocketClient idle(rig.connect());
  held.client.call(kPath, "held");
  held.send();
  REQUIRE(rig.until([&] { return rig.handler.records.size() == 1; }));
  const int32_t id = answered.client.call(kPath, "answered");
  answered.send();
  REQUIRE(rig.until([&] { return rig.handler.records.size() == 2; }));
  rig.on_loop([&] {
    ScriptedHandler::answer(*rig.calls.find(rig.handler.records[1].id), "bye");
    rig.set->close_all();
    CHECK(rig.set->empty());
  });
  CHECK(answered.finish(id));
  CHECK(answered.client.reply(id).message() == "bye");
  CHECK_FALSE(held.exchange([] { return false; }));
  CHECK_FALSE(idle.exchange([] { return false; }));
  CHECK(rig.until([&] { return rig.handler.cancels == 1; }));
}

TEST_CASE("destroyed with connections open, in the middle of everything") {
  Rig rig;
  rig.handler.hold = true;
  std::vector<std::unique_ptr<SocketClient>> sockets;
  for (int i = 0; i < 10; ++i) {
    sockets.push_back(std::make_unique<SocketClient>(rig.connect()));
    for (int k = 0; k < 5; ++k) sockets.back()->client.call(kPath, pattern(2000));
    sockets.back()->send();
  }
  // The Rig's destructor stops the loop at whatever point it is, and checks what is left.
}
