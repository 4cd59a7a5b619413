#include "transport/listener.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <memory>
#include <utility>

namespace headrace {
namespace {

constexpr int kAcceptsPerTurn = 16;
constexpr EventLoop::Lane kLane = EventLoop::Lane::kUntrusted;
constexpr Milliseconds kPause{100};

// grpcio's spelling: a URI, so the brackets (and a scope's %) are percent-encoded; an IPv4 client of a
// dual-stack socket is an IPv4 client.
std::string peer_name(const struct sockaddr_storage& address) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (address.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const struct sockaddr_in&>(address);
    ::inet_ntop(AF_INET, &v4.sin_addr, text.data(), text.size());
    return std::string("ipv4:") + text.data() + ":" + std::to_string(ntohs(v4.sin_port));
  }
  if (address.ss_family != AF_INET6) return "unix:";
  const auto& v6 = reinterpret_cast<const struct sockaddr_in6&>(address);
  const std::string port = std::to_string(ntohs(v6.sin6_port));
  if (IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr)) {
    ::inet_ntop(AF_INET, &v6.sin6_addr.s6_addr[12], text.data(), text.size());
    return std::string("ipv4:") + text.data() + ":" + port;
  }
  ::inet_ntop(AF_INET6, &v6.sin6_addr, text.data(), text.size());
  std::string host = text.data();
  std::array<char, IF_NAMESIZE> scope{};
  if (v6.sin6_scope_id != 0 && ::if_indextoname(v6.sin6_scope_id, scope.data()) != nullptr) {
    host += std::string("%25") + scope.data();
  }
  return "ipv6:%5B" + host + "%5D:" + port;
}

uint16_t bound_port(int fd) {
  struct sockaddr_storage bound {};
  socklen_t size = sizeof(bound);
  ::getsockname(fd, reinterpret_cast<struct sockaddr*>(&bound), &size);
  return ntohs(bound.ss_family == AF_INET
                   ? reinterpret_cast<const struct sockaddr_in&>(bound).sin_port
                   : reinterpret_cast<const struct sockaddr_in6&>(bound).sin6_port);
}

// A listening socket, or -1 and errno.
int listen_tcp(const struct addrinfo& entry, uint16_t port) {
  const int fd =
      ::socket(entry.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, entry.ai_protocol);
  if (fd < 0) return -1;
  const int one = 1;
  ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  struct sockaddr_storage address {};
  std::memcpy(&address, entry.ai_addr, entry.ai_addrlen);
  if (entry.ai_family == AF_INET6) {
    auto& v6 = reinterpret_cast<struct sockaddr_in6&>(address);
    v6.sin6_port = htons(port);
    const int only = IN6_IS_ADDR_UNSPECIFIED(&v6.sin6_addr) ? 0 : 1;
    ::setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof(only));
  } else {
    reinterpret_cast<struct sockaddr_in&>(address).sin_port = htons(port);
  }
  if (::bind(fd, reinterpret_cast<const struct sockaddr*>(&address), entry.ai_addrlen) == 0 &&
      ::listen(fd, SOMAXCONN) == 0) {
    return fd;
  }
  const int error = errno;
  ::close(fd);
  errno = error;
  return -1;
}

// /etc/hosts may name an address twice.
bool listed_before(const struct addrinfo* first, const struct addrinfo* entry) {
  for (; first != entry; first = first->ai_next) {
    if (first->ai_addrlen == entry->ai_addrlen &&
        std::memcmp(first->ai_addr, entry->ai_addr, entry->ai_addrlen) == 0) {
      return true;
    }
  }
  return false;
}

struct UnixName {
  struct sockaddr_un address {};
  socklen_t size = 0;
  const struct sockaddr* get() const { return reinterpret_cast<const struct sockaddr*>(&address); }
};

UnixName unix_name(const ListenAddress& from) {
  UnixName name;
  name.address.sun_family = AF_UNIX;
  const bool abstract = from.kind == ListenAddress::Kind::kUnixAbstract;
  // An abstract name begins with a zero byte and ends where its size says; a path with a terminator.
  std::memcpy(name.address.sun_path + (abstract ? 1 : 0), from.path.data(), from.path.size());
  name.size = static_cast<socklen_t>(offsetof(struct sockaddr_un, sun_path) + from.path.size() + 1);
  return name;
}

// Removes a socket file that nobody listens at any more. Otherwise says why it cannot be taken.
std::string remove_stale(const std::string& path, const UnixName& name) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) return errno == ENOENT ? "" : std::strerror(errno);
  if (!S_ISSOCK(info.st_mode)) return "a file that is no socket is in the way";
  const int probe = ::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (probe < 0) return std::strerror(errno);
  const bool refused = ::connect(probe, name.get(), name.size) != 0 && errno == ECONNREFUSED;
  ::close(probe);
  if (!refused) return std::strerror(EADDRINUSE);
  return ::unlink(path.c_str()) == 0 || errno == ENOENT ? "" : std::strerror(errno);
}

}  // namespace

ListenSocket::ListenSocket(ListenSocket&& other) noexcept { *this = std::move(other); }

ListenSocket& ListenSocket::operator=(ListenSocket&& other) noexcept {
  std::swap(address_, other.address_);
  std::swap(fds_, other.fds_);
  std::swap(device_, other.device_);
  std::swap(inode_, other.inode_);
  return *this;
}

ListenSocket::~ListenSocket() { close(); }

