// What a request must look like, and what a client sees when it does not (PROTOCOL-HTTP2.md).
#include "rpc/call.h"

#include <doctest/doctest.h>

#include <random>

#include <string>
#include <vector>

#include "deflate.h"
#include "rpc/grpc_codec.h"
#include "wire_client.h"

using namespace headrace;
using namespace headrace::test;

namespace {

const std::string kPath = "/test.Echo/Call";

struct Echo {
  explicit Echo(std::size_t max_message = 4 << 20, std::size_t budget = 64 << 20)
      : server(budget), wire(server.calls) {
    server.methods.add(kPath, {&handler, max_message});
  }
  // One call with this body, in one DATA frame, then END_STREAM.
  const Reply& send(std::string_view body, const Headers& extra = {}) {
    const int32_t id = wire.client.open(kPath, extra);
    if (!body.empty()) wire.client.send(id, body);
    wire.client.end(id);
    REQUIRE(wire.pump());
    CHECK(wire.client.reply(id).closed);
    return wire.client.reply(id);
  }
  // The connection still serves, and nothing is held.
  void check_well() {
    CHECK(send(grpc_message("still there")).message() == "still there");
    CHECK(server.idle());
    CHECK(wire.connection->open_streams() == 0);
  }

  ScriptedHandler handler;
  WireServer server;
  Wire wire;
};

}  // namespace

TEST_CASE("a unary call: 200, content-type, the message, grpc-status 0 in trailers") {
  Echo echo;
  const Reply& reply = echo.send(grpc_message("hello"));
  CHECK(reply.header(":status") == "200");
  CHECK(reply.header("content-type") == "application/grpc");
  CHECK(reply.header("grpc-accept-encoding") == "identity,gzip,deflate");
  CHECK_FALSE(reply.header("grpc-status"));
  CHECK(reply.message() == "hello");
  CHECK(reply.header_blocks == 2);
  CHECK(reply.trailers == Headers{{"grpc-status", "0"}});
  CHECK_FALSE(reply.reset);
  REQUIRE(echo.handler.records.size() == 1);
  CHECK(echo.handler.cancels == 0);
  CHECK(echo.server.finished(StatusCode::kOk) == 1);
  echo.check_well();
}

TEST_CASE("messages of sizes around frames, pieces and windows arrive whole") {
  Echo echo(16 << 20);
  for (const std::size_t edge : {0, 8 * 1024, 16 * 1024, 65535, 1 << 20, 8 << 20}) {
    for (int delta = -6; delta <= 1; ++delta) {
      if (static_cast<int>(edge) + delta < 0) continue;
      const std::string text = pattern(edge + static_cast<std::size_t>(delta));
      CAPTURE(text.size());
      CHECK((echo.send(grpc_message(text)).message() == text));
      if (edge > 1 << 20 && delta < 0) break;
    }
  }
  CHECK(echo.server.idle());
}

TEST_CASE("frame boundaries mean nothing") {
  Echo echo;
  const std::string text = pattern(300);
  const std::string body = grpc_message(text);
  const auto whole = [&](const std::vector<std::string>& frames, std::size_t padding) {
    const int32_t id = echo.wire.client.open(kPath);
    for (const std::string& frame : frames) echo.wire.client.send(id, frame, padding);
    echo.wire.client.end(id);
    echo.wire.pump();
    return echo.wire.client.reply(id).message() == text;
  };
  std::vector<std::string> single;
  for (const char c : body) single.emplace_back(1, c);
  CHECK(whole(single, 0));
  CHECK(whole(single, 255));
  CHECK(whole({"", body, ""}, 0));
  CHECK(whole({"", body.substr(0, 3), "", "", body.substr(3), ""}, 7));
  for (std::size_t cut = 1; cut < 12; ++cut) {
    CHECK(whole({body.substr(0, cut), body.substr(cut)}, cut));
  }
  SUBCASE("and neither do the pieces that the socket reads") {
    echo.wire.feed_at_once = 1;
    echo.wire.write_at_once = 1;
    CHECK(whole({body}, 3));
  }
  echo.check_well();
}

TEST_CASE("padding is given back to the windows: a long padded upload does not stall") {
  Echo echo(32 << 20);
  const int32_t id = echo.wire.client.open(kPath);
  const std::string text = pattern(64 * 1024);
  const std::string body = grpc_message(text);
  for (std::size_t at = 0; at < body.size(); at += 7) {
    echo.wire.client.send(id, std::string_view(body).substr(at, 7), 255);  // 2.4 MB on the wire
  }
  echo.wire.client.end(id);
  echo.wire.pump();
  CHECK((echo.wire.client.reply(id).message() == text));
  echo.check_well();
}

