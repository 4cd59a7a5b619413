// Clients that break RFC 9113, and the parts of it that gRPC itself never uses.
#include <doctest/doctest.h>

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "recorder.h"
#include "transport/http2_connection.h"
#include "wire_client.h"

using namespace headrace;
using namespace headrace::test;

namespace {

const std::array<HeaderField, 1> kHeaders = {{{":status", "200", true}}};

// After the preface and SETTINGS went both ways.
struct Connected {
  explicit Connected(const Http2Options& options = {}) : wire(acceptor, options) { wire.pump(); }
  // The connection still takes a request and answers it.
  bool serves() {
    const std::size_t before = acceptor.recorders.size();
    const int32_t id = wire.client.open("/works", {}, true);
    if (!wire.pump() || acceptor.recorders.size() != before + 1) return false;
    acceptor.recorders.back()->stream->send_headers_only(kHeaders);
    return wire.pump() && wire.client.reply(id).ended;
  }
  // Feeds bytes that end the connection; answers with GOAWAY's error.
  uint32_t broken_by(std::string_view bytes) {
    wire.feed(bytes);
    CHECK_FALSE(wire.pump());
    REQUIRE_FALSE(wire.client.goaways.empty());
    return wire.client.goaways.back().error;
  }

  RecordingAcceptor acceptor;
  Wire wire;
};

// HPACK literals without indexing, names and values under 127 bytes.
std::string literal(std::string_view name, std::string_view value) {
  std::string out(1, '\0');
  out += static_cast<char>(name.size());
  out += name;
  out += static_cast<char>(value.size());
  out += value;
  return out;
}

const std::string kRequest = "\x83\x86\x84" + literal(":authority", "s");  // POST http /

}  // namespace

TEST_CASE("PING is answered verbatim, unknown frames and SETTINGS are ignored") {
  Connected to;
  to.wire.client.ping("pingpong");
  to.wire.pump();
  CHECK(to.wire.client.ping_acks == std::vector<std::string>{"pingpong"});
  to.wire.feed(http2_frame(0xfa, 0xff, 0, "whatever"));
  to.wire.feed(http2_frame(0xfb, 0, 77, ""));
  CHECK(to.serves());
  to.wire.feed(http2_frame(4, 0, 0, std::string("\xf0\x00\x00\x00\x00\x01", 6)));
  const std::vector<Frame> frames = parse_frames(to.wire.drain());
  REQUIRE(frames.size() == 1);
  CHECK(frames[0].type == NGHTTP2_SETTINGS);
  CHECK(frames[0].flags == NGHTTP2_FLAG_ACK);
}

TEST_CASE("GOAWAY from the client: its streams finish, then the connection does") {
  Connected to;
  const int32_t id = to.wire.client.open("/x", {}, true);
  to.wire.pump();
  to.wire.client.goaway();
  CHECK(to.wire.pump());
  to.acceptor.only().stream->send_headers_only(kHeaders);
  CHECK_FALSE(to.wire.pump());
  CHECK(to.wire.client.reply(id).ended);
  CHECK(to.wire.connection->finished());
}