void ListenSocket::close() {
  if (inode_ != 0) {
    struct stat info {};
    const bool ours = ::lstat(address_.path.c_str(), &info) == 0 && info.st_ino == inode_ &&
                      info.st_dev == device_;
    if (ours) ::unlink(address_.path.c_str());
    inode_ = 0;
  }
  for (const int fd : fds_) ::close(fd);
  fds_.clear();
}

Result<ListenSocket> ListenSocket::open(const ListenAddress& address, uint32_t unix_mode) {
  ListenSocket socket;
  socket.address_ = address;
  Status status =
      address.kind == ListenAddress::Kind::kTcp ? socket.open_tcp() : socket.open_unix(unix_mode);
  if (!status.ok()) {
    return Status::unavailable("cannot listen on " + address.text() + ": " + status.message());
  }
  return socket;
}

Status ListenSocket::open_tcp() {
  struct addrinfo hints {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  struct addrinfo* found = nullptr;
  int rc = ::getaddrinfo(address_.host.c_str(), nullptr, &hints, &found);
  if (rc != 0) return Status::unavailable(::gai_strerror(rc));
  std::unique_ptr<struct addrinfo, void (*)(struct addrinfo*)> list(found, ::freeaddrinfo);
  std::string reason = "no address";
  const bool any_port = address_.port == 0;
  for (const struct addrinfo* entry = list.get(); entry != nullptr; entry = entry->ai_next) {
    if (listed_before(list.get(), entry)) continue;
    const int fd = listen_tcp(*entry, address_.port);
    if (fd >= 0) {
      fds_.push_back(fd);
      if (address_.port == 0) address_.port = bound_port(fd);
      continue;
    }
    const int error = errno;
    reason = std::strerror(error);
    // A family or address this machine does not have is no reason to refuse the others; a port that
    // was asked for and is taken at one of them is.
    if (error == EADDRINUSE && !any_port) return Status::unavailable(reason);
    if (address_.host == "::" && (error == EAFNOSUPPORT || error == EADDRNOTAVAIL)) {
      found = nullptr;
      rc = ::getaddrinfo("0.0.0.0", nullptr, &hints, &found);
      list.reset(found);
      const int v4 = rc == 0 ? listen_tcp(*found, address_.port) : -1;
      if (v4 < 0) break;
      fds_.push_back(v4);
      address_.port = bound_port(v4);
      break;
    }
  }
  return fds_.empty() ? Status::unavailable(reason) : Status();
}

Status ListenSocket::open_unix(uint32_t mode) {
  const UnixName name = unix_name(address_);
  const bool has_file = address_.kind == ListenAddress::Kind::kUnix;
  if (has_file) {
    const std::string problem = remove_stale(address_.path, name);
    if (!problem.empty()) return Status::unavailable(problem);
  }
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return Status::unavailable(std::strerror(errno));
  fds_.push_back(fd);
  // bind() makes the file with the socket's own mode less the umask: nobody gets in before the chmod.
  if (has_file) ::fchmod(fd, mode & ListenSocket::kPrivate);
  if (::bind(fd, name.get(), name.size) != 0) return Status::unavailable(std::strerror(errno));
  if (has_file) {
    struct stat info {};
    if (::lstat(address_.path.c_str(), &info) != 0 || ::chmod(address_.path.c_str(), mode) != 0) {
      return Status::unavailable(std::strerror(errno));
    }
    device_ = info.st_dev;
    inode_ = info.st_ino;
  }
  if (::listen(fd, SOMAXCONN) != 0) return Status::unavailable(std::strerror(errno));
  return {};
}

Listener::Listener(EventLoop& loop, ListenSocket socket, OnAccept on_accept)
    : loop_(loop), socket_(std::move(socket)), on_accept_(std::move(on_accept)) {
  resume_.owner = this;
  resume_.on_fire = [](TimerWheel::Timer& timer) {
    static_cast<Listener*>(timer.owner)->watch(EPOLLIN);
  };
}

Listener::~Listener() { loop_.timers().cancel(resume_); }

Status Listener::start() {
  for (const int fd : socket_.fds()) {
    Status status = loop_.add(fd, EPOLLIN, *this, kLane);
    if (!status.ok()) return status;
  }
  return {};
}

void Listener::watch(uint32_t events) {
  for (const int fd : socket_.fds()) loop_.modify(fd, events, *this, kLane);
}

void Listener::on_ready(uint32_t) {
  for (const int fd : socket_.fds()) accept_some(fd);
}

bool Listener::accept_some(int listening) {
  for (int i = 0; i < kAcceptsPerTurn; ++i) {
    struct sockaddr_storage address {};
    socklen_t size = sizeof(address);
    const int fd = ::accept4(listening, reinterpret_cast<struct sockaddr*>(&address), &size,
                             SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      // Out of descriptors or memory: the backlog stays readable, so look away for a moment.
      if (errno != EAGAIN) {
        watch(0);
        loop_.timers().schedule(resume_, loop_.now() + kPause);
      }
      return false;
    }
    if (address.ss_family != AF_UNIX) {
      const int one = 1;
      ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    }
    on_accept_(fd, peer_name(address));
    if (loop_.slice_over()) break;
  }
  return true;
}

void Listener::close() {
  for (const int fd : socket_.fds()) {
    while (accept_some(fd)) {
    }
    loop_.remove(fd, kLane);
  }
  socket_.close();
  loop_.timers().cancel(resume_);
}

}  // namespace headrace
