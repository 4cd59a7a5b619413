// Calls with streamed requests or responses: what a handler hears, in what order, and what is held.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "deflate.h"
#include "rpc/call.h"
#include "wire_client.h"

using namespace headrace;
using namespace headrace::test;
using namespace std::chrono_literals;

namespace {

const std::string kPath = "/test.Chat/Call";
constexpr std::size_t kWindow = 256 * 1024;

struct Chat {
  explicit Chat(MethodKind kind = MethodKind::kBidiStreaming, const ClientOptions& options = {},
                std::size_t max_message = 4 << 20)
      : wire(server.calls, {}, options) {
    server.methods.add(kPath, {&handler, max_message, kind});
  }
  int32_t open(const Headers& extra = {}) {
    stream = wire.client.open(kPath, extra);
    REQUIRE(wire.pump());
    return stream;
  }
  void send(std::string_view message) { wire.client.send(stream, grpc_message(message)); }
  void end() { wire.client.end(stream); }
  const Reply& reply() const { return wire.client.reply(stream); }
  Call* call() { return server.calls.find(handler.only().id); }
  void check_over(int status) {
    wire.pump();
    CHECK(reply().closed);
    CHECK(reply().status() == status);
    CHECK(server.idle());
    CHECK(wire.connection->open_streams() == 0);
    CHECK(wire.connection->unsent() == 0);
  }

  StreamingHandler handler;
  WireServer server;
  Wire wire;
  int32_t stream = 0;
};

ClientOptions slow_reader(uint32_t window) {
  ClientOptions options;
  options.settings = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, window}};
  options.auto_window_update = false;
  return options;
}

}  // namespace

TEST_CASE("bidirectional: each message is answered while the request goes on") {
  Chat chat;
  chat.open();
  CHECK_FALSE(chat.reply().header(":status"));  // nothing is said before the handler says it
  for (const std::string& text : {std::string("a"), std::string(), pattern(100000)}) {
    chat.send(text);
    chat.wire.pump();
    CHECK((chat.reply().messages().back().text == text));
    CHECK(chat.server.budget.used() == 0);
  }
  CHECK(chat.reply().header("content-type") == "application/grpc");
  CHECK_FALSE(chat.reply().header("grpc-encoding"));
  chat.end();
  chat.check_over(0);
  CHECK(chat.reply().trailers == Headers{{"grpc-status", "0"}});
  CHECK(chat.handler.only().half_closes == 1);
  CHECK(chat.handler.only().cancels == 0);
  CHECK_FALSE(chat.reply().reset);
}

TEST_CASE("client streaming: many messages, one answer") {
  Chat chat(MethodKind::kClientStreaming);
  std::size_t total = 0;
  chat.handler.got = [&](Call& call, std::string_view message) {
    total += message.size();
    call.release(message.size());
    call.request_messages(1);
  };
  chat.handler.half_closed = [&](Call& call) {
    ScriptedHandler::answer(call, std::to_string(total));
  };
  chat.open();
  for (int i = 0; i < 50; ++i) chat.send(pattern(1000));
  chat.end();
  chat.check_over(0);
  CHECK(chat.reply().message() == "50000");
}

TEST_CASE("server streaming: one message, many answers, and exactly one request message") {
  Chat chat(MethodKind::kServerStreaming);
  chat.handler.got = [](Call& call, std::string_view message) {
    const Metadata initial = {{"x-first", "1"}};
    const Metadata trailing = {{"x-last", "2"}};
    call.send_headers(&initial);
    for (int i = 0; i < 20; ++i) StreamingHandler::send(call, message);
    call.finish(Status(), &trailing);
  };
  const int32_t id = chat.wire.client.call(kPath, "hello");
  chat.wire.pump();
  const Reply& reply = chat.wire.client.reply(id);
  CHECK(reply.messages().size() == 20);
  CHECK(reply.header("x-first") == "1");
  CHECK(reply.trailer("x-last") == "2");
  CHECK(reply.status() == 0);
  for (const std::string& body : {std::string(), grpc_message("a") + grpc_message("b")}) {
    chat.open();
    if (!body.empty()) chat.wire.client.send(chat.stream, body);
    chat.end();
    chat.check_over(13);
  }
  CHECK(chat.handler.records.size() == 1);
}