TEST_CASE("a malformed message is INTERNAL, in trailers only") {
  Echo echo;
  const std::string good = grpc_message("12345");
  for (const std::string& body :
       {std::string(), good.substr(0, 1), good.substr(0, 4), good.substr(0, 5), good.substr(0, 9),
        good + std::string(1, '\0'), good + good, grpc_message("12345", 2),
        grpc_message("12345", 255), grpc_message("12345", 1)}) {
    CAPTURE(body.size());
    const Reply& reply = echo.send(body);
    CHECK(reply.trailers_only());
    CHECK(reply.header(":status") == "200");
    CHECK(reply.status() == 13);
    CHECK_FALSE(reply.status_message().empty());
    CHECK(echo.server.idle());
  }
  CHECK(echo.handler.records.empty());
  echo.check_well();
}

TEST_CASE("a length over the limit is refused at the prefix, before memory is taken") {
  Echo echo(1000);
  for (const uint32_t claim : {uint32_t{1001}, uint32_t{0x7fffffff}, uint32_t{0xffffffff}}) {
    const int32_t id = echo.wire.client.open(kPath);  // left open
    echo.wire.client.send(id, grpc_message("", 0, claim));
    REQUIRE(echo.wire.pump());
    const Reply& reply = echo.wire.client.reply(id);
    CHECK(reply.status() == 8);
    CHECK(reply.status_message() ==
          "Received message larger than max (" + std::to_string(claim) + " vs. 1000)");
    CHECK(reply.reset == 0);  // NO_ERROR: stop sending
    CHECK(reply.closed);
  }
  CHECK(echo.send(grpc_message(std::string(1000, 'x'))).status() == 0);
  CHECK(echo.handler.records.size() == 1);
  echo.check_well();
}

TEST_CASE("a large claim is charged as it arrives, not as it is claimed") {
  Echo echo(0x7fffffff, 8 << 20);
  const int32_t id = echo.wire.client.open(kPath);
  echo.wire.client.send(id, grpc_message("", 0, 0x7fffffff));
  echo.wire.pump();
  CHECK(echo.server.budget.used() == 64 * 1024);
  const std::string part(1 << 20, 'x');
  for (int i = 0; i < 12; ++i) echo.wire.client.send(id, part);
  echo.wire.pump();  // more than the budget holds
  CHECK(echo.wire.client.reply(id).status() == 8);
  CHECK(echo.wire.client.reply(id).reset == 0);
  echo.check_well();
}

TEST_CASE("a full budget refuses, and serves again when others finished") {
  Echo echo(4 << 20, 2500);
  echo.handler.hold = true;
  const int32_t first = echo.wire.client.call(kPath, std::string(2000, 'a'));
  const int32_t second = echo.wire.client.call(kPath, std::string(2000, 'b'));
  echo.wire.pump();
  CHECK(echo.server.budget.used() == 2000);
  CHECK(echo.wire.client.reply(second).status() == 8);
  ScriptedHandler::answer(*echo.server.calls.find(echo.handler.records.at(0).id), "done");
  CHECK(echo.server.budget.used() == 0);
  echo.handler.hold = false;
  CHECK(echo.send(grpc_message(std::string(2000, 'c'))).status() == 0);
  CHECK(echo.wire.client.reply(first).status() == 0);
  CHECK(echo.server.idle());
}

TEST_CASE("paths are exact, methods are POST") {
  Echo echo;
  for (const char* path : {"/test.Echo/call", "/test.echo/Call", "/test.Echo/Call/", "/test.Echo",
                           "/", "/test.Echo/Call?x=1", "//test.Echo/Call", "/test.Echo/Callx"}) {
    CAPTURE(path);
    const int32_t id = echo.wire.client.call(path, "x");
    echo.wire.pump();
    const Reply& reply = echo.wire.client.reply(id);
    CHECK(reply.trailers_only());
    CHECK(reply.status() == 12);
  }
  for (const char* method : {"GET", "PUT", "post"}) {
    Headers headers = TestClient::grpc_headers(kPath);
    headers[0].second = method;
    const int32_t id = echo.wire.client.open_with(headers, true);
    echo.wire.pump();
    CHECK(echo.wire.client.reply(id).status() == 12);
  }
  CHECK(echo.handler.records.empty());
  echo.check_well();
}

