// The other end of the wire, for tests: a gRPC client over an nghttp2 client session, joined to the
// server's Http2Connection in memory. No sockets, no clock: bytes move in pump(), time in
// advance().
//
//   WireServer server;
//   ScriptedHandler handler;
//   server.methods.add("/test.Echo/Call", {&handler});
//   Wire wire(server.calls);
//   int32_t id = wire.client.call("/test.Echo/Call", "hello");
//   wire.pump();
//   CHECK(wire.client.reply(id).message() == "hello");
#pragma once

#include <nghttp2/nghttp2.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/buffer.h"
#include "base/timer_wheel.h"
#include "rpc/call.h"
#include "transport/http2_connection.h"
#include "transport/output_queue.h"

namespace headrace::test {

using Headers = std::vector<std::pair<std::string, std::string>>;

inline std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

inline BufferRef buffer_of(std::string_view text) {
  BufferRef buffer = BufferRef::allocate(text.size());
  if (!text.empty()) std::memcpy(buffer.data(), text.data(), text.size());
  return buffer;
}

// A body piece that owns a copy of `text`.
inline BodyPiece piece_of(std::string_view text) {
  const BufferRef owner = buffer_of(text);
  return {owner, owner.span()};
}

// Bytes that repeat nowhere nearby, so that lost, doubled or reordered parts show.
inline std::string pattern(std::size_t size, uint32_t seed = 1) {
  std::string text(size, '\0');
  uint32_t state = seed * 2654435761U + 12345;
  for (char& c : text) {
    state = state * 1664525U + 1013904223U;
    c = static_cast<char>(state >> 24);
  }
  return text;
}

// Length-prefixed gRPC message. `claimed`: the length to write when it is not the true one.
inline std::string grpc_message(std::string_view text, uint8_t flag = 0,
                                std::optional<uint32_t> claimed = std::nullopt) {
  const uint32_t size = claimed.value_or(static_cast<uint32_t>(text.size()));
  std::string out(1, static_cast<char>(flag));
  for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(size >> shift & 0xff);
  out += text;
  return out;
}

inline std::string http2_frame(uint8_t type, uint8_t flags, uint32_t stream,
                               std::string_view payload) {
  std::string out;
  for (int shift = 16; shift >= 0; shift -= 8) out += static_cast<char>(payload.size() >> shift);
  out += static_cast<char>(type);
  out += static_cast<char>(flags);
  for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(stream >> shift);
  out += payload;
  return out;
}

struct Frame {
  uint8_t type;
  uint8_t flags;
  uint32_t stream;
  std::string payload;
  // The 32-bit number at `at`: RST_STREAM's error at 0, GOAWAY's last stream and error at 0 and 4.
  uint32_t number(std::size_t at) const {
    uint32_t value = 0;
    for (std::size_t i = at; i < at + 4; ++i)
      value = value << 8 | static_cast<uint8_t>(payload.at(i));
    return value;
  }
};

// The whole frames of `bytes`; for answers that a client session would not understand.
inline std::vector<Frame> parse_frames(std::string_view bytes) {
  std::vector<Frame> frames;
  while (bytes.size() >= 9) {
    const auto at = [&](std::size_t i) { return static_cast<uint8_t>(bytes[i]); };
    const std::size_t size = std::size_t{at(0)} << 16 | std::size_t{at(1)} << 8 | at(2);
    const uint32_t stream =
        uint32_t{at(5)} << 24 | uint32_t{at(6)} << 16 | uint32_t{at(7)} << 8 | at(8);
    frames.push_back({at(3), at(4), stream, std::string(bytes.substr(9, size))});
    bytes.remove_prefix(std::min(bytes.size(), 9 + size));
  }
  return frames;
}

// Takes everything out of the queue the way a socket would: at most `at_once` bytes a write.
inline std::string take_all(OutputQueue& output, std::size_t at_once = SIZE_MAX) {
  std::string out;
  while (!output.empty()) {
    std::array<struct iovec, 3> vectors;
    const int n = output.front(vectors.data(), static_cast<int>(vectors.size()));
    std::size_t taken = 0;
    for (int i = 0; i < n && taken < at_once; ++i) {
      const std::size_t part = std::min(vectors[i].iov_len, at_once - taken);
      out.append(static_cast<const char*>(vectors[i].iov_base), part);
      taken += part;
    }
    output.pop(taken);
  }
  return out;
}

// What came back on one stream.
struct Reply {
  Headers headers;   // the first block
  Headers trailers;  // the second
  int header_blocks = 0;
  std::string body;  // DATA, end to end
  std::vector<std::size_t> data_frames;
  bool ended = false;                // END_STREAM came
  std::optional<uint32_t> reset;     // RST_STREAM came
  std::optional<uint32_t> not_sent;  // the session could not even send the request
  bool closed = false;

