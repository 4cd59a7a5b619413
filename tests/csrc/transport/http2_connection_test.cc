// Http2Connection alone: bodies and windows, ends of streams, shutdown. A stand-in for rpc/ records
// what the transport tells it.
#include "transport/http2_connection.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "recorder.h"
#include "wire_client.h"

using namespace headrace;
using namespace headrace::test;

namespace {

constexpr HeaderField kStatus{":status", "200", true};
const std::array<HeaderField, 1> kHeaders = {kStatus};
const std::array<HeaderField, 1> kTrailers = {{{"grpc-status", "0", true}}};

void send_all(Stream& stream, const std::vector<std::string>& pieces) {
  stream.send_headers(kHeaders);
  for (const std::string& piece : pieces) stream.send_body(piece_of(piece));
  stream.send_trailers(kTrailers);
}

std::string joined(const std::vector<std::string>& pieces) {
  std::string all;
  for (const std::string& piece : pieces) all += piece;
  return all;
}

struct Fixture {
  explicit Fixture(const Http2Options& options = {}, const ClientOptions& client = {})
      : wire(acceptor, options, client) {}
  // An open request that is being answered; the request has ended unless told.
  Recorder& start(bool end = true) {
    id = wire.client.open("/x", {}, end);
    wire.pump();
    return *acceptor.recorders.back();
  }
  const Reply& reply() const { return wire.client.reply(id); }

  RecordingAcceptor acceptor;
  Wire wire;
  int32_t id = 0;
};

ClientOptions with_window(uint32_t bytes) {
  ClientOptions options;
  options.settings = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, bytes}};
  options.auto_window_update = false;
  return options;
}

}  // namespace

TEST_CASE("the settings and windows that clients see") {
  Http2Options options;
  options.limits.max_concurrent_streams = 77;
  options.limits.max_header_list_bytes = 12345;
  options.stream_window_bytes = 300000;
  options.connection_window_bytes = 4000000;
  options.max_frame_bytes = 20000;
  Fixture fixture(options);
  CHECK(fixture.wire.pump());
  TestClient& client = fixture.wire.client;
  CHECK(client.server_setting(NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS) == 77);
  CHECK(client.server_setting(NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE) == 12345);
  CHECK(client.server_setting(NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE) == 300000);
  CHECK(client.server_setting(NGHTTP2_SETTINGS_MAX_FRAME_SIZE) == 20000);
  CHECK(client.server_connection_window() == 4000000);
  CHECK(client.settings_acks == 1);
}

TEST_CASE("a handler hears of its stream in order") {
  Fixture fixture;
  const int32_t id = fixture.wire.client.open("/path", {{"k", "v"}});
  fixture.wire.client.send(id, "ab");
  fixture.wire.client.send(id, "cd");
  fixture.wire.client.end(id);
  fixture.wire.pump();
  Recorder& recorder = fixture.acceptor.only();
  CHECK(recorder.headers == TestClient::grpc_headers("/path", {{"k", "v"}}));
  CHECK(recorder.body == "abcd");
  CHECK(recorder.headers_ends == 1);
  CHECK(recorder.ends == 1);
  CHECK_FALSE(recorder.too_large);
  CHECK(recorder.closes == 0);
  CHECK(recorder.peer == "ipv4:192.0.2.1:5000");
  send_all(*recorder.stream, {"answer"});
  fixture.wire.pump();
  CHECK(fixture.wire.client.reply(id).body == "answer");
  CHECK(recorder.closes == 1);
  CHECK(recorder.error == Http2Error::kNoError);
  CHECK(fixture.wire.connection->open_streams() == 0);
}

TEST_CASE("bodies of any pieces arrive whole through windows of any size") {
  std::mt19937 random(23);
  const std::vector<std::size_t> kEdges = {1,     5,     8191,  8192,  8193, 16383,
                                           16384, 16385, 32768, 65535, 65536};
  for (int round = 0; round < 150; ++round) {
    std::vector<std::string> pieces;
    for (unsigned i = 0; i < 1 + random() % 6; ++i) {
      const std::size_t size =
          random() % 2 == 0 ? kEdges[random() % kEdges.size()] : random() % 40000;
      pieces.push_back(pattern(size, random()));
    }
    const std::string all = joined(pieces);
    CAPTURE(round);
    CAPTURE(all.size());
    const auto window = static_cast<uint32_t>(random() % 3 == 0 ? 0 : random() % 70000);
    Http2Options options;
    options.max_unsent_bytes = random() % 2 == 0 ? 1 << 20 : 10000;
    Fixture fixture(options, with_window(window));
    fixture.wire.write_at_once = random() % 2 == 0 ? SIZE_MAX : 1 + random() % 5000;
    Recorder& recorder = fixture.start();
    // All at once, or piece by piece with the client reading between.
    if (random() % 2 == 0) {
      send_all(*recorder.stream, pieces);
    } else {
      recorder.stream->send_headers(kHeaders);
      for (const std::string& piece : pieces) {
        recorder.stream->send_body(piece_of(piece));
        if (random() % 2 == 0) fixture.wire.pump();
      }
      if (random() % 2 == 0) fixture.wire.pump();
      recorder.stream->send_trailers(kTrailers);
    }
    fixture.wire.pump();
    std::size_t credit = window;
    while (!fixture.reply().ended) {
      REQUIRE(fixture.reply().body.size() ==
              std::min(all.size(), credit));  // neither more nor less
      const std::size_t more = 1 + random() % 50000;
      fixture.wire.client.credit(fixture.id, static_cast<int32_t>(more));
      credit += more;
      REQUIRE(fixture.wire.pump());
    }
    REQUIRE(fixture.reply().body == all);
    REQUIRE(fixture.reply().trailer("grpc-status") == "0");
    REQUIRE(recorder.closes == 1);
    REQUIRE(fixture.wire.client_ok);
  }
}

