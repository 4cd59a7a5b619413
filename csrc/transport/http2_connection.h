// Http2Connection: one HTTP/2 server session over nghttp2, without a socket: bytes go in with feed(),
// bytes come out with drain(). Framing, HPACK and flow control are the library's.
//
// Threads: belongs to one I/O thread.
// Invariants: every opened handler gets on_closed exactly once, at the latest in the destructor.
// Memory is bounded: drain() stops pulling frames at `max_unsent_bytes`.
//
//   Http2Connection connection(options, acceptor, "ipv4:127.0.0.1:5000");
//   if (!connection.advance(now) || !connection.feed(bytes)) close();  // after a last drain()
//   connection.drain(output);
//   // and advance() again at next_step()
// ---------------------------------------------------------------------------------------------
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "transport/auth_context.h"
#include "transport/connection_guard.h"
#include "transport/connection_limits.h"
#include "transport/output_queue.h"
#include "transport/session_memory.h"
#include "transport/stream.h"

struct nghttp2_session;

namespace headrace {

struct Http2Options {
  ConnectionLimits limits;
  uint32_t stream_window_bytes = 256 * 1024;  // Stream::grow_window() for more
  uint32_t connection_window_bytes = 8 << 20;
  uint32_t max_frame_bytes = 64 * 1024;  // that clients may send
  // Framed and not yet taken by the socket: where drain() stops.
  std::size_t max_unsent_bytes = 256 * 1024;
  // Where Stream::writable() becomes false. Together with max_unsent_bytes a client that does not read
  // one stream holds 1 MiB and the message that was being queued.
  std::size_t max_stream_queued_bytes = 768 * 1024;
  std::size_t max_connection_queued_bytes = 8 << 20;
  // Of whole answers on all streams: where Stream::may_begin() becomes false.
  std::size_t max_unsent_answers = 1 << 20;
};

class Http2Connection {
 public:
  // `jitter`: 0 to 1, spreads the ends of connections of one age. `pages` outlive it; null: malloc.
  Http2Connection(const Http2Options& options, StreamAcceptor& acceptor, std::string peer,
                  TimePoint now = {}, double jitter = 0.5, SessionPages* pages = nullptr);
  ~Http2Connection();
  Http2Connection(const Http2Connection&) = delete;
  Http2Connection& operator=(const Http2Connection&) = delete;

  // The one way in which time passes: before feed(), and when next_step() has come. False: a limit
  // was passed; drain what is left and close.
  bool advance(TimePoint now);
  TimePoint next_step() const { return guard_.next_step(); }
  // After a write to the socket: whether it would take no more, whether it took anything, and what is left of
  // what was drained.
  void on_written(bool blocked, bool progress, std::size_t left) {
    guard_.on_written(blocked, progress, blocked ? left + unsent_ : unsent_answers_, now_);
  }
  // The most to read for one feed().
  std::size_t read_quota() const { return guard_.read_quota(); }
  bool trusted() const { return guard_.trusted(); }

  // Bytes from the client. False: the session is broken; drain what is left and close.
  bool feed(std::span<const std::byte> bytes);
  // Appends what may be sent now, then tells streams that wait for room (on_writable), which may make
  // more output: on_output says so. False: the session is broken.
  bool drain(OutputQueue& output);
  // After a drain() that left nothing to send: a connection that has had no call yet, or none for as long as
  // keepalive takes, gives memory back.
  void release_idle() {
    if (resting_ && memory_ && output_ended_) memory_->release_idle();
  }
  // Nothing will be read or written any more: close.
  bool finished() const;

  // GOAWAY(2^31-1): the client should send no new requests; those on their way are still served.
  void begin_shutdown();
  // GOAWAY(last stream): later streams are ignored by the client and may be retried elsewhere.
  void finish_shutdown();