TEST_CASE("without credit no message is delivered, and the client is held at the stream's window") {
  Chat chat;
  chat.handler.opened = [](Call&) {};
  chat.handler.got = [](Call&, std::string_view) {};
  chat.open();
  const std::string text = pattern(50000);
  for (int i = 0; i < 40; ++i) chat.send(text);
  chat.end();
  chat.wire.pump();
  CHECK(chat.handler.only().messages.empty());
  CHECK(chat.server.budget.used() == kWindow);
  for (std::size_t taken = 1; taken <= 40; ++taken) {
    chat.call()->request_messages(1);
    chat.wire.pump();
    REQUIRE(chat.handler.only().messages.size() == taken);
    REQUIRE((chat.handler.only().messages.back() == text));
    // The delivered message is the handler's until it says otherwise.
    REQUIRE(chat.server.budget.used() <= kWindow + text.size());
    REQUIRE(chat.handler.only().half_closes == (taken == 40 ? 1 : 0));
    if (taken < 40) chat.call()->release(text.size());
  }
  chat.check_over(0);
}

TEST_CASE("credit is counted: two credits are two messages") {
  Chat chat;
  chat.handler.opened = [](Call& call) { call.request_messages(2); };
  chat.handler.got = [](Call&, std::string_view) {};
  chat.open();
  for (int i = 0; i < 10; ++i) chat.send(std::to_string(i));
  chat.wire.pump();
  CHECK(chat.handler.only().messages == std::vector<std::string>{"0", "1"});
  chat.call()->request_messages(3);
  CHECK(chat.handler.only().messages.size() == 5);
  chat.call()->request_messages(SIZE_MAX);
  chat.call()->request_messages(SIZE_MAX);  // no overflow
  CHECK(chat.handler.only().messages.size() == 10);
  chat.send("more");
  chat.end();
  chat.check_over(0);
  CHECK(chat.handler.only().messages.size() == 11);
}

TEST_CASE("a message larger than the window comes through with one credit, holding only itself") {
  Chat chat(MethodKind::kBidiStreaming, {}, 16 << 20);
  const std::string text = pattern(5 << 20);
  chat.handler.got = [](Call&, std::string_view) {};
  chat.open();
  for (int i = 0; i < 3; ++i) chat.send(text);
  chat.end();
  chat.wire.pump();
  CHECK(chat.handler.only().messages.size() == 1);
  CHECK((chat.handler.only().messages[0] == text));
  CHECK(chat.server.budget.used() <= text.size() + kWindow);
  chat.call()->release(text.size());
  CHECK(chat.server.budget.used() <= kWindow);
  chat.call()->request_messages(2);
  chat.wire.pump();
  CHECK((chat.handler.only().messages.at(2) == text));
  chat.check_over(0);
}

TEST_CASE("streams that nobody reads do not stop others on the connection") {
  Chat chat;
  ScriptedHandler echo;
  chat.server.methods.add("/test.Echo/Call", {&echo});
  chat.handler.opened = [](Call&) {};
  for (int i = 0; i < 60; ++i) {  // 15 MiB, almost twice the connection's window
    chat.open();
    chat.send(pattern(1 << 20));
  }
  chat.wire.pump();
  CHECK(chat.server.budget.used() == 60 * kWindow);
  const int32_t id = chat.wire.client.call("/test.Echo/Call", pattern(3 << 20));
  chat.wire.pump();
  CHECK((chat.wire.client.reply(id).message() == pattern(3 << 20)));
  chat.wire.lose();
  CHECK(chat.server.idle());
}