TEST_CASE("content-type: application/grpc with +x or ;x, else 415") {
  Echo echo;
  const auto with = [&](const std::optional<std::string>& type) -> const Reply& {
    Headers headers = TestClient::grpc_headers(kPath);
    headers.pop_back();
    if (type) headers.emplace_back("content-type", *type);
    const int32_t id = echo.wire.client.open_with(headers);
    echo.wire.client.send(id, grpc_message("x"));
    echo.wire.client.end(id);
    echo.wire.pump();
    return echo.wire.client.reply(id);
  };
  for (const char* good : {"application/grpc", "application/grpc+proto",
                           "application/grpc;charset=x", "application/grpc+json"}) {
    CHECK(with(good).status() == 0);
  }
  for (const char* bad : {"application/grpcfoo", "application/grpc-web", "application/json",
                          "text/plain", "application/grp", ""}) {
    CAPTURE(bad);
    const Reply& reply = with(bad);
    CHECK(reply.header(":status") == "415");
    CHECK(reply.status() == -1);
    CHECK(reply.ended);
  }
  CHECK(with(std::nullopt).header(":status") == "415");
  echo.check_well();
}

TEST_CASE("grpc-timeout: malformed is INTERNAL, never ignored") {
  Echo echo;
  for (const char* bad : {"", "1", "S", "1x", "123456789S", "-1S", "1.5S", "1 S"}) {
    CAPTURE(bad);
    CHECK(echo.send(grpc_message("x"), {{"grpc-timeout", bad}}).status() == 13);
  }
  // Not even when a good one follows.
  CHECK(echo.send(grpc_message("x"), {{"grpc-timeout", "bad"}, {"grpc-timeout", "1S"}}).status() ==
        13);
  for (const char* good : {"1H", "99999999H", "1S", "100000u"}) {
    CHECK(echo.send(grpc_message("x"), {{"grpc-timeout", good}}).status() == 0);
  }
  echo.check_well();
}

TEST_CASE("compressed messages") {
  Echo echo(100000);
  const std::string text = pattern(5000) + std::string(50000, 'y');
  for (const auto& [name, encoding] :
       {std::pair("gzip", Encoding::kGzip), std::pair("deflate", Encoding::kDeflate)}) {
    const Headers header = {{"grpc-encoding", name}};
    const std::string packed = compress_text(encoding, text);
    CHECK((echo.send(grpc_message(packed, 1), header).message() == text));
    CHECK((echo.send(grpc_message(text, 0), header).message() == text));  // off for this message
    CHECK(echo.send(grpc_message("garbage", 1), header).status() == 13);
    CHECK(echo.send(grpc_message("", 1), header).status() == 13);
    CHECK(echo.send(grpc_message(packed.substr(0, packed.size() / 2), 1), header).status() == 13);
    CHECK(echo.send(grpc_message(packed + "x", 1), header).status() == 13);
    const Reply& bomb =
        echo.send(grpc_message(compress_text(encoding, std::string(10 << 20, '\0')), 1), header);
    CHECK(bomb.status() == 8);
    CHECK(echo.server.idle());
  }
  CHECK(echo.send(grpc_message("x", 1), {{"grpc-encoding", "identity"}}).status() == 13);
  CHECK(echo.send(grpc_message("x", 0), {{"grpc-encoding", "identity"}}).status() == 0);
  const Reply& unknown = echo.send(grpc_message("x", 1), {{"grpc-encoding", "snappy"}});
  CHECK(unknown.status() == 12);
  CHECK(unknown.header("grpc-accept-encoding") == "identity,gzip,deflate");
  echo.check_well();
}

TEST_CASE("inflated bytes count against the budget while the call is handled") {
  Echo echo(64 << 20, 2 << 20);
  echo.handler.hold = true;
  const Headers gzip = {{"grpc-encoding", "gzip"}};
  const std::string text(1 << 20, 'x');
  const int32_t fits = echo.wire.client.open(kPath, gzip);
  echo.wire.client.send(fits, grpc_message(compress_text(Encoding::kGzip, text), 1));
  echo.wire.client.end(fits);
  echo.wire.pump();
  REQUIRE(echo.handler.records.size() == 1);
  CHECK((echo.handler.records[0].message == text));
  CHECK(echo.server.budget.used() >= text.size());
  // 16 MiB out of less than 1: refused for want of budget, well under the message limit.
  const Reply& bomb =
      echo.send(grpc_message(compress_text(Encoding::kGzip, std::string(16 << 20, 'x')), 1), gzip);
  CHECK(bomb.status() == 8);
  ScriptedHandler::answer(*echo.server.calls.find(echo.handler.records[0].id), "");
  echo.handler.hold = false;
  echo.check_well();
}

