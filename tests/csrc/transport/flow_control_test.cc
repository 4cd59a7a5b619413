// Windows that a handler holds, and bodies that a client does not take.
#include <doctest/doctest.h>

#include <string>

#include "recorder.h"
#include "transport/http2_connection.h"
#include "wire_client.h"

using namespace headrace;
using namespace headrace::test;

namespace {

constexpr std::size_t kWindow = 256 * 1024;
const HeaderField kOk{":status", "200", true};

// Bytes that WINDOW_UPDATE frames gave back on `stream`.
std::size_t given_back(std::string_view bytes, uint32_t stream) {
  std::size_t total = 0;
  for (const Frame& frame : parse_frames(bytes)) {
    if (frame.type == NGHTTP2_WINDOW_UPDATE && frame.stream == stream) total += frame.number(0);
  }
  return total;
}

// Half a message exchange: the client's bytes go in, the server's come out and are kept.
std::string exchange(Wire& wire) {
  std::string all;
  for (;;) {
    const std::string request = wire.client.output();
    wire.feed(request);
    const std::string answer = wire.drain();
    wire.client.input(answer);
    all += answer;
    if (request.empty() && answer.empty()) return all;
  }
}

ClientOptions closed_windows() {
  ClientOptions options;
  options.settings = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 0}};
  options.auto_window_update = false;
  return options;
}

}  // namespace

TEST_CASE("a held stream's window opens as it is consumed; the connection's at once") {
  RecordingAcceptor acceptor;
  Wire wire(acceptor);
  const int32_t id = wire.client.open("/x");
  exchange(wire);
  Stream& stream = *acceptor.only().stream;
  stream.hold_window();
  wire.client.send(id, pattern(20 << 20));
  std::string sent = exchange(wire);
  CHECK(acceptor.only().body.size() == kWindow);
  CHECK(given_back(sent, static_cast<uint32_t>(id)) == 0);
  // Below half the library keeps small updates to itself; a whole window never.
  stream.consume(kWindow);
  sent = exchange(wire);
  CHECK(given_back(sent, static_cast<uint32_t>(id)) == kWindow);
  CHECK(acceptor.only().body.size() == 2 * kWindow);
  std::size_t back = given_back(sent, 0);
  while (acceptor.only().body.size() < 20 << 20) {
    stream.consume(kWindow);
    sent = exchange(wire);
    back += given_back(sent, 0);
    REQUIRE_FALSE(sent.empty());
  }
  CHECK(back >= 8 << 20);  // else the connection's 8 MiB had stopped it
  CHECK((acceptor.only().body == pattern(20 << 20)));
}

TEST_CASE("a window that is not held, and one that grows") {
  RecordingAcceptor acceptor;
  Wire wire(acceptor);
  const int32_t id = wire.client.open("/x");
  exchange(wire);
  Stream& stream = *acceptor.only().stream;
  stream.grow_window(1 << 20);
  stream.grow_window(1000);  // never back
  std::string sent = exchange(wire);
  CHECK(given_back(sent, static_cast<uint32_t>(id)) == (1 << 20) - kWindow);
  stream.hold_window();
  wire.client.send(id, pattern(3 << 20));
  exchange(wire);
  CHECK(acceptor.only().body.size() == 1 << 20);
}

TEST_CASE("writable: false at the limit, told once below half of it") {
  RecordingAcceptor acceptor;
  Http2Options options;
  options.max_stream_queued_bytes = 100000;
  Wire wire(acceptor, options, closed_windows());
  const int32_t id = wire.client.open("/x");
  wire.pump();
  Recorder& recorder = acceptor.only();
  Stream& stream = *recorder.stream;
  stream.send_headers({&kOk, 1});
  stream.send_body(piece_of(pattern(99999)));
  CHECK(stream.writable());
  stream.send_body(piece_of("x"));
  CHECK_FALSE(stream.writable());
  CHECK_FALSE(stream.writable());
  CHECK(stream.unsent() == 100000);
  CHECK(wire.connection->unsent() == 100000);
  wire.pump();
  CHECK(recorder.writables == 0);
  wire.client.credit(id, 50000);
  wire.pump();
  CHECK(stream.unsent() == 50000);
  CHECK(recorder.writables == 0);
  wire.client.credit(id, 1);
  wire.pump();
  CHECK(recorder.writables == 1);
  wire.client.credit(id, 20000);
  wire.pump();
  CHECK(recorder.writables == 1);  // nobody asked again
  CHECK(stream.writable());
  stream.send_body(piece_of(pattern(200000)));
  CHECK_FALSE(stream.writable());
  SUBCASE("the stream ends while it waits") {
    wire.client.reset(id);
    wire.pump();
    CHECK(recorder.closes == 1);
  }
  SUBCASE("the body is dropped") {
    stream.drop_body();
    CHECK(stream.unsent() == 0);
    stream.reset(Http2Error::kCancel);
    wire.pump();
    CHECK(wire.client.reply(id).reset == NGHTTP2_CANCEL);
  }
  CHECK(wire.connection->unsent() == 0);
  // Its memory serves the next stream, which waits for nothing.
  const int32_t next = wire.client.open("/y");
  wire.pump();
  REQUIRE(acceptor.recorders.size() == 2);
  Stream& reused = *acceptor.recorders[1]->stream;
  reused.send_headers({&kOk, 1});
  reused.send_body(piece_of("body"));
  const HeaderField trailer{"grpc-status", "0", true};
  reused.send_trailers({&trailer, 1});
  wire.client.credit(next, 1000);
  wire.pump();
  CHECK(wire.client.reply(next).body == "body");
  CHECK(acceptor.recorders[1]->writables == 0);
}

TEST_CASE("writable: a stream waits for its connection's share too") {
  RecordingAcceptor acceptor;
  Http2Options options;
  options.max_stream_queued_bytes = 100000;
  options.max_connection_queued_bytes = 150000;
  Wire wire(acceptor, options, closed_windows());
  const int32_t first = wire.client.open("/1");
  wire.client.open("/2");
  wire.pump();
  for (const auto& recorder : acceptor.recorders) recorder->stream->send_headers({&kOk, 1});
  acceptor.recorders[0]->stream->send_body(piece_of(pattern(140000)));
  Stream& second = *acceptor.recorders[1]->stream;
  CHECK(second.writable());
  second.send_body(piece_of(pattern(10000)));
  CHECK_FALSE(second.writable());
  wire.client.credit(first, 70000);
  wire.pump();
  CHECK(wire.connection->unsent() == 80000);
  CHECK(acceptor.recorders[1]->writables == 0);
  wire.client.reset(first);
  wire.pump();
  CHECK(wire.connection->unsent() == 10000);
  CHECK(acceptor.recorders[1]->writables == 1);
  CHECK(acceptor.recorders[0]->writables == 0);
}
