// ConnectionSet: the sockets of one event loop, each with its Http2Connection. Reads what is there,
// and flushes every connection that has output once at the end of a turn.
//
// Threads: belongs to its loop's thread; the counters may be read from any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "base/counter.h"
#include "transport/event_loop.h"
#include "transport/http2_connection.h"

namespace headrace {

struct TransportCounters {
  Counter connections_open;
  Counter connections_total;
  Counter bytes_received;
  Counter bytes_sent;
};

class ConnectionSet final : public EventLoop::TurnEnd {
 public:
  ConnectionSet(EventLoop& loop, const Http2Options& options, StreamAcceptor& acceptor);
  ~ConnectionSet() override;

  // Takes a connected, non-blocking socket.
  void adopt(int fd, std::string peer);

  void begin_shutdown();
  // Connections close by themselves once their last stream ended.
  void finish_shutdown();
  // Closes all at once; handlers hear on_closed.
  void close_all();
  bool empty() const { return open_.empty(); }

  const TransportCounters& counters() const { return counters_; }
  void on_turn_end() override;

 private:
  class Socket;
  void mark_dirty(Socket& socket);
  void close(Socket& socket);

  EventLoop& loop_;
  const Http2Options options_;
  StreamAcceptor& acceptor_;
  TransportCounters counters_;
  std::vector<std::byte> read_buffer_;  // shared by all: a read is consumed before the next
  std::unordered_set<Socket*> open_;
  std::vector<Socket*> dirty_;
  std::vector<Socket*> flushing_;                // dirty_ of this turn's end
  std::vector<std::unique_ptr<Socket>> closed_;  // destroyed at the end of the turn
  bool turn_end_requested_ = false;
  bool shutting_down_ = false;
};

}  // namespace headrace