  std::size_t open_streams() const { return open_streams_; }
  // Body bytes queued on all streams and not yet framed.
  std::size_t unsent() const { return unsent_; }
  const std::string& peer() const { return peer_; }
  // Null on a connection without TLS. Set before the first feed().
  const std::shared_ptr<const AuthContext>& auth_context() const { return auth_context_; }
  void set_auth_context(std::shared_ptr<const AuthContext> context) {
    auth_context_ = std::move(context);
  }
  // Called when a stream got something to send outside feed(): the owner must drain() this turn.
  std::function<void()> on_output;
  // Where passed limits are counted; may be null.
  LimitCounters* limit_counters = nullptr;

 private:
  friend class Stream;
  friend struct Http2Callbacks;

  Stream* allocate_stream();
  void close_stream(Stream& stream, Http2Error error);
  void wake() {
    if (!feeding_ && on_output) on_output();
  }
  void submit_trailers(Stream& stream);
  void send_settings(OutputQueue& output);
  bool may_write(const Stream& stream, std::size_t share) const;
  void tell_writable();
  void begin_requests();
  std::size_t receive_budget() const;  // 0: no limit
  // http2_receive.cc. While over_: what came, and what a stream's handler has consumed.
  void on_received(Stream& stream, std::size_t bytes);
  void open_window(Stream& stream, std::size_t bytes);
  void give_window(Stream& stream);
  // After anything that may change over_, full_ or preferred_.
  void settle_received();
  // http2_limits.cc.
  void count(Limit limit) {
    if (limit_counters != nullptr) limit_counters->add(limit);
  }
  // Counts, says GOAWAY and breaks the session off.
  void exceed(Limit limit);
  void glitch(uint64_t count = 1) { guard_.glitch(count, now_); }
  // A field beyond the limits of its list. False: stop reading the list, reset the stream.
  bool on_header_over(Stream& stream, std::size_t bytes);
  bool take(const ConnectionGuard::Step& step);
  void check_streams();
  bool body_stalls(Stream& stream);
  bool first_window_stalls(Stream& stream);
  bool window_stalls(Stream& stream);

  const Http2Options options_;
  StreamAcceptor& acceptor_;
  const std::string peer_;
  std::shared_ptr<const AuthContext> auth_context_;
  TimePoint now_;
  ConnectionGuard guard_;
  TimePoint bodies_checked_;
  std::unique_ptr<SessionMemory> memory_;  // the session's; null: malloc's
  nghttp2_session* session_ = nullptr;
  OutputQueue* output_ = nullptr;  // during drain(): where send_data puts frames
  bool feeding_ = false;
  bool broken_ = false;
  bool settings_sent_ = false;
  bool output_ended_ = false;  // the last drain() came to its end
  bool resting_ = true;        // no stream since the beginning, or the last PING of ours
  int32_t last_stream_ = 0;    // highest identifier that the client has used
  // The last identifiers that the client has passed over.
  int32_t skipped_first_ = 0;
  int32_t skipped_last_ = -1;
  std::size_t open_streams_ = 0;
  std::size_t unsent_ = 0;
  std::size_t unsent_answers_ = 0;  // of unsent_, on streams with answer_
  // The receive budget.
  std::size_t held_ = 0;                          // charged by streams
  std::size_t inflated_ = 0;                      // of held_, see Stream::count_inflated()
  std::size_t packed_ = 0;                        // of held_, see Stream::count_packed()
  std::size_t grown_ = 0;                         // what grow_window() added to open streams
  bool over_ = false;                             // held_ is at the budget or over it
  bool full_ = false;                             // whole messages alone are
  std::size_t withheld_ = 0;                      // of the connection's window
  Stream* preferred_ = nullptr;                   // whose message may go on while over_
  std::vector<Stream*> beginners_;                // may_begin() was false; in that order
  std::vector<Stream*> waiting_;                  // for on_writable; those with wants_writable_
  std::vector<std::unique_ptr<Stream>> streams_;  // all ever made; idle ones are in free_
  std::vector<Stream*> free_;
};

}  // namespace headrace