TEST_CASE("a window of zero, opened and closed by SETTINGS") {
  Fixture fixture({}, with_window(0));
  Recorder& recorder = fixture.start();
  const std::string text = pattern(100000);
  send_all(*recorder.stream, {text});
  fixture.wire.pump();
  CHECK(fixture.reply().header_blocks == 1);
  CHECK(fixture.reply().body.empty());
  CHECK(recorder.stream->unsent() == text.size());
  fixture.wire.client.set_initial_window(10);
  fixture.wire.pump();
  CHECK(fixture.reply().body.size() == 10);
  fixture.wire.client.set_initial_window(5);  // now the window is -5
  fixture.wire.client.credit(fixture.id, 5);
  fixture.wire.pump();
  CHECK(fixture.reply().body.size() == 10);
  fixture.wire.client.set_initial_window(200000);
  fixture.wire.pump();
  CHECK((fixture.reply().body == text));
  CHECK(recorder.closes == 1);
}

TEST_CASE("large pieces are sent by reference and released once they left") {
  Fixture fixture({}, with_window(30000));
  Recorder& recorder = fixture.start();
  BufferRef owner = buffer_of(pattern(50000));
  recorder.stream->send_headers(kHeaders);
  recorder.stream->send_body({owner, owner.span()});
  recorder.stream->send_trailers(kTrailers);
  OutputQueue output;
  CHECK(fixture.wire.connection->drain(output));
  CHECK(output.size() > 30000);
  std::array<struct iovec, 16> vectors;
  const int n = output.front(vectors.data(), 16);
  const auto* begin = reinterpret_cast<const char*>(owner.data());
  CHECK(std::any_of(vectors.begin(), vectors.begin() + n,
                    [&](const struct iovec& v) { return v.iov_base == begin; }));
  fixture.wire.client.input(take_all(output));
  CHECK_FALSE(owner.unique());
  SUBCASE("the client takes the rest") {
    fixture.wire.client.credit(fixture.id, 30000);
    fixture.wire.pump();
    CHECK(fixture.reply().body == owner.view());
  }
  SUBCASE("the client resets") {
    fixture.wire.client.reset(fixture.id);
    fixture.wire.pump();
    CHECK(recorder.error == Http2Error::kCancel);
  }
  SUBCASE("the connection is lost") {
    fixture.wire.lose();
    CHECK(recorder.error == Http2Error::kCancel);
  }
  CHECK(recorder.closes == 1);
  CHECK(owner.unique());
}

TEST_CASE("drain() stops at its bound, also for pieces by reference") {
  Http2Options options;
  options.max_unsent_bytes = 64 * 1024;
  for (const std::size_t piece : {std::size_t{1000}, std::size_t{4 << 20}}) {
    Fixture fixture(options, with_window(0x7fffffff));
    Recorder& recorder = fixture.start();
    std::vector<std::string> pieces((4 << 20) / piece, pattern(piece));
    send_all(*recorder.stream, pieces);
    fixture.wire.pump();
    CHECK((fixture.reply().body == joined(pieces)));
    CHECK(fixture.wire.largest_drain >= 64 * 1024);
    CHECK(fixture.wire.largest_drain <= 64 * 1024 + 16384 + 9);
  }
}

TEST_CASE("a response while the client still sends: all of it, then RST_STREAM(NO_ERROR)") {
  for (const bool body : {true, false}) {
    Fixture fixture;
    Recorder& recorder = fixture.start(false);
    if (body) {
      send_all(*recorder.stream, {pattern(20000)});
    } else {
      recorder.stream->send_headers_only(kHeaders);
    }
    fixture.wire.client.send(fixture.id, std::string(100000, 'x'));
    fixture.wire.pump();
    CHECK(fixture.reply().ended);
    CHECK(fixture.reply().body.size() == (body ? 20000 : 0));
    CHECK(fixture.reply().reset == NGHTTP2_NO_ERROR);
    CHECK(recorder.closes == 1);
    CHECK(fixture.wire.connection->open_streams() == 0);
  }
}