  static std::optional<std::string> find(const Headers& in, std::string_view name) {
    for (const auto& [key, value] : in) {
      if (key == name) return value;
    }
    return std::nullopt;
  }
  std::optional<std::string> header(std::string_view name) const { return find(headers, name); }
  std::optional<std::string> trailer(std::string_view name) const { return find(trailers, name); }
  bool trailers_only() const { return header_blocks == 1 && ended && body.empty(); }
  // -1: no gRPC status came.
  int status() const {
    const auto text = trailers_only() ? header("grpc-status") : trailer("grpc-status");
    return text ? std::atoi(text->c_str()) : -1;
  }
  // grpc-message as sent.
  std::string status_message() const {
    return (trailers_only() ? header("grpc-message") : trailer("grpc-message")).value_or("");
  }
  struct Message {
    uint8_t flag;
    std::string text;  // as sent, maybe compressed
  };
  // The whole messages of the body so far.
  std::vector<Message> messages() const {
    std::vector<Message> result;
    std::size_t at = 0;
    while (body.size() - at >= 5) {
      std::size_t size = 0;
      for (std::size_t i = 1; i < 5; ++i) size = size << 8 | static_cast<uint8_t>(body[at + i]);
      if (body.size() - at - 5 < size) break;
      result.push_back({static_cast<uint8_t>(body[at]), body.substr(at + 5, size)});
      at += 5 + size;
    }
    return result;
  }
  // The one message of the body; nullopt when the body is anything else.
  std::optional<std::string> message() const {
    if (body.size() < 5 || body[0] != 0) return std::nullopt;
    std::size_t size = 0;
    for (std::size_t i = 1; i < 5; ++i) size = size << 8 | static_cast<uint8_t>(body[i]);
    if (size != body.size() - 5) return std::nullopt;
    return body.substr(5);
  }
};

struct ClientOptions {
  std::vector<nghttp2_settings_entry> settings;
  int32_t connection_window = 1 << 30;
  bool auto_window_update = true;  // else credit() opens the windows
};

// One nghttp2 client session: produces bytes for a server and consumes its answers.
class TestClient {
 public:
  explicit TestClient(const ClientOptions& options = {}) {
    nghttp2_session_callbacks* callbacks = nullptr;
    nghttp2_session_callbacks_new(&callbacks);
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
    nghttp2_session_callbacks_set_select_padding_callback(callbacks, select_padding);
    nghttp2_option* option = nullptr;
    nghttp2_option_new(&option);
    nghttp2_option_set_no_auto_window_update(option, options.auto_window_update ? 0 : 1);
    // The server's limit is what the tests look at, not what the client knows of it.
    nghttp2_option_set_peer_max_concurrent_streams(option, 100000);
    nghttp2_session_client_new2(&session_, callbacks, this, option);
    nghttp2_option_del(option);
    nghttp2_session_callbacks_del(callbacks);
    nghttp2_submit_settings(session_, NGHTTP2_FLAG_NONE, options.settings.data(),
                            options.settings.size());
    if (options.connection_window != 65535) {
      nghttp2_session_set_local_window_size(session_, NGHTTP2_FLAG_NONE, 0,
                                            options.connection_window);
    }
  }
  ~TestClient() { nghttp2_session_del(session_); }
  TestClient(const TestClient&) = delete;
  TestClient& operator=(const TestClient&) = delete;

