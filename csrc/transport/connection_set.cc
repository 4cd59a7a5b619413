#include "transport/connection_set.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <utility>

namespace headrace {
namespace {

constexpr std::size_t kReadBytes = 128 * 1024;
constexpr int kVectors = 64;

}  // namespace

class ConnectionSet::Socket final : public EventLoop::FdHandler {
 public:
  Socket(ConnectionSet& set, int fd, std::string peer)
      : set_(set), fd_(fd), http2_(set.options_, set.acceptor_, std::move(peer)) {
    http2_.on_output = [this] { set_.mark_dirty(*this); };
  }
  ~Socket() override { ::close(fd_); }

  void on_ready(uint32_t events) override {
    if (closing_) return;
    if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0 && !read()) return set_.close(*this);
    set_.mark_dirty(*this);
  }

  // Writes what there is. False: close.
  bool flush() {
    // A stream that answers on_writable with more would go on for ever while its client reads: the others
    // get their turn after a few rounds.
    constexpr int kRounds = 16;
    for (int round = 0;; ++round) {
      const bool alive = http2_.drain(output_);
      const bool more = !output_.empty();
      const bool written = write();
      if (!alive || !written) return false;
      // drain() stops at its bound: go on until it has no more or the socket takes no more.
      if (blocked_ || !more) break;
      if (round == kRounds) {
        set_.mark_dirty(*this);
        break;
      }
    }
    if (output_.empty()) {
      output_.release_idle();
      if (http2_.finished()) return false;
    }
    watch();
    return true;
  }

  int fd() const { return fd_; }
  Http2Connection& http2() { return http2_; }
  bool dirty = false;

  void mark_closing() { closing_ = true; }
  bool closing() const { return closing_; }

 private:
  bool read() {
    const ssize_t n = ::recv(fd_, set_.read_buffer_.data(), set_.read_buffer_.size(), 0);
    if (n < 0) return errno == EAGAIN || errno == EINTR;
    if (n == 0) return false;
    set_.counters_.bytes_received.add(static_cast<uint64_t>(n));
    if (!http2_.feed({set_.read_buffer_.data(), static_cast<std::size_t>(n)})) {
      flush();  // the GOAWAY that says why
      return false;
    }
    return true;
  }

  bool write() {
    blocked_ = false;
    while (!output_.empty()) {
      std::array<struct iovec, kVectors> vectors;
      struct msghdr message {};
      message.msg_iov = vectors.data();
      message.msg_iovlen = static_cast<std::size_t>(output_.front(vectors.data(), kVectors));
      const ssize_t n = ::sendmsg(fd_, &message, MSG_NOSIGNAL);
      if (n < 0) {
        if (errno == EINTR) continue;
        blocked_ = errno == EAGAIN;
        return blocked_;
      }
      set_.counters_.bytes_sent.add(static_cast<uint64_t>(n));
      output_.pop(static_cast<std::size_t>(n));
    }
    return true;
  }

  // Reading pauses while the client does not take its answers: it may not make more work.
  void watch() {
    const uint32_t wanted = blocked_ ? EPOLLOUT : EPOLLIN;
    if (wanted == watched_) return;
    watched_ = wanted;
    set_.loop_.modify(fd_, wanted, *this);
  }

  ConnectionSet& set_;
  const int fd_;
  OutputQueue output_;
  bool blocked_ = false;
  bool closing_ = false;
  uint32_t watched_ = EPOLLIN;
  Http2Connection http2_;  // last: its destructor ends the streams
};

ConnectionSet::ConnectionSet(EventLoop& loop, const Http2Options& options, StreamAcceptor& acceptor)
    : loop_(loop), options_(options), acceptor_(acceptor), read_buffer_(kReadBytes) {}

ConnectionSet::~ConnectionSet() {
  for (Socket* socket : open_) delete socket;
}

void ConnectionSet::adopt(int fd, std::string peer) {
  auto socket = std::make_unique<Socket>(*this, fd, std::move(peer));
  if (!loop_.add(fd, EPOLLIN, *socket).ok()) return;  // closes the descriptor
  counters_.connections_open.add();
  counters_.connections_total.add();
  if (shutting_down_) socket->http2().finish_shutdown();
  mark_dirty(*socket);  // our SETTINGS
  open_.insert(socket.release());
}

void ConnectionSet::mark_dirty(Socket& socket) {
  if (socket.dirty || socket.closing()) return;
  socket.dirty = true;
  dirty_.push_back(&socket);
  if (!turn_end_requested_) {
    turn_end_requested_ = true;
    loop_.at_turn_end(*this);
  }
}

void ConnectionSet::close(Socket& socket) {
  if (socket.closing()) return;
  socket.mark_closing();
  loop_.remove(socket.fd());
  open_.erase(&socket);
  if (socket.dirty)
    std::erase(dirty_, &socket);  // it may be for the next turn, and this one destroys it
  closed_.emplace_back(&socket);
  if (!turn_end_requested_) {
    turn_end_requested_ = true;
    loop_.at_turn_end(*this);
  }
}

void ConnectionSet::on_turn_end() {
  turn_end_requested_ = false;
  // A flush may make others dirty, or its own again: those wait for the next turn.
  flushing_.swap(dirty_);
  for (Socket* socket : flushing_) {
    socket->dirty = false;
    if (!socket->closing() && !socket->flush()) close(*socket);
  }
  flushing_.clear();
  std::vector<std::unique_ptr<Socket>> gone = std::move(closed_);
  closed_.clear();
  const std::size_t ended = gone.size();
  gone.clear();
  // After their streams have ended: who waits for the count may rely on that.
  counters_.connections_open.subtract(ended);
}

void ConnectionSet::begin_shutdown() {
  shutting_down_ = true;
  for (Socket* socket : open_) socket->http2().begin_shutdown();
}

void ConnectionSet::finish_shutdown() {
  shutting_down_ = true;
  for (Socket* socket : open_) socket->http2().finish_shutdown();
}

void ConnectionSet::close_all() {
  const std::vector<Socket*> all(open_.begin(), open_.end());
  for (Socket* socket : all) {
    socket->flush();
    close(*socket);
  }
}

}  // namespace headrace