TEST_CASE("on_output is called for what is sent outside feed(), and not from within") {
  Fixture fixture;
  Recorder& recorder = fixture.start();
  CHECK_FALSE(fixture.wire.woken);
  recorder.stream->send_headers_only(kHeaders);
  CHECK(fixture.wire.woken);
}

TEST_CASE("reset by the server") {
  Fixture fixture;
  Recorder& recorder = fixture.start();
  recorder.stream->send_headers(kHeaders);
  recorder.stream->send_body(piece_of("partial"));
  fixture.wire.pump();
  recorder.stream->reset(Http2Error::kInternalError);
  fixture.wire.pump();
  CHECK(fixture.reply().body == "partial");
  CHECK(fixture.reply().reset == NGHTTP2_INTERNAL_ERROR);
  CHECK(recorder.closes == 1);
}

TEST_CASE("a stream ended by the client takes nothing of the next one with it") {
  Fixture fixture;
  for (int round = 0; round < 50; ++round) {
    // The answer of the first is queued when its RST comes together with the second request.
    Recorder& first = fixture.start();
    const int32_t first_id = fixture.id;
    send_all(*first.stream, {pattern(30000, 1), "tail"});
    fixture.wire.client.reset(first_id);
    const int32_t second_id = fixture.wire.client.open("/second", {}, true);
    fixture.wire.feed(fixture.wire.client.output());
    Recorder& second = *fixture.acceptor.recorders.back();
    CHECK(first.closes == 1);
    CHECK(second.path() == "/second");
    CHECK(second.stream->id() == second_id);
    send_all(*second.stream, {"second"});
    fixture.wire.pump();
    REQUIRE(fixture.wire.client.reply(second_id).body == "second");
    REQUIRE(second.closes == 1);
  }
}

TEST_CASE("a connection destroyed with streams in every state closes each once") {
  Fixture fixture({}, with_window(100));
  Recorder& open = fixture.start(false);
  Recorder& waiting = fixture.start();
  Recorder& answered = fixture.start();
  send_all(*answered.stream, {pattern(50000)});
  Recorder& half = fixture.start();
  half.stream->send_headers(kHeaders);
  Recorder& done = fixture.start();
  send_all(*done.stream, {"x"});
  Recorder& refused = fixture.start(false);
  refused.stream->send_headers_only(kHeaders);
  fixture.wire.pump();
  CHECK(fixture.wire.connection->open_streams() == 4);
  send_all(*waiting.stream, {"never sent"});
  fixture.wire.lose();
  for (const Recorder* recorder : {&open, &waiting, &answered, &half, &done, &refused}) {
    CHECK(recorder->closes == 1);
  }
}

TEST_CASE("graceful shutdown: GOAWAY(2^31-1), GOAWAY(last), the rest finishes, then the end") {
  Fixture fixture;
  TestClient& client = fixture.wire.client;
  Recorder& first = fixture.start();
  const int32_t first_id = fixture.id;
  fixture.wire.connection->begin_shutdown();
  CHECK(fixture.wire.woken);
  const int32_t second_id = client.open("/second", {}, true);
  CHECK(fixture.wire.pump());
  REQUIRE(client.goaways.size() == 1);
  CHECK(client.goaways[0].last_stream == 0x7fffffff);
  CHECK(client.goaways[0].error == NGHTTP2_NO_ERROR);
  REQUIRE(fixture.acceptor.recorders.size() == 2);  // still served
  Recorder& second = *fixture.acceptor.recorders.back();
  CHECK(second.ends == 1);

  fixture.wire.connection->finish_shutdown();
  CHECK(fixture.wire.pump());
  REQUIRE(client.goaways.size() == 2);
  CHECK(client.goaways[1].last_stream == second_id);
  // Too late: ignored, for another server to answer. POST http / :authority s
  CHECK(fixture.wire.feed(
      http2_frame(1, 0x5, static_cast<uint32_t>(second_id) + 2, "\x83\x86\x84\x01\x01s")));
  CHECK(fixture.acceptor.recorders.size() == 2);

  send_all(*second.stream, {"two"});
  CHECK(fixture.wire.pump());
  CHECK_FALSE(fixture.wire.connection->finished());
  send_all(*first.stream, {"one"});
  CHECK_FALSE(fixture.wire.pump());
  CHECK(fixture.wire.connection->finished());
  CHECK(client.reply(first_id).body == "one");
  CHECK(client.reply(second_id).body == "two");
  CHECK(first.closes == 1);
  CHECK(second.closes == 1);
}

TEST_CASE("shutdown without streams ends at once") {
  Fixture fixture;
  fixture.wire.pump();
  fixture.wire.connection->begin_shutdown();
  CHECK(fixture.wire.pump());
  fixture.wire.connection->finish_shutdown();
  CHECK_FALSE(fixture.wire.pump());
  CHECK(fixture.wire.connection->finished());
}