TEST_CASE("held bytes count: over the budget a stream is refused") {
  Chat chat;
  WireServer small(300000);
  Wire wire(small.calls);
  StreamingHandler handler;
  handler.opened = [](Call&) {};
  small.methods.add(kPath, {&handler, 4 << 20, MethodKind::kBidiStreaming});
  const int32_t first = wire.client.open(kPath);
  wire.client.send(first, pattern(200000));
  const int32_t second = wire.client.open(kPath);
  wire.client.send(second, pattern(200000));
  wire.pump();
  CHECK(wire.client.reply(first).status() == -1);
  CHECK(wire.client.reply(second).status() == 8);
  CHECK(small.budget.used() == 200000);
  wire.client.reset(first);
  wire.pump();
  CHECK(small.idle());
  for (const auto& [id, record] : handler.records) CHECK(record.cancels == 1);
}

TEST_CASE("a slow reader is held at 1 MiB and one message, and gets everything in the end") {
  constexpr std::size_t kMessage = 100000;
  Chat chat(MethodKind::kBidiStreaming, slow_reader(10000));
  const std::string text = pattern(kMessage);
  int left = 100;
  std::size_t most = 0;
  const auto produce = [&](Call& call) {
    while (left > 0 && call.writable()) {
      --left;
      StreamingHandler::send(call, text);
    }
    most = std::max(most, chat.wire.connection->unsent());
    if (left == 0) call.finish(Status());
  };
  chat.handler.opened = produce;
  chat.handler.now_writable = produce;
  chat.open();
  CHECK(left > 80);
  CHECK(chat.handler.only().writables == 0);
  const std::size_t first = most;
  CHECK(first <= (768 << 10) + kMessage);
  CHECK(first + Http2Options{}.max_unsent_bytes <= (1 << 20) + kMessage);
  // One step below half makes room once, not at every byte.
  int steps = 0;
  for (; !chat.reply().closed && steps < 3000; ++steps) {
    chat.wire.client.credit(chat.stream, 5000);
    chat.wire.client.credit(0, 5000);
    chat.wire.pump();
  }
  CHECK(most <= (768 << 10) + kMessage);
  CHECK(left == 0);
  const int writables = chat.handler.only().writables;
  CHECK(writables >= 10);
  CHECK(writables <= 40);
  const auto messages = chat.reply().messages();
  REQUIRE(messages.size() == 100);
  for (const Reply::Message& message : messages) REQUIRE((message.text == text));
  CHECK(chat.reply().status() == 0);
  CHECK(chat.server.idle());
  CHECK(chat.wire.connection->unsent() == 0);
}

TEST_CASE("a connection is held at its share, whatever the number of its streams") {
  constexpr std::size_t kMessage = 50000;
  Chat chat(MethodKind::kServerStreaming, slow_reader(0));
  const std::string text = pattern(kMessage);
  const auto produce = [&](Call& call) {
    while (call.writable()) StreamingHandler::send(call, text);
  };
  chat.handler.got = [&](Call& call, std::string_view) { produce(call); };
  chat.handler.now_writable = produce;
  std::vector<int32_t> streams;
  for (int i = 0; i < 100; ++i) streams.push_back(chat.wire.client.call(kPath, "go"));
  chat.wire.pump();
  CHECK(chat.handler.records.size() == 100);
  CHECK(chat.wire.connection->unsent() >= 8 << 20);
  CHECK(chat.wire.connection->unsent() <= (8 << 20) + kMessage);
  // Ending most of them makes room for the others.
  for (int i = 0; i < 99; ++i) chat.wire.client.reset(streams[static_cast<std::size_t>(i)]);
  chat.wire.pump();
  std::size_t told = 0;
  for (const auto& [id, record] : chat.handler.records) told += record.writables != 0;
  CHECK(told >= 1);
  CHECK(chat.wire.connection->unsent() >= 768 << 10);
  CHECK(chat.wire.connection->unsent() <= (768 << 10) + kMessage);
  chat.wire.lose();
  CHECK(chat.server.idle());
}

