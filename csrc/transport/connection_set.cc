#include "transport/connection_set.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <span>
#include <utility>

namespace headrace {
namespace {

constexpr std::size_t kReadBytes = 128 * 1024;
constexpr int kVectors = 64;
constexpr std::size_t kPrefaceBytes = 24;  // RFC 9113 3.4

}  // namespace

class ConnectionSet::Socket final : public EventLoop::FdHandler {
 public:
  Socket(ConnectionSet& set, int fd, std::string peer, std::unique_ptr<TlsSession> tls,
         ConnectionCap::Admission admission)
      : set_(set),
        fd_(fd),
        tls_(std::move(tls)),
        admission_(std::move(admission)),
        lane_(tls_ ? EventLoop::Lane::kDirect : EventLoop::Lane::kUntrusted),
        http2_(set.options_, set.acceptor_, std::move(peer), set.loop_.now(),
               std::generate_canonical<double, 16>(set.jitter_), &set.pages_) {
    http2_.on_output = [this] { set_.mark_dirty(*this); };
    http2_.limit_counters = &set.counters_.limits;
    step_.owner = this;
    step_.on_fire = [](TimerWheel::Timer& timer) {
      Socket& self = *static_cast<Socket*>(timer.owner);
      self.step_at_ = kNever;
      if (self.closing_) return;
      // A crowd that came together is ended together.
      if (!self.http2_.trusted() && !self.shaking_hands()) return self.set_.wait_for_turn(self);
      // What is due may end it; the flush at the end of the turn closes then.
      self.take_step();
    };
    if (tls_) set_.handshakes_.begin(handshake_);
  }
  ~Socket() override {
    set_.handshakes_.finish(handshake_);
    set_.loop_.timers().cancel(step_);
    ::close(fd_);
  }