  // Opens a stream with exactly these headers; the body follows with send() and end().
  int32_t open_with(const Headers& headers, bool end = false) {
    std::vector<nghttp2_nv> fields;
    for (const auto& [name, value] : headers) {
      fields.push_back({reinterpret_cast<uint8_t*>(const_cast<char*>(name.data())),
                        reinterpret_cast<uint8_t*>(const_cast<char*>(value.data())), name.size(),
                        value.size(), NGHTTP2_NV_FLAG_NONE});
    }
    auto upload = std::make_unique<Upload>();
    nghttp2_data_provider provider;
    provider.source.ptr = upload.get();
    provider.read_callback = read_upload;
    const int32_t id = nghttp2_submit_request(session_, nullptr, fields.data(), fields.size(),
                                              end ? nullptr : &provider, nullptr);
    uploads_[id] = std::move(upload);
    replies_[id];
    return id;
  }
  static Headers grpc_headers(const std::string& path, const Headers& extra = {}) {
    Headers headers = {{":method", "POST"}, {":scheme", "http"},
                       {":path", path},     {":authority", "server"},
                       {"te", "trailers"},  {"content-type", "application/grpc"}};
    headers.insert(headers.end(), extra.begin(), extra.end());
    return headers;
  }
  int32_t open(const std::string& path, const Headers& extra = {}, bool end = false) {
    return open_with(grpc_headers(path, extra), end);
  }
  // One DATA frame (several when it is over 16 KiB), with `padding` bytes of padding.
  void send(int32_t id, std::string_view data, std::size_t padding = 0) {
    Upload& upload = *uploads_.at(id);
    upload.chunks.push_back({std::string(data), padding});
    nghttp2_session_resume_data(session_, id);
  }
  void end(int32_t id) {
    uploads_.at(id)->ended = true;
    nghttp2_session_resume_data(session_, id);
  }
  // A whole unary call with one message.
  int32_t call(const std::string& path, std::string_view message, const Headers& extra = {}) {
    const int32_t id = open(path, extra);
    send(id, grpc_message(message));
    end(id);
    return id;
  }
  void reset(int32_t id, uint32_t error = NGHTTP2_CANCEL) {
    nghttp2_submit_rst_stream(session_, NGHTTP2_FLAG_NONE, id, error);
  }
  void ping(std::string_view eight) {
    nghttp2_submit_ping(session_, NGHTTP2_FLAG_NONE,
                        reinterpret_cast<const uint8_t*>(eight.data()));
  }
  void goaway() {
    nghttp2_submit_goaway(session_, NGHTTP2_FLAG_NONE, 0, NGHTTP2_NO_ERROR, nullptr, 0);
  }
  void set_initial_window(uint32_t bytes) {
    const nghttp2_settings_entry entry{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, bytes};
    nghttp2_submit_settings(session_, NGHTTP2_FLAG_NONE, &entry, 1);
  }
  // WINDOW_UPDATE; 0: the connection.
  void credit(int32_t id, int32_t bytes) {
    nghttp2_submit_window_update(session_, NGHTTP2_FLAG_NONE, id, bytes);
  }

  // Bytes for the server.
  std::string output() {
    std::string out;
    for (;;) {
      const uint8_t* data = nullptr;
      const ssize_t n = nghttp2_session_mem_send(session_, &data);
      if (n <= 0) return out;
      out.append(reinterpret_cast<const char*>(data), static_cast<std::size_t>(n));
    }
  }
  // Bytes from the server. False: they are not HTTP/2.
  bool input(std::string_view bytes) {
    return nghttp2_session_mem_recv(session_, reinterpret_cast<const uint8_t*>(bytes.data()),
                                    bytes.size()) >= 0;
  }

  const Reply& reply(int32_t id) const { return replies_.at(id); }
  uint32_t server_setting(nghttp2_settings_id id) {
    return nghttp2_session_get_remote_settings(session_, id);
  }
  int32_t server_connection_window() { return nghttp2_session_get_remote_window_size(session_); }
  struct Goaway {
    int32_t last_stream;
    uint32_t error;
  };
  std::vector<Goaway> goaways;
  std::vector<std::string> ping_acks;
  int settings_acks = 0;

 private:
  struct Chunk {
    std::string data;
    std::size_t padding;
    std::size_t offset = 0;
  };
  struct Upload {
    std::deque<Chunk> chunks;
    bool ended = false;
    std::size_t padding = 0;  // of the frame under way
  };
  static TestClient& self(void* user) { return *static_cast<TestClient*>(user); }