TEST_CASE("the client half-closes: with the headers, before credit, after messages, in a message") {
  SUBCASE("with the headers") {
    Chat chat;
    chat.stream = chat.wire.client.open(kPath, {}, true);
    chat.check_over(0);
    CHECK(chat.handler.only().half_closes == 1);
    CHECK(chat.reply().header_blocks == 2);
  }
  SUBCASE("without messages, without credit") {
    Chat chat;
    chat.handler.opened = [](Call&) {};
    chat.open();
    chat.end();
    chat.check_over(0);
    CHECK(chat.handler.only().half_closes == 1);
  }
  SUBCASE("it is told after the messages") {
    Chat chat;
    chat.handler.opened = [](Call&) {};
    chat.handler.got = [](Call&, std::string_view) {};
    chat.open();
    chat.send("a");
    chat.send("b");
    chat.end();
    chat.wire.pump();
    CHECK(chat.handler.only().half_closes == 0);
    chat.call()->request_messages(1);
    CHECK(chat.handler.only().half_closes == 0);
    chat.call()->request_messages(1);
    CHECK(chat.handler.only().half_closes == 1);
    CHECK(chat.handler.only().messages == std::vector<std::string>{"a", "b"});
    chat.check_over(0);
  }
  SUBCASE("in the middle of a message") {
    const std::string whole = grpc_message("12345");
    for (std::size_t cut = 1; cut < whole.size(); ++cut) {
      for (const bool credit_first : {true, false}) {
        Chat chat;
        if (!credit_first) chat.handler.opened = [](Call&) {};
        chat.open();
        chat.wire.client.send(chat.stream, whole + whole.substr(0, cut));
        chat.end();
        chat.wire.pump();
        if (!credit_first) chat.call()->request_messages(1);
        chat.wire.pump();
        CHECK(chat.handler.only().messages.size() == 1);
        CHECK(chat.handler.only().half_closes == 0);
        CHECK(chat.handler.only().cancels == 1);
        chat.check_over(13);
        CHECK(chat.reply().messages().size() == 1);  // what was answered stays answered
      }
    }
  }
}

TEST_CASE("the handler finishes before the client has: the client is told to stop sending") {
  for (const int code : {0, 9}) {
    Chat chat;
    chat.handler.got = [&](Call& call, std::string_view) {
      call.finish(code == 0 ? Status() : Status(StatusCode::kFailedPrecondition, "enough"));
    };
    chat.open();
    for (int i = 0; i < 20; ++i) chat.send(pattern(50000));
    chat.check_over(code);
    CHECK(chat.reply().reset == NGHTTP2_NO_ERROR);
    CHECK(chat.handler.only().messages.size() == 1);
    CHECK(chat.handler.only().cancels == 0);
    CHECK(chat.reply().header_blocks == (code == 0 ? 2 : 1));  // an error alone is trailers-only
  }
}

TEST_CASE("an error after messages comes in trailers, behind them") {
  Chat chat;
  chat.handler.got = [](Call& call, std::string_view message) {
    StreamingHandler::send(call, message);
    const Metadata trailing = {{"why", "because"}};
    call.fail(Status::not_found("no m\xc3\xb6re"), &trailing);
  };
  chat.open();
  chat.send(pattern(300000));
  chat.check_over(5);
  CHECK(chat.reply().messages().size() == 1);
  CHECK(chat.reply().header_blocks == 2);
  CHECK(chat.reply().trailer(":status") == std::nullopt);
  CHECK(chat.reply().trailer("why") == "because");
  CHECK(chat.reply().status_message() == "no m%C3%B6re");
}

