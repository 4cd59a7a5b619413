// One connection, from its first byte to its end: Http2Connection under a CallSet with unary and streaming
// handlers, all in memory, the clock a number. The input is a list of actions: frames (well-formed,
// bent, or plain bytes), answers of handlers, time, reads of the client.
//
// What must hold whatever comes:
//   - a stream's handler is opened once, told in order, and closed once;
//   - a call's handler finishes it or is cancelled, never both, never neither;
//   - what is queued and what is charged stays within the limits;
//   - a connection that is not broken answers a PING: it never gets stuck;
//   - in the end nothing is held: no budget, no timer, no call.
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "fuzz/input.h"
#include "wire_client.h"

using namespace headrace;
using namespace headrace::fuzz;
using namespace headrace::test;

namespace {

constexpr std::size_t kBudget = 1 << 20;
constexpr std::size_t kMessageLimit = 256 * 1024;

// Passes a stream on to the CallSet and watches the order of what it is told.
class WatchedStream final : public StreamHandler {
 public:
  explicit WatchedStream(StreamHandler& to) : to_(to) {}
  void on_header(std::string_view name, std::string_view value) override {
    FUZZ_CHECK(!headers_ended_ && !closed);
    to_.on_header(name, value);
  }
  void on_headers_end(bool too_large) override {
    FUZZ_CHECK(!headers_ended_ && !closed);
    headers_ended_ = true;
    to_.on_headers_end(too_large);
  }
  void on_data(std::span<const std::byte> bytes) override {
    FUZZ_CHECK(headers_ended_ && !ended_ && !closed);
    to_.on_data(bytes);
  }
  void on_end() override {
    FUZZ_CHECK(headers_ended_ && !ended_ && !closed);
    ended_ = true;
    to_.on_end();
  }
  void on_writable() override {
    FUZZ_CHECK(headers_ended_ && !closed);
    to_.on_writable();
  }
  bool awaits_body() const override { return to_.awaits_body(); }
  std::size_t whole_bytes() const override { return to_.whole_bytes(); }
  void on_closed(Http2Error error) override {
    FUZZ_CHECK(!closed);
    closed = true;
    to_.on_closed(error);
  }
  bool closed = false;

 private:
  StreamHandler& to_;
  bool headers_ended_ = false;
  bool ended_ = false;
};

class WatchingAcceptor final : public StreamAcceptor {
 public:
  explicit WatchingAcceptor(CallSet& calls) : calls_(calls) {}
  StreamHandler* open(Stream& stream) override {
    streams_.push_back(std::make_unique<WatchedStream>(*calls_.open(stream)));
    return streams_.back().get();
  }
  void check_all_closed() const {
    for (const auto& stream : streams_) FUZZ_CHECK(stream->closed);
  }

 private:
  CallSet& calls_;
  std::vector<std::unique_ptr<WatchedStream>> streams_;
};

// Keeps who has a call; every call ends once.
class WatchedHandler : public Handler {
 public:
  // Calls that some handler has.
  static inline std::unordered_map<uint64_t, bool> open_calls;  // id: streams its request

  void on_cancel(Call& call) override { FUZZ_CHECK(open_calls.erase(call.id()) == 1); }

 protected:
  static void begin(Call& call, bool streams) {
    FUZZ_CHECK(open_calls.emplace(call.id(), streams).second);
  }
  static void end(Call& call) { FUZZ_CHECK(open_calls.erase(call.id()) == 1); }
};

void reply(Call& call, std::string_view text) {
  BufferRef head = BufferRef::allocate(Call::kPrefixBytes + text.size());
  std::copy(text.begin(), text.end(), reinterpret_cast<char*>(head.data()) + Call::kPrefixBytes);
  std::vector<BodyPiece> rest;
  call.respond(std::move(head), rest);
}

bool send(Call& call, std::string_view text) {
  BufferRef head = BufferRef::allocate(Call::kPrefixBytes + text.size());
  std::copy(text.begin(), text.end(), reinterpret_cast<char*>(head.data()) + Call::kPrefixBytes);
  std::vector<BodyPiece> rest;
  return call.send_message(std::move(head), rest);
}

class Echo final : public WatchedHandler {
 public:
  void on_unary(Call& call, BufferRef message) override {
    FUZZ_CHECK(message.size() <= kMessageLimit);
    begin(call, false);
    end(call);
    reply(call, message.view());
  }
};

class Hold final : public WatchedHandler {
 public:
  void on_unary(Call& call, BufferRef message) override {
    FUZZ_CHECK(message.size() <= kMessageLimit);
    begin(call, false);
  }
};

// Echoes each message; `eager` asks for the next at once, else the input does.
class Chat final : public WatchedHandler {
 public:
  explicit Chat(bool eager) : eager_(eager) {}
  void on_open(Call& call) override {
    begin(call, true);
    if (eager_) call.request_messages(1);
  }
  void on_message(Call& call, BufferRef message) override {
    FUZZ_CHECK(message.size() <= kMessageLimit);
    FUZZ_CHECK(open_calls.contains(call.id()));
    const std::size_t size = message.size();
    if (call.writable() && !send(call, message.view())) return;
    call.release(size);
    if (eager_) call.request_messages(1);
  }
  void on_half_close(Call& call) override {
    FUZZ_CHECK(open_calls.contains(call.id()));
    end(call);
    call.finish(Status());
  }
  void on_writable(Call& call) override { FUZZ_CHECK(open_calls.contains(call.id())); }