  static ssize_t read_upload(nghttp2_session*, int32_t, uint8_t* buffer, size_t size,
                             uint32_t* flags, nghttp2_data_source* source, void*) {
    Upload& upload = *static_cast<Upload*>(source->ptr);
    if (upload.chunks.empty()) {
      if (!upload.ended) return NGHTTP2_ERR_DEFERRED;
      *flags |= NGHTTP2_DATA_FLAG_EOF;
      return 0;
    }
    Chunk& chunk = upload.chunks.front();
    const std::size_t n = std::min(size, chunk.data.size() - chunk.offset);
    std::memcpy(buffer, chunk.data.data() + chunk.offset, n);
    chunk.offset += n;
    upload.padding = chunk.padding;
    if (chunk.offset == chunk.data.size()) upload.chunks.pop_front();
    if (upload.chunks.empty() && upload.ended) *flags |= NGHTTP2_DATA_FLAG_EOF;
    return static_cast<ssize_t>(n);
  }
  static ssize_t select_padding(nghttp2_session*, const nghttp2_frame* frame, size_t max,
                                void* user) {
    const auto it = self(user).uploads_.find(frame->hd.stream_id);
    if (frame->hd.type != NGHTTP2_DATA || it == self(user).uploads_.end()) {
      return static_cast<ssize_t>(frame->hd.length);
    }
    return static_cast<ssize_t>(std::min(max, frame->hd.length + it->second->padding));
  }
  static int on_begin_headers(nghttp2_session*, const nghttp2_frame* frame, void* user) {
    if (frame->hd.type == NGHTTP2_HEADERS) ++self(user).replies_[frame->hd.stream_id].header_blocks;
    return 0;
  }
  static int on_header(nghttp2_session*, const nghttp2_frame* frame, const uint8_t* name,
                       size_t name_size, const uint8_t* value, size_t value_size, uint8_t,
                       void* user) {
    Reply& reply = self(user).replies_[frame->hd.stream_id];
    (reply.header_blocks == 1 ? reply.headers : reply.trailers)
        .emplace_back(std::string(reinterpret_cast<const char*>(name), name_size),
                      std::string(reinterpret_cast<const char*>(value), value_size));
    return 0;
  }
  static int on_frame(nghttp2_session*, const nghttp2_frame* frame, void* user) {
    TestClient& client = self(user);
    const nghttp2_frame_hd& hd = frame->hd;
    if (hd.type == NGHTTP2_DATA) client.replies_[hd.stream_id].data_frames.push_back(hd.length);
    if ((hd.type == NGHTTP2_DATA || hd.type == NGHTTP2_HEADERS) &&
        (hd.flags & NGHTTP2_FLAG_END_STREAM) != 0) {
      client.replies_[hd.stream_id].ended = true;
    }
    if (hd.type == NGHTTP2_RST_STREAM) {
      client.replies_[hd.stream_id].reset = frame->rst_stream.error_code;
    }
    if (hd.type == NGHTTP2_GOAWAY) {
      client.goaways.push_back({frame->goaway.last_stream_id, frame->goaway.error_code});
    }
    if (hd.type == NGHTTP2_PING && (hd.flags & NGHTTP2_FLAG_ACK) != 0) {
      client.ping_acks.emplace_back(reinterpret_cast<const char*>(frame->ping.opaque_data), 8);
    }
    if (hd.type == NGHTTP2_SETTINGS && (hd.flags & NGHTTP2_FLAG_ACK) != 0) ++client.settings_acks;
    return 0;
  }
  static int on_data(nghttp2_session*, uint8_t, int32_t id, const uint8_t* data, size_t size,
                     void* user) {
    self(user).replies_[id].body.append(reinterpret_cast<const char*>(data), size);
    return 0;
  }
  static int on_close(nghttp2_session*, int32_t id, uint32_t, void* user) {
    self(user).replies_[id].closed = true;
    return 0;
  }

  nghttp2_session* session_ = nullptr;
  std::map<int32_t, std::unique_ptr<Upload>> uploads_;
  std::map<int32_t, Reply> replies_;
};

// A client and a server connection, joined.
class Wire {
 public:
  explicit Wire(StreamAcceptor& acceptor, const Http2Options& options = {},
                const ClientOptions& client_options = {})
      : client(client_options),
        connection(std::make_unique<Http2Connection>(options, acceptor, "ipv4:192.0.2.1:5000")) {
    connection->on_output = [this] { woken = true; };
  }

  // Moves bytes both ways until neither side has any. False: the connection is to be closed.
  bool pump() {
    while (connection) {
      const std::string request = client.output();
      sent += request;
      const bool fed = feed(request);
      const std::string answer = drain();
      if (!client.input(answer)) client_ok = false;
      if (!fed || broken) return false;
      if (request.empty() && answer.empty()) return !connection->finished();
    }
    return false;
  }
  // Bytes straight to the server, past the client's session.
  bool feed(std::string_view bytes) {
    bool alive = true;
    for (std::size_t at = 0; at < bytes.size() && alive; at += feed_at_once) {
      alive = connection->feed(bytes_of(bytes.substr(at, feed_at_once)));
    }
    return alive;
  }
  std::string drain() {
    OutputQueue output;
    if (!connection->drain(output)) broken = true;
    largest_drain = std::max(largest_drain, output.size());
    return take_all(output, write_at_once);
  }
  // The socket is gone.
  void lose() { connection.reset(); }

