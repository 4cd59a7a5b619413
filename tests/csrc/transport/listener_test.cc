#include "transport/listener.h"

#include <arpa/inet.h>
#include <doctest/doctest.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

using namespace headrace;

namespace {

int connect_to(uint16_t port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_in address {};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  REQUIRE(::connect(fd, reinterpret_cast<const struct sockaddr*>(&address), sizeof(address)) == 0);
  return fd;
}

uint16_t local_port(int fd) {
  struct sockaddr_in address {};
  socklen_t size = sizeof(address);
  ::getsockname(fd, reinterpret_cast<struct sockaddr*>(&address), &size);
  return ntohs(address.sin_port);
}

ListenSocket listen_on(const std::string& text, uint32_t mode = ListenSocket::kPrivate) {
  const Result<ListenAddress> address = parse_listen_address(text);
  REQUIRE(address);
  Result<ListenSocket> socket = ListenSocket::open(*address, mode);
  CAPTURE(text);
  REQUIRE_MESSAGE(socket, (socket ? "" : socket.error().message()));
  return std::move(*socket);
}

Status refusal(const std::string& text) {
  const Result<ListenSocket> socket = ListenSocket::open(*parse_listen_address(text));
  REQUIRE_FALSE(socket);
  return socket.error();
}

int connect_unix(const std::string& path, bool abstract = false) {
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_un address {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + (abstract ? 1 : 0), path.data(), path.size());
  const auto size =
      static_cast<socklen_t>(offsetof(struct sockaddr_un, sun_path) + path.size() + 1);
  if (::connect(fd, reinterpret_cast<const struct sockaddr*>(&address), size) == 0) return fd;
  ::close(fd);
  return -1;
}

// A folder that is gone at the end.
struct Folder {
  Folder() { REQUIRE(::mkdtemp(path.data()) != nullptr); }
  ~Folder() { std::filesystem::remove_all(path); }
  std::string operator/(const std::string& name) const { return path + "/" + name; }
  std::string path = "/tmp/headrace-listener-XXXXXX";
};

uint32_t mode_of(const std::string& path) {
  struct stat info {};
  REQUIRE(::stat(path.c_str(), &info) == 0);
  return info.st_mode & 0777;
}

// The peer of the one connection that waits.
std::string accepted_peer(ListenSocket socket) {
  EventLoop loop;
  REQUIRE(loop.open().ok());
  std::string seen;
  Listener listener(loop, std::move(socket), [&](int fd, std::string peer) {
    seen = std::move(peer);
    ::close(fd);
  });
  listener.close();
  return seen;
}

}  // namespace

TEST_CASE("close() first accepts all that waits, more than one turn's worth too") {
  EventLoop loop;
  REQUIRE(loop.open().ok());
  std::vector<std::pair<int, std::string>> accepted;
  Listener listener(loop, listen_on("127.0.0.1:0"),
                    [&](int fd, std::string peer) { accepted.emplace_back(fd, std::move(peer)); });
  REQUIRE(listener.start().ok());
  CHECK(listener.port() != 0);
  std::vector<int> clients;
  for (int i = 0; i < 200; ++i) clients.push_back(connect_to(listener.port()));
  listener.close();
  listener.close();
  REQUIRE(accepted.size() == 200);
  for (std::size_t i = 0; i < 200; ++i) {
    CHECK(accepted[i].second == "ipv4:127.0.0.1:" + std::to_string(local_port(clients[i])));
    CHECK((::fcntl(accepted[i].first, F_GETFL) & O_NONBLOCK) != 0);
    int no_delay = 0;
    socklen_t size = sizeof(no_delay);
    ::getsockopt(accepted[i].first, IPPROTO_TCP, TCP_NODELAY, &no_delay, &size);
    CHECK(no_delay != 0);
    ::close(accepted[i].first);
    ::close(clients[i]);
  }
}

TEST_CASE("connections are accepted by the running loop") {
  EventLoop loop;
  REQUIRE(loop.open().ok());
  int count = 0;
  Listener listener(loop, listen_on("localhost:0"), [&](int fd, const std::string&) {
    ::close(fd);
    if (++count == 100) loop.stop();
  });
  REQUIRE(listener.start().ok());
  const uint16_t port = listener.port();
  std::thread runner([&] { loop.run(); });
  // "localhost" may be ::1 here; then 127.0.0.1 refuses.
  for (int i = 0; i < 100; ++i) {
    int fd = ::socket(AF_INET6, SOCK_STREAM, 0);
    struct sockaddr_in6 six {};
    six.sin6_family = AF_INET6;
    six.sin6_port = htons(port);
    six.sin6_addr = in6addr_loopback;
    if (fd < 0 || ::connect(fd, reinterpret_cast<const struct sockaddr*>(&six), sizeof(six)) != 0) {
      if (fd >= 0) ::close(fd);
      fd = connect_to(port);
    }
    ::close(fd);
  }
  runner.join();
  CHECK(count == 100);
}