 private:
  const bool eager_;
};

constexpr std::array<std::string_view, 6> kPaths = {"/f/Echo", "/f/Hold", "/f/Chat",
                                                    "/f/Lazy", "/f/None", "/"};

std::string literal(std::string_view name, std::string_view value) {
  std::string out(1, '\0');
  for (const std::string_view text : {name, value}) {
    // RFC 7541 5.1, with a prefix of 7 bits.
    out += static_cast<char>(std::min<std::size_t>(text.size(), 127));
    if (text.size() >= 127) {
      std::size_t more = text.size() - 127;
      for (; more >= 128; more >>= 7) out += static_cast<char>((more & 127) | 128);
      out += static_cast<char>(more);
    }
    out += text;
  }
  return out;
}

class Session {
 public:
  explicit Session(Input& input) : input_(input), acceptor_(server_.calls) {
    WatchedHandler::open_calls.clear();
    server_.methods.add("/f/Echo", {&echo_, kMessageLimit, MethodKind::kUnary});
    server_.methods.add("/f/Hold", {&hold_, kMessageLimit, MethodKind::kServerStreaming});
    server_.methods.add("/f/Chat", {&chat_, kMessageLimit, MethodKind::kBidiStreaming});
    server_.methods.add("/f/Lazy", {&lazy_, kMessageLimit, MethodKind::kClientStreaming});
    options_.limits.max_concurrent_streams = 16;
    connection_ =
        std::make_unique<Http2Connection>(options_, acceptor_, "ipv4:192.0.2.1:1", server_.now);
    connection_->limit_counters = &limits_;
  }