TEST_CASE("a handler may finish in any callback, and hears nothing more") {
  for (int where = 0; where < 4; ++where) {
    CAPTURE(where);
    Chat chat(MethodKind::kBidiStreaming, slow_reader(1000));
    const auto finish = [](Call& call) { call.finish(Status(StatusCode::kAborted, "here")); };
    if (where == 0) chat.handler.opened = finish;
    if (where == 1) chat.handler.got = [&](Call& call, std::string_view) { finish(call); };
    if (where == 2) chat.handler.half_closed = finish;
    if (where == 3) {
      chat.handler.opened = [](Call& call) {
        while (call.writable()) StreamingHandler::send(call, std::string(100000, 'x'));
        call.request_messages(1);
      };
      chat.handler.got = [](Call& call, std::string_view) { call.request_messages(1); };
      chat.handler.half_closed = [](Call&) {};
      chat.handler.now_writable = finish;
    }
    chat.open();
    for (int i = 0; i < 5; ++i) chat.send("message");
    chat.end();
    for (int i = 0; i < 200; ++i) {
      chat.wire.client.credit(chat.stream, 10000);
      chat.wire.client.credit(0, 10000);
      chat.wire.pump();
      if (chat.reply().closed) break;
    }
    chat.check_over(10);
    CHECK(chat.handler.only().cancels == 0);
    CHECK(chat.handler.only().messages.size() == (where == 0 ? 0 : where == 1 ? 1 : 5));
  }
}

TEST_CASE("malformed messages in a stream: the handler is cancelled, the client told") {
  struct Case {
    std::string bytes;
    int status;
  };
  const std::string bomb = compress_text(Encoding::kGzip, std::string(10 << 20, '\0'));
  for (const Case& bad :
       {Case{grpc_message("x", 2), 13}, Case{grpc_message("", 0, 200001), 8},
        Case{grpc_message("", 0, 0xffffffff), 8}, Case{grpc_message("x", 1), 13},
        Case{grpc_message(bomb, 1), 8}, Case{grpc_message(bomb.substr(0, 100), 1), 13}}) {
    for (const bool held : {false, true}) {
      CAPTURE(bad.status);
      CAPTURE(held);
      Chat chat(MethodKind::kBidiStreaming, {}, 200000);
      if (held) chat.handler.opened = [](Call&) {};
      chat.open({{"grpc-encoding", "gzip"}});
      chat.send("good");
      chat.wire.client.send(chat.stream, bad.bytes);
      chat.send("never seen");
      chat.wire.pump();
      if (held) chat.call()->request_messages(5);
      CHECK(chat.handler.only().messages == std::vector<std::string>{"good"});
      CHECK(chat.handler.only().cancels == 1);
      chat.check_over(bad.status);
      CHECK(chat.reply().messages().size() == 1);
    }
  }
}

TEST_CASE("requests compressed message by message") {
  Chat chat;
  chat.open({{"grpc-encoding", "deflate"}});
  const std::string text = pattern(30000) + std::string(100000, 'z');
  for (int i = 0; i < 6; ++i) {
    const std::string packed = compress_text(Encoding::kDeflate, text);
    chat.wire.client.send(chat.stream,
                          i % 2 == 0 ? grpc_message(packed, 1) : grpc_message(text, 0));
    chat.wire.pump();
    CHECK((chat.handler.only().messages.back() == text));
    CHECK(chat.server.budget.used() == 0);  // all was released, to the byte
  }
  chat.end();
  chat.check_over(0);
}