TEST_CASE("an address that cannot be had is named with the reason") {
  const ListenSocket first = listen_on("127.0.0.1:0");
  const std::string text = first.address().text();
  const Status taken = refusal(text);
  CHECK(taken.code() == StatusCode::kUnavailable);
  CHECK(taken.message() == "cannot listen on " + text + ": Address already in use");
  const Status nowhere = refusal("not a host name:0");
  CHECK(nowhere.code() == StatusCode::kUnavailable);
  CHECK(nowhere.message().find("not a host name") != std::string::npos);
  CHECK(refusal("unix:/nonexistent/x").message() ==
        "cannot listen on unix:/nonexistent/x: No such file or directory");
}

TEST_CASE("peers are spelled as grpcio spells them") {
  ListenSocket any = listen_on("[::]:0");
  const int v4 = connect_to(any.address().port);
  const std::string v4_peer = "ipv4:127.0.0.1:" + std::to_string(local_port(v4));
  CHECK(accepted_peer(std::move(any)) == v4_peer);
  ::close(v4);

  const int v6 = ::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_in6 address {};
  address.sin6_family = AF_INET6;
  address.sin6_addr = in6addr_loopback;
  if (v6 >= 0 &&
      ::bind(v6, reinterpret_cast<const struct sockaddr*>(&address), sizeof(address)) == 0) {
    ListenSocket socket = listen_on("[::1]:0");
    address.sin6_port = htons(socket.address().port);
    REQUIRE(::connect(v6, reinterpret_cast<const struct sockaddr*>(&address), sizeof(address)) ==
            0);
    socklen_t size = sizeof(address);
    ::getsockname(v6, reinterpret_cast<struct sockaddr*>(&address), &size);
    CHECK(accepted_peer(std::move(socket)) ==
          "ipv6:%5B::1%5D:" + std::to_string(ntohs(address.sin6_port)));
  } else {
    MESSAGE("no IPv6 here: its spelling is not tested");
  }
  ::close(v6);

  const Folder folder;
  ListenSocket socket = listen_on("unix:" + folder / "s");
  const int fd = connect_unix(folder / "s");
  REQUIRE(fd >= 0);
  CHECK(accepted_peer(std::move(socket)) == "unix:");
  ::close(fd);
}

TEST_CASE("a unix socket's file is private unless said otherwise, and goes with the socket") {
  const Folder folder;
  const std::string path = folder / "s";
  {
    const ListenSocket socket = listen_on("unix:" + path);
    CHECK(mode_of(path) == 0600);
  }
  CHECK_FALSE(std::filesystem::exists(path));
  // The umask does not take away what was asked for.
  const ListenSocket socket = listen_on("unix:" + path, 0666);
  CHECK(mode_of(path) == 0666);
}

TEST_CASE("a unix socket's file that a dead process left is replaced; what is alive is not") {
  const Folder folder;
  const std::string path = folder / "s";
  {
    // As a killed process leaves it: the file without a listener.
    const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un address {};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.data(), path.size());
    REQUIRE(::bind(fd, reinterpret_cast<const struct sockaddr*>(&address), sizeof(address)) == 0);
    ::close(fd);
    REQUIRE(std::filesystem::exists(path));
  }
  ListenSocket alive = listen_on("unix:" + path);
  const int fd = connect_unix(path);
  CHECK(fd >= 0);
  ::close(fd);
  CHECK(refusal("unix:" + path).message() ==
        "cannot listen on unix:" + path + ": Address already in use");
  // Somebody else's file is left alone, at the start and at the end.
  std::filesystem::remove(path);
  std::ofstream(path) << "precious";
  CHECK(refusal("unix:" + path).message().find("no socket") != std::string::npos);
  alive.close();
  CHECK(std::filesystem::exists(path));
}

TEST_CASE("an abstract unix socket") {
  const std::string name = "headrace-test-" + std::to_string(::getpid());
  const ListenSocket socket = listen_on("unix-abstract:" + name);
  const int fd = connect_unix(name, true);
  CHECK(fd >= 0);
  ::close(fd);
  CHECK(refusal("unix-abstract:" + name).message().find("already in use") != std::string::npos);
}

TEST_CASE("a name is listened on at all its addresses, with one port") {
  const ListenSocket socket = listen_on("localhost:0");
  REQUIRE_FALSE(socket.fds().empty());
  for (const int fd : socket.fds()) CHECK(local_port(fd) == socket.address().port);
}
