#include "transport/listener.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>

namespace headrace {
namespace {

constexpr int kAcceptsPerTurn = 64;
constexpr Milliseconds kPause{100};

std::string peer_name(const struct sockaddr_storage& address) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (address.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const struct sockaddr_in&>(address);
    ::inet_ntop(AF_INET, &v4.sin_addr, text.data(), text.size());
    return std::string("ipv4:") + text.data() + ":" + std::to_string(ntohs(v4.sin_port));
  }
  const auto& v6 = reinterpret_cast<const struct sockaddr_in6&>(address);
  ::inet_ntop(AF_INET6, &v6.sin6_addr, text.data(), text.size());
  return std::string("ipv6:[") + text.data() + "]:" + std::to_string(ntohs(v6.sin6_port));
}

}  // namespace

Listener::Listener(EventLoop& loop, OnAccept on_accept)
    : loop_(loop), on_accept_(std::move(on_accept)) {
  resume_.owner = this;
  resume_.on_fire = [](TimerWheel::Timer& timer) {
    Listener& self = *static_cast<Listener*>(timer.owner);
    if (self.fd_ >= 0) self.loop_.modify(self.fd_, EPOLLIN, self);
  };
}

Listener::~Listener() {
  loop_.timers().cancel(resume_);
  if (fd_ >= 0) ::close(fd_);
}

Status Listener::open(const std::string& host, uint16_t port) {
  const std::string address = host + ":" + std::to_string(port);
  struct addrinfo hints {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  struct addrinfo* found = nullptr;
  const int rc = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (rc != 0) {
    return Status::unavailable("cannot listen on " + address + ": " + ::gai_strerror(rc));
  }
  const std::unique_ptr<struct addrinfo, void (*)(struct addrinfo*)> list(found, ::freeaddrinfo);
  std::string reason = "no address";
  for (const struct addrinfo* entry = list.get(); entry != nullptr; entry = entry->ai_next) {
    const int fd =
        ::socket(entry->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, entry->ai_protocol);
    if (fd < 0) {
      reason = std::strerror(errno);
      continue;
    }
    const int one = 1;
    ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (::bind(fd, entry->ai_addr, entry->ai_addrlen) == 0 && ::listen(fd, SOMAXCONN) == 0) {
      struct sockaddr_storage bound {};
      socklen_t size = sizeof(bound);
      ::getsockname(fd, reinterpret_cast<struct sockaddr*>(&bound), &size);
      port_ = ntohs(bound.ss_family == AF_INET
                        ? reinterpret_cast<const struct sockaddr_in&>(bound).sin_port
                        : reinterpret_cast<const struct sockaddr_in6&>(bound).sin6_port);
      fd_ = fd;
      return loop_.add(fd_, EPOLLIN, *this);
    }
    reason = std::strerror(errno);
    ::close(fd);
  }
  return Status::unavailable("cannot listen on " + address + ": " + reason);
}

void Listener::on_ready(uint32_t) { accept_some(); }

bool Listener::accept_some() {
  for (int i = 0; i < kAcceptsPerTurn; ++i) {
    struct sockaddr_storage address {};
    socklen_t size = sizeof(address);
    const int fd = ::accept4(fd_, reinterpret_cast<struct sockaddr*>(&address), &size,
                             SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      // Out of descriptors or memory: the backlog stays readable, so look away for a moment.
      if (errno != EAGAIN) pause();
      return false;
    }
    const int one = 1;
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    on_accept_(fd, peer_name(address));
  }
  return true;
}

void Listener::pause() {
  loop_.modify(fd_, 0, *this);
  loop_.timers().schedule(resume_, loop_.now() + kPause);
}

void Listener::close() {
  if (fd_ < 0) return;
  while (accept_some()) {
  }
  loop_.remove(fd_);
  ::close(fd_);
  fd_ = -1;
  loop_.timers().cancel(resume_);
}

}  // namespace headrace