TEST_CASE("responses are compressed if the client accepts it, message by message") {
  const std::string text = pattern(2000) + std::string(50000, 'q');
  const auto run = [&](const Headers& headers, Encoding by_default, Encoding asked) {
    Chat chat;
    chat.server.calls.set_compression(by_default);
    chat.handler.opened = [&](Call& call) {
      if (asked != by_default) call.set_compression(asked);
      call.request_messages(1);
    };
    chat.handler.got = [n = 0](Call& call, std::string_view message) mutable {
      call.compress_messages(++n != 2);
      StreamingHandler::send(call, message);
      call.release(message.size());
      call.request_messages(1);
    };
    chat.open(headers);
    for (int i = 0; i < 3; ++i) chat.send(text);
    chat.send("");
    chat.send("short");
    chat.end();
    chat.check_over(0);
    return chat.reply();
  };
  const auto inflate = [](Encoding encoding, const std::string& packed) {
    const Result<BufferRef> out =
        inflate_message(encoding, bytes_of(packed), 1 << 20, [](std::size_t) { return true; });
    REQUIRE(out);
    return std::string(out->view());
  };
  const Headers accepts = {{"grpc-accept-encoding", "identity, deflate,gzip"}};
  for (const Encoding encoding : {Encoding::kGzip, Encoding::kDeflate}) {
    for (const bool by_default : {true, false}) {
      const Reply reply = run(accepts, by_default ? encoding : Encoding::kIdentity, encoding);
      CHECK(reply.header("grpc-encoding") == name_of(encoding));
      const auto messages = reply.messages();
      REQUIRE(messages.size() == 5);
      for (const std::size_t i : {0, 2}) {
        CHECK(messages[i].flag == 1);
        CHECK(messages[i].text.size() < text.size());
        CHECK((inflate(encoding, messages[i].text) == text));
      }
      CHECK(messages[1].flag == 0);
      CHECK((messages[1].text == text));
      // What does not shrink is sent as it is.
      CHECK(messages[3].flag == 0);
      CHECK(messages[4].flag == 0);
      CHECK(messages[4].text == "short");
    }
  }
  // Not accepted, or the handler wants none.
  for (const Headers& headers : {Headers{}, Headers{{"grpc-accept-encoding", "identity"}},
                                 Headers{{"grpc-accept-encoding", "gzipped,br,"}}}) {
    const Reply reply = run(headers, Encoding::kGzip, Encoding::kGzip);
    CHECK_FALSE(reply.header("grpc-encoding"));
    for (const auto& message : reply.messages()) CHECK(message.flag == 0);
  }
  const Reply reply = run(accepts, Encoding::kGzip, Encoding::kIdentity);
  CHECK_FALSE(reply.header("grpc-encoding"));
}

TEST_CASE("a unary answer is compressed too") {
  WireServer server;
  server.calls.set_compression(Encoding::kGzip);
  ScriptedHandler echo;
  server.methods.add(kPath, {&echo});
  Wire wire(server.calls);
  const int32_t id =
      wire.client.call(kPath, std::string(10000, 'x'), {{"grpc-accept-encoding", "gzip"}});
  wire.pump();
  REQUIRE(wire.client.reply(id).messages().size() == 1);
  CHECK(wire.client.reply(id).messages()[0].flag == 1);
  CHECK(wire.client.reply(id).header("grpc-encoding") == "gzip");
  CHECK(wire.client.reply(id).status() == 0);
}

TEST_CASE("the client leaves at any point: the handler hears it once, and nothing is held") {
  // Steps of a call; it is reset, or lost, before each.
  for (const bool lost : {false, true}) {
    for (int stop = 0; stop < 7; ++stop) {
      CAPTURE(stop);
      Chat chat(MethodKind::kBidiStreaming, slow_reader(1000));
      chat.handler.opened = [](Call&) {};
      chat.handler.got = [](Call& call, std::string_view message) {
        StreamingHandler::send(call, message);
      };
      chat.handler.half_closed = [](Call&) {};
      bool finished = false;
      const std::string text = pattern(20000);
      for (int step = 0; step < stop; ++step) {
        switch (step) {
          case 0:
            chat.open();
            break;
          case 1:
            chat.wire.client.send(chat.stream,
                                  grpc_message(text) + grpc_message(text).substr(0, 3));
            break;
          case 2:
            chat.call()->request_messages(1);
            break;
          case 3:
            chat.wire.client.send(chat.stream, grpc_message(text).substr(3, 5000));
            break;
          case 4:
            chat.wire.client.send(chat.stream, grpc_message(text).substr(5003));
            chat.end();
            break;
          case 5:
            chat.call()->request_messages(1);
            chat.call()->finish(Status());
            finished = true;
            break;
        }
        chat.wire.pump();
      }
      if (stop == 0) continue;
      if (lost) {
        chat.wire.lose();
      } else {
        chat.wire.client.reset(chat.stream);
        chat.wire.pump();
        CHECK(chat.wire.connection->open_streams() == 0);
        CHECK(chat.wire.connection->unsent() == 0);
      }
      CHECK(chat.handler.only().cancels == (finished ? 0 : 1));
      CHECK(chat.server.calls.find(chat.handler.only().id) == nullptr);
      CHECK(chat.server.idle());
    }
  }
}