TEST_CASE("what is not HTTP/2 is turned away") {
  for (const std::string& garbage :
       {std::string("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), std::string(100, '\0'), pattern(5000),
        std::string("PRI * HTTP/2.0\r\n\r\nSM\r\n\rx")}) {
    RecordingAcceptor acceptor;
    Wire wire(acceptor);
    CHECK_FALSE(wire.feed(garbage));
    CHECK_FALSE(wire.feed("more"));
    wire.drain();
    CHECK(wire.broken);
    CHECK(acceptor.recorders.empty());
  }
  // A good preface, then noise.
  RecordingAcceptor acceptor;
  Wire wire(acceptor);
  wire.feed("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
  wire.feed(pattern(5000));
  wire.drain();
  CHECK((wire.broken || wire.connection->finished()));
}

TEST_CASE("malformed requests: a stream error, and the connection goes on") {
  const std::string post = "\x83\x86";  // POST http
  for (const auto& bad : std::vector<std::pair<std::string, std::string>>{
           {"no path", post},
           {"no method", std::string("\x86\x84")},
           {"two paths", kRequest + "\x84"},
           {"pseudo-header after a field", "\x83\x86" + literal("a", "b") + "\x84"},
           {"response pseudo-header", kRequest + "\x88"},
           {"unknown pseudo-header", kRequest + literal(":new", "x")},
           {"empty path", post + literal(":path", "")},
           {"upper case", kRequest + literal("Name", "x")},
           {"connection", kRequest + literal("connection", "close")},
           {"te other than trailers", kRequest + literal("te", "gzip")},
           {"NUL", kRequest + literal("a", std::string_view("x\0y", 3))},
           {"CR LF", kRequest + literal("a", "x\r\ny: z")},
           {"LF in a name", kRequest + literal("a\nb", "x")}}) {
    CAPTURE(bad.first);
    Connected to;
    to.wire.feed(http2_frame(1, 0x5, 1, bad.second));
    const std::vector<Frame> frames = parse_frames(to.wire.drain());
    REQUIRE(frames.size() == 1);
    CHECK(frames[0].type == NGHTTP2_RST_STREAM);
    CHECK(frames[0].stream == 1);
    CHECK(frames[0].number(0) == NGHTTP2_PROTOCOL_ERROR);
    for (const auto& recorder : to.acceptor.recorders) {
      CHECK(recorder->headers_ends == 0);  // never delivered
      CHECK(recorder->closes == 1);
    }
    CHECK(to.wire.connection->open_streams() == 0);
    to.acceptor.recorders.clear();
    to.wire.feed(http2_frame(1, 0x5, 3, kRequest));
    CHECK(to.acceptor.only().ends == 1);
  }
}

TEST_CASE("a malformed request is answered with RST_STREAM(PROTOCOL_ERROR)") {
  Connected to;
  const int32_t id = to.wire.client.open_with(
      {{":method", "POST"}, {":scheme", "http"}, {":path", "/"}, {"connection", "close"}});
  CHECK(to.wire.pump());
  CHECK(to.wire.client.reply(id).reset == NGHTTP2_PROTOCOL_ERROR);
  CHECK(to.serves());
}

TEST_CASE("a body that contradicts content-length is a stream error") {
  Connected to;
  const int32_t id = to.wire.client.open("/x", {{"content-length", "5"}});
  to.wire.client.send(id, "only");
  to.wire.client.end(id);
  CHECK(to.wire.pump());
  CHECK(to.wire.client.reply(id).reset == NGHTTP2_PROTOCOL_ERROR);
  CHECK(to.acceptor.only().ends == 0);
  CHECK(to.acceptor.only().closes == 1);
  CHECK(to.serves());
}

TEST_CASE("violations that end the connection") {
  const auto error = [](const std::string& bytes) {
    Connected to;
    return to.broken_by(bytes);
  };
  CHECK(error(http2_frame(0, 0, 0, "data on stream 0")) == NGHTTP2_PROTOCOL_ERROR);
  CHECK(error(http2_frame(1, 0x5, 0, kRequest)) == NGHTTP2_PROTOCOL_ERROR);
  CHECK(error(http2_frame(1, 0x5, 2, kRequest)) == NGHTTP2_PROTOCOL_ERROR);
  CHECK(error(http2_frame(0, 0, 1, "idle")) == NGHTTP2_PROTOCOL_ERROR);
  CHECK(error(http2_frame(5, 0x4, 1, std::string("\0\0\0\2", 4) + kRequest)) ==
        NGHTTP2_PROTOCOL_ERROR);
  CHECK(error(http2_frame(1, 0x5, 1, "\xff\xff\xff\xff\xff\xff")) == NGHTTP2_COMPRESSION_ERROR);
  CHECK(error(http2_frame(6, 0, 0, "short")) == NGHTTP2_FRAME_SIZE_ERROR);
  CHECK(error(http2_frame(4, 0, 1, "")) == NGHTTP2_PROTOCOL_ERROR);
  CHECK(error(http2_frame(4, 0, 0, "12345")) == NGHTTP2_FRAME_SIZE_ERROR);
  CHECK(error(http2_frame(8, 0, 0, std::string(4, '\0'))) == NGHTTP2_PROTOCOL_ERROR);
  CHECK(error(http2_frame(8, 0, 0, "\x7f\xff\xff\xff")) == NGHTTP2_FLOW_CONTROL_ERROR);
  CHECK(error(http2_frame(1, 0x1, 1, kRequest) + http2_frame(0, 0, 1, "x")) ==
        NGHTTP2_PROTOCOL_ERROR);
  // Larger than SETTINGS_MAX_FRAME_SIZE.
  CHECK(error(std::string("\x01\x00\x01\x00\x00\x00\x00\x00\x01", 9)) == NGHTTP2_FRAME_SIZE_ERROR);
}

TEST_CASE("handlers of a broken connection hear of its end once") {
  Connected to;
  to.wire.client.open("/x");
  to.wire.client.open("/y", {}, true);
  to.wire.pump();
  CHECK(to.broken_by(http2_frame(0, 0, 0, "x")) == NGHTTP2_PROTOCOL_ERROR);
  to.wire.lose();
  for (const auto& recorder : to.acceptor.recorders) CHECK(recorder->closes == 1);
  CHECK(to.acceptor.recorders.size() == 2);
}

TEST_CASE("a stream window that is overrun ends the stream at least") {
  Http2Options options;
  options.stream_window_bytes = 0;
  Connected to(options);
  const int32_t id = to.wire.client.open("/x");
  to.wire.pump();
  to.wire.feed(http2_frame(0, 0, static_cast<uint32_t>(id), "uninvited"));
  to.wire.pump();
  CHECK((to.wire.client.reply(id).reset == NGHTTP2_FLOW_CONTROL_ERROR ||
         (!to.wire.client.goaways.empty() &&
          to.wire.client.goaways.back().error == NGHTTP2_FLOW_CONTROL_ERROR)));
  CHECK(to.acceptor.only().closes == 1);
}

TEST_CASE("HEADERS over the frame size are a FRAME_SIZE_ERROR, whatever other limit they pass") {
  Connected to;
  const Http2Options options;
  const std::string oversize(options.max_frame_bytes + 1, 'x');
  CHECK(to.broken_by(http2_frame(1, 0x4, 1, oversize)) == NGHTTP2_FRAME_SIZE_ERROR);
}

TEST_CASE("a stream identifier that was passed over can be used no more") {
  Connected to;
  SUBCASE("") {
    to.wire.feed(http2_frame(1, 0x5, 5, kRequest));
    CHECK(to.broken_by(http2_frame(1, 0x5, 3, kRequest)) == NGHTTP2_PROTOCOL_ERROR);
  }
  SUBCASE("trailers of a stream that was reset are still ignored") {
    to.wire.feed(http2_frame(1, 0x4, 1, kRequest) + http2_frame(1, 0x5, 7, kRequest));
    to.acceptor.recorders.at(0)->stream->reset(Http2Error::kCancel);
    CHECK(to.wire.pump());
    to.wire.feed(http2_frame(1, 0x5, 1, literal("x-trailer", "v")));
    CHECK(to.wire.pump());
    CHECK(to.wire.client.goaways.empty());
  }
}

TEST_CASE("more streams than advertised are not served") {
  Http2Options options;
  options.limits.max_concurrent_streams = 3;
  RecordingAcceptor acceptor;
  Wire wire(acceptor, options);
  SUBCASE("before the client can know: REFUSED_STREAM, to be tried again") {
    // The preface and five requests in one flight. nghttp2's client assumes 100 at first.
    std::vector<int32_t> ids;
    for (int i = 0; i < 5; ++i) ids.push_back(wire.client.open("/x", {}, true));
    wire.feed(wire.client.output());
    CHECK(wire.pump());
    CHECK(acceptor.recorders.size() == 3);
    CHECK(wire.client.reply(ids[3]).reset == NGHTTP2_REFUSED_STREAM);
    CHECK(wire.client.reply(ids[4]).reset == NGHTTP2_REFUSED_STREAM);
    for (const auto& recorder : acceptor.recorders) recorder->stream->send_headers_only(kHeaders);
    CHECK(wire.pump());
    for (int i = 0; i < 3; ++i) CHECK(wire.client.reply(ids[static_cast<std::size_t>(i)]).ended);
  }
  SUBCASE("after it acknowledged the limit: the same, and the others are served") {
    wire.pump();
    // Raw: the client's session would wait with the fourth.
    for (uint32_t id = 1; id <= 7; id += 2) wire.feed(http2_frame(1, 0x5, id, kRequest));
    CHECK(acceptor.recorders.size() == 3);
    const std::vector<Frame> refusal = parse_frames(wire.drain());
    REQUIRE(refusal.size() == 1);
    CHECK(refusal[0].type == NGHTTP2_RST_STREAM);
    CHECK(refusal[0].stream == 7);
    CHECK(refusal[0].number(0) == NGHTTP2_REFUSED_STREAM);
    for (const auto& recorder : acceptor.recorders) recorder->stream->send_headers_only(kHeaders);
    CHECK(parse_frames(wire.drain()).size() == 3);
    wire.feed(http2_frame(1, 0x5, 9, kRequest));
    CHECK(acceptor.recorders.size() == 4);
  }
}