TEST_CASE("a bomb is refused long before the method's limit; a large message that is one is not") {
  Echo echo(512 << 20, 512 << 20);
  const Headers gzip = {{"grpc-encoding", "gzip"}};
  const auto status = [&](const std::string& text) {
    return echo.send(grpc_message(compress_text(Encoding::kGzip, text), 1), gzip).status();
  };
  CHECK(status(std::string(16 << 20, 'x')) == 0);
  CHECK(status(std::string((16 << 20) + 1, 'x')) == 8);
  CHECK(echo.handler.records.size() == 1);
  // One byte in sixteen is any: an honest tensor.
  std::string honest(24 << 20, 'x');
  std::mt19937 random(7);
  for (std::size_t at = 0; at < honest.size(); at += 16) honest[at] = static_cast<char>(random());
  CHECK(status(honest) == 0);
  echo.check_well();
}

TEST_CASE("a handful of bombs ends the connection") {
  Echo echo(512 << 20, 512 << 20);
  const std::string bomb =
      grpc_message(compress_text(Encoding::kGzip, std::string(17 << 20, 'x')), 1);
  int refused = 0;
  bool open = true;
  while (open && refused < 10) {
    const int32_t id = echo.wire.client.open(kPath, {{"grpc-encoding", "gzip"}});
    echo.wire.client.send(id, bomb);
    echo.wire.client.end(id);
    open = echo.wire.pump();
    ++refused;
  }
  CHECK_FALSE(open);
  CHECK(refused == 5);
}

TEST_CASE("request metadata: order, duplicates, any bytes; gRPC's own is left out") {
  Echo echo;
  const Headers sent = {
      {"b", "1"},           {"a", "2"}, {"b", "3"}, {"empty", ""}, {"bytes", "\xc3\xbc\xff"},
      {"x-bin", "AAE,Ag=="}};
  Headers extra = sent;
  extra.insert(extra.begin() + 2, {"grpc-unknown-thing", "tolerated"});
  extra.emplace_back("grpc-timeout", "1H");
  CHECK(echo.send(grpc_message("x"), extra).status() == 0);
  REQUIRE(echo.handler.records.size() == 1);
  CHECK(echo.handler.records[0].metadata == sent);
  echo.check_well();
}

TEST_CASE("response metadata, as much as there is, in headers and trailers") {
  Echo echo;
  echo.handler.hold = true;
  Metadata initial;
  Metadata trailing;
  for (int i = 0; i < 100; ++i) {
    initial.emplace_back("h" + std::to_string(i), std::to_string(i));
    trailing.emplace_back("t" + std::to_string(i), std::to_string(i));
  }
  const int32_t id = echo.wire.client.call(kPath, "x");
  const int32_t failing = echo.wire.client.call(kPath, "x");
  echo.wire.pump();
  ScriptedHandler::answer(*echo.server.calls.find(echo.handler.records.at(0).id), "y", &initial,
                          &trailing);
  echo.server.calls.find(echo.handler.records.at(1).id)
      ->fail(Status::not_found("no such thing"), &trailing);
  echo.wire.pump();
  const Reply& reply = echo.wire.client.reply(id);
  CHECK(reply.message() == "y");
  const Reply& failed = echo.wire.client.reply(failing);
  CHECK(failed.trailers_only());
  CHECK(failed.status() == 5);
  for (int i = 0; i < 100; ++i) {
    CHECK(reply.header("h" + std::to_string(i)) == std::to_string(i));
    CHECK(reply.trailer("t" + std::to_string(i)) == std::to_string(i));
    CHECK(failed.header("t" + std::to_string(i)) == std::to_string(i));
  }
  echo.handler.hold = false;
  echo.check_well();
}

TEST_CASE("a status that says when to try again has grpc-retry-pushback-ms in its trailers") {
  Echo echo;
  echo.handler.hold = true;
  const int32_t refused = echo.wire.client.call(kPath, "x");
  const int32_t failed = echo.wire.client.call(kPath, "x");
  echo.wire.pump();
  echo.server.calls.find(echo.handler.records.at(0).id)
      ->fail(Status::resource_exhausted("later").with_pushback(std::chrono::milliseconds(40)));
  echo.server.calls.find(echo.handler.records.at(1).id)->fail(Status::resource_exhausted("never"));
  echo.wire.pump();
  CHECK(echo.wire.client.reply(refused).status() == 8);
  CHECK(echo.wire.client.reply(refused).header("grpc-retry-pushback-ms") == "40");
  CHECK(echo.wire.client.reply(failed).status() == 8);
  CHECK_FALSE(echo.wire.client.reply(failed).header("grpc-retry-pushback-ms"));
  echo.handler.hold = false;
  echo.check_well();
}