  TestClient client;
  std::unique_ptr<Http2Connection> connection;
  std::string sent;  // everything that pump() fed
  std::size_t feed_at_once = SIZE_MAX;
  std::size_t write_at_once = SIZE_MAX;
  std::size_t largest_drain = 0;
  bool woken = false;
  bool broken = false;
  bool client_ok = true;  // the client understood all that came
};

// What a CallSet needs, with a clock that stands still.
struct WireServer {
  explicit WireServer(std::size_t budget_bytes = 64 << 20)
      : timers(now), budget(budget_bytes), calls(methods, budget, timers, [this] { return now; }) {}

  void advance(Nanoseconds by) {
    now += by;
    timers.advance(now);
  }
  uint64_t finished(StatusCode code) const {
    return calls.counters().finished_by_code[static_cast<std::size_t>(code)];
  }
  // Nothing is held and nothing is counted as running.
  bool idle() const {
    return budget.used() == 0 && calls.active() == 0 && timers.size() == 0 &&
           calls.counters().started == calls.counters().finished;
  }

  TimePoint now{std::chrono::hours(1)};
  TimerWheel timers;
  MethodTable methods;
  ReceiveBudget budget;
  CallSet calls;
};

// A handler of streamed calls whose reactions a test gives as functions. It records what it is told, and
// that nothing comes after a call's end.
class StreamingHandler final : public Handler {
 public:
  struct Record {
    uint64_t id = 0;
    std::vector<std::string> messages;
    int half_closes = 0;
    int writables = 0;
    int cancels = 0;
  };
  using Reaction = std::function<void(Call&)>;
  Reaction opened = [](Call& call) { call.request_messages(1); };
  std::function<void(Call&, std::string_view)> got = [](Call& call, std::string_view message) {
    send(call, message);
    call.release(message.size());
    call.request_messages(1);
  };
  Reaction half_closed = [](Call& call) { call.finish(Status()); };
  Reaction now_writable = [](Call&) {};
  std::map<uint64_t, Record> records;

  void on_unary(Call& call, BufferRef message) override {
    Record& record = records[call.id()];
    record.id = call.id();
    record.messages.emplace_back(message.view());
    got(call, message.view());
  }
  void on_open(Call& call) override {
    records[call.id()].id = call.id();
    opened(call);
  }
  void on_message(Call& call, BufferRef message) override {
    live(call).messages.emplace_back(message.view());
    got(call, message.view());
  }
  void on_half_close(Call& call) override {
    ++live(call).half_closes;
    half_closed(call);
  }
  void on_writable(Call& call) override {
    ++live(call).writables;
    now_writable(call);
  }
  void on_cancel(Call& call) override { ++live(call).cancels; }

  // The only call there was.
  const Record& only() const { return records.begin()->second; }
  // The message in two parts, as an encoder makes them.
  static bool send(Call& call, std::string_view message) {
    BufferRef head = BufferRef::allocate(Call::kPrefixBytes + message.size() / 2);
    std::memcpy(head.data() + Call::kPrefixBytes, message.data(), message.size() / 2);
    std::vector<BodyPiece> rest;
    message.remove_prefix(message.size() / 2);
    if (!message.empty()) rest.push_back(piece_of(message));
    return call.send_message(std::move(head), rest);
  }

 private:
  Record& live(Call& call) {
    Record& record = records.at(call.id());  // throws when it was never opened
    if (record.cancels != 0 || record.half_closes > 1) std::abort();
    return record;
  }
};

// Answers at once with the message it got, or holds the call for the test to answer by id.
class ScriptedHandler final : public Handler {
 public:
  struct Record {
    uint64_t id;
    std::string message;
    Metadata metadata;
    int cancels = 0;
  };
  bool hold = false;
  std::vector<Record> records;

  void on_unary(Call& call, BufferRef message) override {
    records.push_back({call.id(), std::string(message.view()), call.metadata()});
    call.context = this;
    if (!hold) answer(call, message.view());
  }
  void on_cancel(Call& call) override {
    for (Record& record : records) {
      if (record.id == call.id()) ++record.cancels;
    }
    ++cancels;
  }
  static void answer(Call& call, std::string_view message, const Metadata* initial = nullptr,
                     const Metadata* trailing = nullptr) {
    BufferRef head = BufferRef::allocate(Call::kPrefixBytes);
    std::vector<BodyPiece> rest;
    if (!message.empty()) rest.push_back(piece_of(message));
    call.respond(std::move(head), rest, initial, trailing);
  }
  int cancels = 0;
};

}  // namespace headrace::test