  void on_ready(uint32_t events) override {
    if (closing_) return;
    // The event stays, and comes back next turn.
    if (shaking_hands() && !set_.take_handshake_turn()) return;
    if (lane_ == EventLoop::Lane::kDirect && !shaking_hands()) set_.loop_.protect();
    http2_.advance(set_.loop_.now());
    const bool readable = (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0;
    if (readable && !read()) return set_.close(*this);
    set_.mark_dirty(*this);
  }

  // A step that was due, in an untrusted turn.
  void take_step() {
    http2_.advance(set_.loop_.now());
    set_.mark_dirty(*this);
  }

  // Writes what there is. False: close.
  bool flush() {
    http2_.advance(set_.loop_.now());
    // A stream that answers on_writable with more would go on for ever while its client reads: the others
    // get their turn after a few rounds.
    constexpr int kRounds = 16;
    for (int round = 0;; ++round) {
      const bool alive = http2_.drain(output_);
      const bool more = !output_.empty() && !shaking_hands();
      const bool written = tls_ ? write_sealed() : write(output_);
      if (!alive || !written) return false;
      // drain() stops at its bound: go on until it has no more or the socket takes no more.
      if (blocked_ || !more) break;
      if (round == kRounds) {
        set_.mark_dirty(*this);
        break;
      }
    }
    if (output_.empty() && !blocked_) {
      output_.release_idle();
      http2_.release_idle();
      if (tls_) tls_->output().release_idle();
      if (http2_.finished()) return false;
    }
    if (!watch()) return false;
    // Mostly the next step only moves further away: then the timer finds out when it fires.
    const TimePoint next = http2_.next_step();
    if (next < step_at_) {
      step_at_ = next;
      set_.loop_.timers().schedule(step_, next);
    }
    return true;
  }

  int fd() const { return fd_; }
  EventLoop::Lane lane() const { return lane_; }
  Http2Connection& http2() { return http2_; }
  bool dirty = false;
  bool waits_for_turn = false;

  void mark_closing() {
    closing_ = true;
    if (!tls_) return;
    // The guard's preface time-out is this same moment, and may come first.
    const bool overdue = set_.handshakes_.overdue(handshake_);
    end_handshake(overdue ? TlsResult::kTimeout : TlsResult::kDisconnected);
    tls_->close();
    if (!blocked_) write(tls_->output());  // the close_notify
  }
  bool closing() const { return closing_; }

  // Counts how the handshake ended, if it has not been counted yet.
  void end_handshake(TlsResult result) {
    if (std::exchange(handshake_counted_, true)) return;
    set_.counters_.tls_handshakes[static_cast<std::size_t>(result)].add();
    if (result == TlsResult::kOk && tls_->resumed()) set_.counters_.tls_resumed.add();
  }

 private:
  EventLoop::Lane lane_wanted() const {
    return http2_.trusted() || shaking_hands() ? EventLoop::Lane::kDirect
                                               : EventLoop::Lane::kUntrusted;
  }
  bool shaking_hands() const { return tls_ && tls_->state() == TlsSession::State::kHandshake; }

  bool read() {
    const std::size_t most = std::min(set_.read_buffer_.size(), http2_.read_quota());
    const ssize_t n = ::recv(fd_, set_.read_buffer_.data(), most, 0);
    if (n < 0) return errno == EAGAIN || errno == EINTR;
    if (n == 0) return false;
    set_.counters_.bytes_received.add(static_cast<uint64_t>(n));
    const std::span<const std::byte> bytes(set_.read_buffer_.data(), static_cast<std::size_t>(n));
    if (!(tls_ ? feed_sealed(bytes) : http2_.feed(bytes))) {
      flush();  // the GOAWAY, or the alert, that says why
      return false;
    }
    return true;
  }

  bool feed_sealed(std::span<const std::byte> bytes) {
    tls_->put(bytes);
    bool alive = true;
    while (alive) {
      const std::size_t n = tls_->read(set_.plain_buffer_);
      if (!handshake_counted_ && !shaking_hands()) {
        end_handshake(tls_->result());
        http2_.set_auth_context(tls_->auth_context());
      }
      if (n == 0) break;
      if (greeting_bytes_ < kPrefaceBytes) {
        greeting_bytes_ += n;
        if (greeting_bytes_ >= kPrefaceBytes) set_.handshakes_.finish(handshake_);
      }
      alive = http2_.feed(std::span(set_.plain_buffer_).first(n));
    }
    return alive && tls_->state() != TlsSession::State::kClosed;
  }

  // Alternates between encrypting and writing, so that little is held twice.
  bool write_sealed() {
    for (;;) {
      const bool sealed = tls_->seal(output_);
      if (!write(tls_->output()) || !sealed) return false;
      if (blocked_ || output_.empty() || shaking_hands()) return true;
    }
  }

  bool write(OutputQueue& queue) {
    bool progress = false;
    const bool alive = write_some(queue, progress);
    http2_.on_written(blocked_, progress, output_.size() + (tls_ ? tls_->output().size() : 0));
    return alive;
  }

  bool write_some(OutputQueue& queue, bool& progress) {
    blocked_ = false;
    while (!queue.empty()) {
      std::array<struct iovec, kVectors> vectors;
      struct msghdr message {};
      message.msg_iov = vectors.data();
      message.msg_iovlen = static_cast<std::size_t>(queue.front(vectors.data(), kVectors));
      const ssize_t n = ::sendmsg(fd_, &message, MSG_NOSIGNAL);
      if (n < 0) {
        if (errno == EINTR) continue;
        blocked_ = errno == EAGAIN;
        return blocked_;
      }
      progress |= n > 0;
      set_.counters_.bytes_sent.add(static_cast<uint64_t>(n));
      queue.pop(static_cast<std::size_t>(n));
    }
    return true;
  }

  // Reading pauses while the client does not take its answers: it may not make more work. Handshakes have
  // bounds of their own (Handshakes, take_handshake_turn()).
  bool watch() {
    const uint32_t wanted = blocked_ ? EPOLLOUT : EPOLLIN;
    const EventLoop::Lane lane = lane_wanted();
    if (wanted == watched_ && lane == lane_) return true;
    watched_ = wanted;
    if (lane == lane_) {
      set_.loop_.modify(fd_, wanted, *this, lane);
      return true;
    }
    set_.loop_.remove(fd_, lane_);
    lane_ = lane;
    return set_.loop_.add(fd_, wanted, *this, lane).ok();
  }

  ConnectionSet& set_;
  const int fd_;
  const std::unique_ptr<TlsSession> tls_;  // null: plain HTTP/2
  Handshakes::Entry handshake_{this};
  bool handshake_counted_ = false;
  std::size_t greeting_bytes_ = 0;  // of the client's preface, under TLS
  const ConnectionCap::Admission admission_;
  OutputQueue output_;
  bool blocked_ = false;
  bool closing_ = false;
  uint32_t watched_ = EPOLLIN;
  EventLoop::Lane lane_;
  TimerWheel::Timer step_;  // for http2_.next_step()
  TimePoint step_at_ = kNever;
  Http2Connection http2_;  // last: its destructor ends the streams
};

ConnectionSet::ConnectionSet(EventLoop& loop, const Http2Options& options, StreamAcceptor& acceptor,
                             const TlsLimits& tls)
    : loop_(loop),
      options_(options),
      tls_limits_(tls),
      acceptor_(acceptor),
      jitter_(std::random_device{}()),
      read_buffer_(kReadBytes),
      handshakes_(
          loop.timers(), [this] { return loop_.now(); }, tls.handshake_timeout, tls.max_handshakes,
          [this](Handshakes::Entry& entry, bool crowded_out) {
            Socket& socket = *static_cast<Socket*>(entry.owner);
            socket.end_handshake(crowded_out ? TlsResult::kCrowdedOut : TlsResult::kTimeout);
            close(socket);
          }) {}

ConnectionSet::~ConnectionSet() {
  for (Socket* socket : due_) {
    if (socket->closing()) delete socket;
  }
  for (Socket* socket : open_) delete socket;
}

void ConnectionSet::adopt(int fd, std::string peer, const std::shared_ptr<const TlsContext>& tls,
                          ConnectionCap::Admission admission) {
  std::unique_ptr<TlsSession> session;
  if (tls) {
    plain_buffer_.resize(TlsSession::kRecordBytes);
    Result<std::unique_ptr<TlsSession>> made = TlsSession::make(*tls);
    if (!made) {
      ::close(fd);
      return;
    }
    session = std::move(*made);
  }
  auto socket = std::make_unique<Socket>(*this, fd, std::move(peer), std::move(session),
                                         std::move(admission));
  if (!loop_.add(fd, EPOLLIN, *socket, socket->lane()).ok()) return;  // closes the descriptor
  counters_.connections_open.add();
  counters_.connections_total.add();
  if (shutting_down_) socket->http2().finish_shutdown();
  mark_dirty(*socket);  // our SETTINGS
  open_.insert(socket.release());
}

bool ConnectionSet::take_handshake_turn() {
  if (handshake_turn_ != loop_.now()) {
    handshake_turn_ = loop_.now();
    handshakes_in_turn_ = 0;
  }
  return handshakes_in_turn_++ < tls_limits_.handshakes_per_turn;
}

void ConnectionSet::request_untrusted_turn() {
  if (std::exchange(untrusted_turn_requested_, true)) return;
  loop_.at_untrusted_turn(*this);
}

void ConnectionSet::mark_dirty(Socket& socket) {
  if (socket.dirty || socket.closing()) return;
  socket.dirty = true;
  dirty_.push_back(&socket);
  request_flush();
}

void ConnectionSet::request_flush() {
  if (std::exchange(flush_requested_, true)) return;
  loop_.at_flush(*this);
}

void ConnectionSet::wait_for_turn(Socket& socket) {
  if (std::exchange(socket.waits_for_turn, true)) return;
  due_.push(&socket);
  request_untrusted_turn();
}

void ConnectionSet::close(Socket& socket) {
  if (socket.closing()) return;
  socket.mark_closing();
  loop_.remove(socket.fd(), socket.lane());
  open_.erase(&socket);
  if (socket.dirty)
    std::erase(dirty_, &socket);  // it may be for the next turn, and this one destroys it
  // Else it is taken from due_ first.
  if (!socket.waits_for_turn) closed_.push(std::unique_ptr<Socket>(&socket));
  // The loop may end right after a shutdown.
  if (shutting_down_) return request_flush();
  request_untrusted_turn();
}

void ConnectionSet::on_turn_end() {
  flush_requested_ = false;
  // A flush may make others dirty, or its own again: those wait for the next turn.
  flushing_.swap(dirty_);
  for (Socket* socket : flushing_) {
    socket->dirty = false;
    if (!socket->closing() && !socket->flush()) close(*socket);
  }
  flushing_.clear();
  while (shutting_down_ && has_chores()) do_chore();
}

void ConnectionSet::on_untrusted_turn() {
  untrusted_turn_requested_ = false;
  while (has_chores()) {
    do_chore();
    if (loop_.slice_over()) break;
  }
  if (has_chores()) request_untrusted_turn();
}

// One connection at a time: it may have hundreds of streams.
void ConnectionSet::do_chore() {
  if (!closed_.empty()) {
    std::unique_ptr<Socket> socket = std::move(closed_.front());
    closed_.pop();
    socket.reset();
    // After its streams have ended: who waits for the count may rely on that.
    counters_.connections_open.subtract();
    return;
  }
  Socket* socket = due_.front();
  due_.pop();
  socket->waits_for_turn = false;
  if (socket->closing()) {
    closed_.push(std::unique_ptr<Socket>(socket));
  } else {
    socket->take_step();
  }
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
  shutting_down_ = true;
  const std::vector<Socket*> all(open_.begin(), open_.end());
  for (Socket* socket : all) {
    socket->flush();
    close(*socket);
  }
}

}  // namespace headrace
