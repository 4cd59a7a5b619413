// The transport's door. A Stream is one HTTP/2 request and its response; StreamHandler is what the
// room above implements to be told about it.
//
// Threads: everything here runs on the I/O thread that owns the connection.
// A handler's life: StreamAcceptor::open() -> on_header* -> on_headers_end -> on_data* -> on_end
// -> on_closed, after which neither side touches the other. on_closed comes exactly once, at any point.
//
// Flow control. Bytes that on_data() delivers open the stream's window again at once, unless the handler
// asked to hold it: then they do when it says consume(), so that the client can be at most a window ahead.
// The connection's window opens at once while its receive budget has room: a stream that nobody reads must
// not stop the others. What messages hold is charged to that budget (http2_receive.cc). In the other
// direction writable() says whether more of the body may be queued.
// ---------------------------------------------------------------------------------------------
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/buffer.h"
#include "base/clock.h"
#include "base/fifo.h"

namespace headrace {

// RFC 9113 section 7.
enum class Http2Error : uint32_t {
  kNoError = 0x0,
  kProtocolError = 0x1,
  kInternalError = 0x2,
  kRefusedStream = 0x7,
  kCancel = 0x8,
  kEnhanceYourCalm = 0xb,
};

// Names are lower case. The bytes are copied by whoever takes it, unless `constant`: then they are
// valid for ever (literals) and never copied.
struct HeaderField {
  std::string_view name;
  std::string_view value;
  bool constant = false;
};

// A part of a response body. `owner` keeps the bytes alive.
struct BodyPiece {
  BufferRef owner;
  std::span<const std::byte> bytes;
};

struct AuthContext;
class Http2Connection;
class StreamHandler;
struct Http2Callbacks;

class Stream {
 public:
  int32_t id() const { return id_; }
  // "ipv4:127.0.0.1:5000", as gRPC's peer().
  const std::string& peer() const;
  // Who the client is, on a TLS connection; null without TLS.
  const std::shared_ptr<const AuthContext>& auth_context() const;

  // Response headers; a body and trailers follow.
  void send_headers(std::span<const HeaderField> headers);
  // Queues body bytes, after send_headers.
  void send_body(BodyPiece piece);
  // Trailers; they end the stream after the queued body. At most once.
  void send_trailers(std::span<const HeaderField> trailers);
  // Headers that are the whole response.
  void send_headers_only(std::span<const HeaderField> headers);
  // Ends the stream with RST_STREAM.
  void reset(Http2Error error);
  // The request was no good, so much as `count` small ones: enough of them end the connection.
  void count_glitches(uint64_t count);

  // Body bytes queued and not yet framed: what back-pressure looks at.
  std::size_t unsent() const { return unsent_; }
  // Whether more may be queued: less than Http2Options::max_stream_queued_bytes wait on this stream and
  // less than max_connection_queued_bytes on all of its connection. Nothing enforces it: a message
  // that has been begun is queued whole. After false, on_writable() comes once when both are below
  // half.
  bool writable();
  // Drops the body that is queued; the stream can only be reset after that.
  void drop_body();

  // From on_headers_end on: bytes of on_data() count as held until consume() gives them back.
  void hold_window() { window_held_ = true; }
  // The handler is done with so many of the held bytes. What a stream has not consumed when it closes needs
  // no call.
  void consume(std::size_t bytes);
  // Memory of request messages that the handler holds, in parts or whole, from when to when: it counts
  // against the connection's receive budget. All of it is discharged before on_closed() returns.
  void charge(std::size_t bytes);
  void discharge(std::size_t bytes);
  // Whether the connection's receive budget has room for so much of an inflated message. The first one
  // always finds it, however large: a small request may make many large ones. Such memory is counted apart,
  // beside charge() and discharge().
  bool may_inflate(std::size_t bytes) const;
  void count_inflated(std::ptrdiff_t more);
  // Likewise, messages that are whole and wait to be inflated.
  void count_packed(std::ptrdiff_t more);
  // Whether its connection is (ConnectionGuard).
  bool trusted() const;
  // Which connection it is: to be compared, and nothing else.
  const void* connection() const { return connection_; }
  // StreamHandler::whole_bytes() has grown.
  void message_complete();
  // The queued body is all there will be, one message: clients take it without asking for it, unlike
  // the messages of a stream, which may rest for as long as they like.
  void body_is_answer();
  // Whether to begin with a request that is whole: false while the client has too many answers to take
  // (Http2Options::max_unsent_answers). Then on_writable() comes when it has taken some.
  bool may_begin();

  // The client could not send until now: what it owes counts from here (ConnectionLimits::body_timeout).
  void restart_body_clock() { awaited_at_check_ = false; }
  // Lets the client send this much ahead from now on (it never shrinks). For a body whose size is known.
  void grow_window(std::size_t bytes);

 private:
  friend class Http2Connection;
  friend struct Http2Callbacks;
  Http2Connection* connection_ = nullptr;
  StreamHandler* handler_ = nullptr;
  int32_t id_ = 0;
  std::size_t header_bytes_ = 0;
  std::size_t header_fields_ = 0;
  bool headers_too_large_ = false;
  bool peer_ended_ = false;
  bool deferred_ = false;  // nghttp2 waits for resume_data
  bool trailers_ready_ = false;
  bool window_held_ = false;
  bool answer_ = false;          // body_is_answer()
  bool wants_writable_ = false;  // it is in the connection's waiting_
  bool waits_to_begin_ = false;  // in its beginners_
  std::size_t withheld_ = 0;     // of its window, for the receive budget
  std::size_t grown_ = 0;        // what grow_window() added
  Fifo<BodyPiece> body_;
  std::size_t body_offset_ = 0;  // into body_.front()
  std::size_t unsent_ = 0;
  std::vector<std::pair<std::string, std::string>> trailers_;

  // For Http2Connection::check_streams.
  uint64_t received_ = 0;  // body bytes
  uint64_t received_at_check_ = 0;
  bool awaited_at_check_ = false;
  std::size_t unsent_at_check_ = 0;
  TimePoint unsent_since_ = kNever;
  bool body_sent_ = false;  // any of it
  TimePoint shut_since_ = kNever;
};

class StreamHandler {
 public:
  virtual ~StreamHandler() = default;
  // One request header, pseudo-headers included, in order. Views end with the call.
  virtual void on_header(std::string_view name, std::string_view value) = 0;
  // `too_large`: the header list passed its limit; what was over it was not delivered.
  virtual void on_headers_end(bool too_large) = 0;
  virtual void on_data(std::span<const std::byte> bytes) = 0;
  // The client half-closed.
  virtual void on_end() = 0;
  // Stream::writable() or may_begin() was false and would be true now. Not from within another callback.
  virtual void on_writable() {}
  // Whether the client owes bytes now: the rest of a message that has begun.
  virtual bool awaits_body() const { return false; }
  // Of the bytes that it has charged, those of messages that the client need not add to.
  virtual std::size_t whole_bytes() const { return 0; }
  // The stream is gone: finished, reset by either side, or its connection was lost.
  virtual void on_closed(Http2Error error) = 0;
};

class StreamAcceptor {
 public:
  virtual ~StreamAcceptor() = default;
  // A new stream; the handler stays the acceptor's. Never null.
  virtual StreamHandler* open(Stream& stream) = 0;
};

}  // namespace headrace