TEST_CASE("grpc-message is percent-encoded, and never too long to be sent") {
  Echo echo;
  echo.handler.hold = true;
  const auto fail_with = [&](std::string message) -> const Reply& {
    const int32_t id = echo.wire.client.call(kPath, "x");
    echo.wire.pump();
    echo.server.calls.find(echo.handler.records.back().id)
        ->fail(Status::unavailable(std::move(message)));
    echo.wire.pump();
    return echo.wire.client.reply(id);
  };
  CHECK(fail_with("\t\xc3\xbc 100%\n").status_message() == "%09%C3%BC 100%25%0A");
  CHECK(fail_with("").status() == 14);
  for (const std::size_t size : {5000, 30000, 200000}) {
    for (const char* unit : {"x", "\xc3\xbc", "\xe2\x82\xac"}) {
      std::string text;
      while (text.size() < size) text += unit;
      const Reply& reply = fail_with(text);
      CHECK(reply.closed);
      CHECK(reply.status() == 14);
      CHECK(reply.status_message().size() <= 8192);  // what clients take at least
      CHECK(reply.status_message().size() >= 3000);
      CHECK(reply.status_message().ends_with("..."));
      // Cut between characters: every piece is whole.
      const std::string shown = percent_encode(unit);
      const std::size_t kept = reply.status_message().size() - 3;
      CHECK(kept % shown.size() == 0);
    }
  }
  echo.handler.hold = false;
  echo.check_well();
}

TEST_CASE("response metadata that is too large to send ends the call, it does not hang") {
  Echo echo;
  echo.handler.hold = true;
  const Metadata huge = {{"big", std::string(80000, 'x')}};
  for (const bool initial : {true, false}) {
    const int32_t id = echo.wire.client.call(kPath, "x");
    echo.wire.pump();
    ScriptedHandler::answer(*echo.server.calls.find(echo.handler.records.back().id), "y",
                            initial ? &huge : nullptr, initial ? nullptr : &huge);
    CHECK(echo.wire.pump());
    CHECK(echo.wire.client.reply(id).reset == NGHTTP2_INTERNAL_ERROR);
    CHECK(echo.wire.connection->open_streams() == 0);
  }
  echo.handler.hold = false;
  echo.check_well();
}

TEST_CASE("request headers over the limit: RESOURCE_EXHAUSTED, and the connection is kept") {
  Echo echo;
  CHECK(echo.send(grpc_message("x"), {{"k", std::string(15000, 'v')}}).status() == 0);
  for (const std::size_t size : {17000, 30000, 60000}) {
    CHECK(echo.send(grpc_message("x"), {{"k", std::string(size, 'v')}}).status() == 8);
  }
  Headers many;
  for (int i = 0; i < 600; ++i) many.emplace_back("k" + std::to_string(i), "v");
  CHECK(echo.send(grpc_message("x"), many).status() == 8);
  CHECK(echo.handler.records.size() == 1);
  echo.check_well();
}

TEST_CASE("request trailers end the request and are not metadata") {
  Echo echo;
  const int32_t id = echo.wire.client.open(kPath);
  echo.wire.client.send(id, grpc_message("x"));
  echo.wire.pump();
  // HEADERS(END_STREAM | END_HEADERS) with one literal field "t: v".
  CHECK(echo.wire.feed(http2_frame(1, 0x5, static_cast<uint32_t>(id), std::string("\0\1t\1v", 5))));
  echo.wire.pump();
  CHECK(echo.wire.client.reply(id).status() == 0);
  CHECK(echo.handler.records.at(0).metadata.empty());
}

TEST_CASE("a path that is no text is told as text") {
  Echo echo;
  const int32_t id = echo.wire.client.open("/test.Echo/\xd6\xff%", {});
  echo.wire.client.end(id);
  REQUIRE(echo.wire.pump());
  CHECK(echo.wire.client.reply(id).status() == 12);
  CHECK(echo.wire.client.reply(id).header("grpc-message") == "Method not found: /test.Echo/??%25");
  echo.check_well();
}