  void run() {
    const uint8_t mode = input_.u8();
    if ((mode & 1) == 0) feed("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + http2_frame(4, 0, 0, ""));
    while (!input_.empty() && alive_) act();
    if (alive_ && in_frames_) check_answers_ping();
    if ((mode & 2) != 0) {  // every deadline passes, and the server stops
      advance(std::chrono::hours(200'000));
      server_.calls.fail_all(Status::unavailable("stop"));
      FUZZ_CHECK(WatchedHandler::open_calls.empty());
      drain();
    }
    connection_.reset();
    acceptor_.check_all_closed();
    FUZZ_CHECK(WatchedHandler::open_calls.empty());
    FUZZ_CHECK(server_.idle());
  }

 private:
  void act() {
    switch (input_.u8() % 16) {
      case 0: {  // plain bytes
        const std::string_view bytes = input_.bytes(input_.u8());
        in_frames_ = in_frames_ && bytes.empty();
        return feed(bytes);
      }
      case 1: {  // any frame
        const uint8_t type = input_.u8();
        const uint8_t flags = input_.u8();
        const uint32_t stream = input_.u8();
        return feed(http2_frame(type, flags, stream, input_.bytes(input_.u8())));
      }
      case 2:
      case 3:
      case 4:
        return request();
      case 5:
      case 6:
        return message();
      case 7: {  // DATA as it is
        const uint32_t stream = input_.u8();
        const uint8_t flags = input_.u8() & 0x9;
        return feed(http2_frame(0, flags, stream, input_.bytes(input_.u8())));
      }
      case 8:
        return feed(http2_frame(3, 0, input_.u8(), std::string(3, '\0') + '\x08'));
      case 9: {  // WINDOW_UPDATE
        const uint32_t stream = input_.u8();
        return feed(http2_frame(8, 0, stream, number(input_.u32())));
      }
      case 10: {  // SETTINGS
        std::string entry(1, '\0');
        entry += static_cast<char>(input_.u8() % 8);
        return feed(http2_frame(4, 0, 0, entry + number(input_.u32())));
      }
      case 11:
        return advance(Milliseconds(input_.u16()));
      case 12:
        return answer_one(input_.u8());
      case 13:
        return grant_one(input_.u8());
      case 14: {  // a large DATA, made of one byte
        const uint32_t stream = input_.u8();
        const std::size_t size = input_.u16();
        const std::string body(std::min<std::size_t>(size, 16384), static_cast<char>(input_.u8()));
        return feed(http2_frame(0, 0, stream, body));
      }
      case 15:
        if (input_.u8() % 8 == 0) connection_->begin_shutdown();
        return drain();
    }
  }

  static std::string number(uint32_t value) {
    std::string out;
    for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(value >> shift & 0xff);
    return out;
  }

  void request() {
    const uint8_t form = input_.u8();
    const std::string_view path = kPaths[input_.u8() % kPaths.size()];
    std::string block = literal(":method", (form & 1) != 0 ? "GET" : "POST") +
                        literal(":scheme", "http") + literal(":path", path) +
                        literal(":authority", "f");
    if ((form & 2) == 0) block += literal("content-type", "application/grpc");
    if ((form & 4) != 0) block += literal("grpc-timeout", input_.bytes(input_.u8() % 10));
    if ((form & 8) != 0) block += literal("grpc-encoding", (form & 16) != 0 ? "gzip" : "deflate");
    if ((form & 32) != 0)
      block += literal(input_.bytes(input_.u8() % 8), input_.bytes(input_.u8()));
    if ((form & 64) != 0) block += input_.bytes(input_.u8());  // HPACK as it comes
    const uint8_t flags = (input_.u8() & 1) | 0x4;
    feed(http2_frame(1, flags, next_stream_, block));
    next_stream_ += 2;
  }

  void message() {
    const uint32_t stream = next_stream_ >= 2 ? next_stream_ - 2 - 2 * (input_.u8() % 4) : 1;
    const uint8_t form = input_.u8();
    std::string body = grpc_message(input_.bytes(input_.u8()), (form & 2) != 0 ? form >> 6 : 0);
    if ((form & 4) != 0) body.resize(body.size() - std::min<std::size_t>(body.size(), form >> 4));
    feed(http2_frame(0, form & 1, stream & 0x7fffffff, body));
  }

  // The id-th call that a handler has.
  Call* pick(uint8_t which) {
    std::set<uint64_t> ids;
    for (const auto& [id, streams] : WatchedHandler::open_calls) ids.insert(id);
    if (ids.empty()) return nullptr;
    auto it = ids.begin();
    std::advance(it, which % ids.size());
    Call* call = server_.calls.find(*it);
    FUZZ_CHECK(call != nullptr);  // a handler has it: it must be found
    return call;
  }

  void answer_one(uint8_t which) {
    Call* call = pick(which);
    if (call == nullptr) return;
    const uint8_t how = input_.u8();
    const std::string text(static_cast<std::size_t>(how) << (how % 8), 'x');
    if (how % 4 == 0) {
      send(*call, text);  // stays open
    } else {
      WatchedHandler::open_calls.erase(call->id());
      if (how % 4 == 1 && !call->headers_sent()) {
        reply(*call, text);
      } else if (how % 4 == 2) {
        call->finish({StatusCode::kAborted, text});
      } else {
        call->fail({StatusCode::kNotFound, "x"});
      }
    }
    drain();
  }

  void grant_one(uint8_t which) {
    Call* call = pick(which);
    if (call == nullptr || !WatchedHandler::open_calls.at(call->id())) return;
    call->request_messages(1 + which % 3);
    drain();
  }

  void advance(Nanoseconds by) {
    server_.advance(by);
    if (!connection_->advance(server_.now)) alive_ = false;
    drain();
  }

  void feed(std::string_view bytes) {
    alive_ = connection_->advance(server_.now) && connection_->feed(bytes_of(bytes));
    check_bounds();
    drain();
  }

  // The client reads everything.
  void drain() {
    for (;;) {
      OutputQueue output;
      if (!connection_->drain(output)) alive_ = false;
      // Frames of less than the limit, and one that went over it.
      FUZZ_CHECK(output.size() <= options_.max_unsent_bytes + (1 << 17));
      if (output.empty()) break;
      sent_ += take_all(output);
      // Only the newest matters to check_answers_ping().
      if (sent_.size() > (1 << 20)) sent_.clear();
    }
    check_bounds();
  }

  void check_bounds() const {
    FUZZ_CHECK(server_.budget.used() <= kBudget);
    FUZZ_CHECK(connection_->open_streams() <= options_.limits.max_concurrent_streams);
    FUZZ_CHECK(WatchedHandler::open_calls.size() <= server_.calls.active());
  }

  void check_answers_ping() {
    sent_.clear();
    if (connection_->finished()) return;
    feed(http2_frame(6, 0, 0, "are you?"));
    if (!alive_ || connection_->finished()) return;
    bool answered = false;
    for (const Frame& frame : parse_frames(sent_)) {
      answered = answered || frame.type == 7 || (frame.type == 6 && frame.payload == "are you?");
    }
    FUZZ_CHECK(answered);
  }

  Input& input_;
  WireServer server_{kBudget};
  Echo echo_;
  Hold hold_;
  Chat chat_{true};
  Chat lazy_{false};
  Http2Options options_;
  LimitCounters limits_;
  WatchingAcceptor acceptor_;
  std::unique_ptr<Http2Connection> connection_;
  std::string sent_;
  uint32_t next_stream_ = 1;
  bool alive_ = true;
  bool in_frames_ = true;  // the server is between two frames
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  Input input(data, size);
  Session(input).run();
  return 0;
}
