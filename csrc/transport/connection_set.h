// ConnectionSet: the sockets of one event loop, each with its Http2Connection, and between the two a
// TlsSession where the listener has TLS. Reads what is there, and flushes every connection that has
// output once at the end of a turn. Connections that are not trusted (ConnectionGuard) are on the loop's
// untrusted lane, where they share a part of its time; so are ends of connections.
//
// Threads: belongs to its loop's thread; the counters may be read from any.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <unordered_set>
#include <vector>

#include "base/counter.h"
#include "base/fifo.h"
#include "transport/connection_cap.h"
#include "transport/connection_limits.h"
#include "transport/event_loop.h"
#include "transport/handshakes.h"
#include "transport/http2_connection.h"
#include "transport/session_memory.h"
#include "transport/tls_session.h"

namespace headrace {

struct TransportCounters {
  Counter connections_open;
  Counter connections_total;
  Counter bytes_received;
  Counter bytes_sent;
  std::array<Counter, kTlsResults> tls_handshakes;  // by TlsResult
  LimitCounters limits;
  Counter tls_resumed;  // of the kOk ones
};

struct TlsLimits {
  // From accept() to the client's HTTP/2 preface.
  Nanoseconds handshake_timeout = std::chrono::seconds(5);
  // Going on at once; past it, the oldest ends.
  std::size_t max_handshakes = 1000;
  // Connections whose handshake may go on in one turn of the loop: a signature takes up to a
  // millisecond, and calls of other connections wait for it. The others' turn comes in the next.
  std::size_t handshakes_per_turn = 4;
};

class ConnectionSet final : public EventLoop::TurnEnd, public EventLoop::UntrustedWork {
 public:
  ConnectionSet(EventLoop& loop, const Http2Options& options, StreamAcceptor& acceptor,
                const TlsLimits& tls = {});
  ~ConnectionSet() override;

  // Takes a connected, non-blocking socket. `tls`: null for plain HTTP/2. `admission` is held
  // for as long as it is open.
  void adopt(int fd, std::string peer, const std::shared_ptr<const TlsContext>& tls = nullptr,
             ConnectionCap::Admission admission = nullptr);

  void begin_shutdown();
  // Connections close by themselves once their last stream ended.
  void finish_shutdown();
  // Closes all at once; handlers hear on_closed.
  void close_all();
  bool empty() const { return open_.empty(); }

  const TransportCounters& counters() const { return counters_; }
  void on_turn_end() override;
  void on_untrusted_turn() override;

 private:
  class Socket;
  void mark_dirty(Socket& socket);
  void close(Socket& socket);
  // Of a connection that is not trusted: what is due is done when its turn comes.
  void wait_for_turn(Socket& socket);
  void request_flush();
  void request_untrusted_turn();
  // Destroying what is closed, and what waits for its turn.
  bool has_chores() const { return !closed_.empty() || !due_.empty(); }
  void do_chore();
  // Whether a handshake may go on in this turn.
  bool take_handshake_turn();

  EventLoop& loop_;
  const Http2Options options_;
  const TlsLimits tls_limits_;
  StreamAcceptor& acceptor_;
  TransportCounters counters_;
  std::minstd_rand jitter_;
  SessionPages pages_;                   // before all connections
  std::vector<std::byte> read_buffer_;   // shared by all: a read is consumed before the next
  std::vector<std::byte> plain_buffer_;  // likewise, a decrypted record; empty without TLS
  Handshakes handshakes_;
  TimePoint handshake_turn_;  // the turn that handshakes_in_turn_ counts
  std::size_t handshakes_in_turn_ = 0;
  std::unordered_set<Socket*> open_;
  std::vector<Socket*> dirty_;
  std::vector<Socket*> flushing_;         // dirty_ of this turn's end
  Fifo<Socket*> due_;                     // not trusted, and with something due; some are closed
  Fifo<std::unique_ptr<Socket>> closed_;  // destroyed in untrusted turns
  bool flush_requested_ = false;
  bool untrusted_turn_requested_ = false;
  bool shutting_down_ = false;
};

}  // namespace headrace