TEST_CASE("deadlines of streams: idle, in the middle of messages, while the client does not read") {
  SUBCASE("idle") {
    Chat chat;
    chat.open({{"grpc-timeout", "100m"}});
    chat.send("x");
    chat.wire.pump();
    chat.server.advance(101ms);
    chat.check_over(4);
    CHECK(chat.handler.only().cancels == 1);
    CHECK(chat.reply().messages().size() == 1);
  }
  SUBCASE("bytes held without credit") {
    Chat chat;
    chat.handler.opened = [](Call&) {};
    chat.open({{"grpc-timeout", "100m"}});
    chat.send(pattern(100000));
    chat.wire.pump();
    CHECK(chat.server.budget.used() == 100005);
    chat.server.advance(101ms);
    chat.check_over(4);
    CHECK(chat.reply().trailers_only());
    CHECK(chat.handler.only().cancels == 1);
  }
  SUBCASE("the response waits for the client's window: it is dropped, the stream reset") {
    Chat chat(MethodKind::kBidiStreaming, slow_reader(1000));
    chat.open({{"grpc-timeout", "100m"}});
    chat.send(pattern(100000));
    chat.wire.pump();
    CHECK(chat.wire.connection->unsent() > 90000);
    chat.server.advance(101ms);
    chat.wire.pump();
    CHECK(chat.reply().reset == NGHTTP2_CANCEL);
    CHECK(chat.wire.connection->unsent() == 0);
    CHECK(chat.wire.connection->open_streams() == 0);
    CHECK(chat.handler.only().cancels == 1);
    CHECK(chat.server.finished(StatusCode::kDeadlineExceeded) == 1);
    CHECK(chat.server.idle());
  }
}

TEST_CASE("shutdown ends streams once") {
  Chat chat;
  chat.open();
  chat.send("x");
  chat.wire.pump();
  chat.server.calls.fail_all(Status::unavailable("stopped"));
  chat.server.calls.fail_all(Status::unavailable("stopped"));
  chat.check_over(14);
  CHECK(chat.handler.only().cancels == 1);
}

TEST_CASE("a stream's first bytes do not count as a message for a handler of the other kind") {
  WireServer server;
  ScriptedHandler unary;  // has no on_open
  server.methods.add(kPath, {&unary, 1000, MethodKind::kBidiStreaming});
  Wire wire(server.calls);
  const int32_t id = wire.client.call(kPath, "x");
  wire.pump();
  CHECK(wire.client.reply(id).status() == 12);
  CHECK(server.idle());
}

TEST_CASE("many tiny messages without credit hold their bytes, not a buffer each") {
  Chat chat;
  chat.handler.opened = [](Call&) {};
  chat.handler.got = [](Call& call, std::string_view) { call.request_messages(1); };
  chat.open();
  std::string many;
  for (int i = 0; i < 40000; ++i) many += grpc_message("");
  chat.wire.client.send(chat.stream, many);
  chat.wire.pump();
  CHECK(chat.server.budget.used() == many.size());
  chat.call()->request_messages(1);  // each asks for the next: no recursion
  CHECK(chat.handler.only().messages.size() == 40000);
  CHECK(chat.server.budget.used() == 0);
  chat.end();
  chat.check_over(0);
}
