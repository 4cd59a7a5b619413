#include "transport/listener.h"

#include <arpa/inet.h>
#include <doctest/doctest.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

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

}  // namespace

TEST_CASE("close() first accepts all that waits, more than one turn's worth too") {
  EventLoop loop;
  REQUIRE(loop.open().ok());
  std::vector<std::pair<int, std::string>> accepted;
  Listener listener(loop,
                    [&](int fd, std::string peer) { accepted.emplace_back(fd, std::move(peer)); });
  REQUIRE(listener.open("127.0.0.1", 0).ok());
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
  Listener listener(loop, [&](int fd, std::string) {
    ::close(fd);
    if (++count == 100) loop.stop();
  });
  REQUIRE(listener.open("localhost", 0).ok());
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
  EventLoop loop;
  REQUIRE(loop.open().ok());
  const auto ignore = [](int fd, const std::string&) { ::close(fd); };
  Listener first(loop, ignore);
  REQUIRE(first.open("127.0.0.1", 0).ok());
  Listener second(loop, ignore);
  const Status taken = second.open("127.0.0.1", first.port());
  CHECK(taken.code() == StatusCode::kUnavailable);
  CHECK(taken.message() ==
        "cannot listen on 127.0.0.1:" + std::to_string(first.port()) + ": Address already in use");
  const Status nowhere = second.open("not a host name", 0);
  CHECK(nowhere.code() == StatusCode::kUnavailable);
  CHECK(nowhere.message().find("not a host name") != std::string::npos);
}
