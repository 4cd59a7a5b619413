// The lower half of the wire over real sockets: an event loop on its thread, and a blocking client.
// Waits are for things that must happen; a time-out turns a hang into a failure.
#pragma once

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "rpc/call.h"
#include "transport/connection_set.h"
#include "transport/event_loop.h"
#include "wire_client.h"

namespace headrace::test {

inline const std::string kPath = "/test.Echo/Call";

struct Rig {
  explicit Rig(const Http2Options& options = {}, const TlsLimits& tls = {})
      : loop(
            Nanoseconds{0}, [] { return true; }, options.limits.untrusted_percent),
        budget(64 << 20),
        calls(methods, budget, loop.timers(), [this] { return loop.now(); }),
        set(std::make_unique<ConnectionSet>(loop, options, calls, tls)) {
    REQUIRE(loop.open().ok());
    calls.spread_over(loop);
    methods.add(kPath, {&handler, 32 << 20});
    thread = std::thread([this] { loop.run(); });
  }
  ~Rig() {
    loop.stop();
    thread.join();
    set.reset();
    CHECK(budget.used() == 0);
    CHECK(calls.active() == 0);
  }
  // Runs `function` on the loop and waits for it.
  template <class F>
  auto on_loop(F function) {
    using R = std::invoke_result_t<F>;
    std::packaged_task<R()> task(std::move(function));
    std::future<R> result = task.get_future();
    REQUIRE(loop.post([&task] { task(); }));
    return result.get();
  }
  // One turn of the loop after another until it is so.
  bool until(const std::function<bool()>& condition) {
    const TimePoint end = Clock::now() + std::chrono::seconds(60);
    while (!on_loop([&] { return condition(); })) {
      if (Clock::now() > end) return false;
    }
    return true;
  }
  // The client's end of a new connection. `buffer_bytes`: of the sockets between; 0: the system's.
  int connect(const std::shared_ptr<const TlsContext>& tls = nullptr, int buffer_bytes = 0) {
    std::array<int, 2> fds;
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()) == 0);
    REQUIRE(::fcntl(fds[0], F_SETFL, O_NONBLOCK) == 0);
    if (buffer_bytes != 0) {
      for (const int fd : fds) {
        ::setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer_bytes, sizeof(buffer_bytes));
      }
    }
    on_loop([&] { set->adopt(fds[0], "unix:", tls); });
    return fds[1];
  }
  uint64_t open_connections() const { return set->counters().connections_open.read(); }

  EventLoop loop;
  MethodTable methods;
  ReceiveBudget budget;
  ScriptedHandler handler;
  CallSet calls;
  std::unique_ptr<ConnectionSet> set;
  std::thread thread;
};

// A blocking client on one socket.
class SocketClient {
 public:
  explicit SocketClient(int fd, const ClientOptions& options = {}) : client(options), fd_(fd) {
    const struct timeval limit { 60, 0 };
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    ::setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
  }
  ~SocketClient() { close(); }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  void send() { send_raw(client.output()); }
  void send_raw(const std::string& bytes) {
    std::size_t sent = 0;
    while (sent < bytes.size()) {
      const ssize_t n = ::send(fd_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      if (n < 0 && (errno == EPIPE || errno == ECONNRESET)) return;  // what it sent is still read
      REQUIRE(n > 0);
      sent += static_cast<std::size_t>(n);
    }
  }
  // Reads and answers until `done`. False: the server closed, or nothing came for a minute.
  bool exchange(const std::function<bool()>& done) {
    return exchange_raw(
        [&] {
          send();
          return done();
        },
        [&](const std::string& bytes) { return client.input(bytes); });
  }
  // The same for who speaks for itself: `step` sends and says whether it is done.
  bool exchange_raw(const std::function<bool()>& step,
                    const std::function<bool(const std::string&)>& take) {
    std::vector<char> buffer(64 * 1024);
    for (;;) {
      if (step()) return true;
      const ssize_t n = ::recv(fd_, buffer.data(), buffer.size(), 0);
      if (n <= 0) {
        closed_by_server = n == 0 || errno == ECONNRESET;
        return false;
      }
      received += static_cast<std::size_t>(n);
      if (!take(std::string(buffer.data(), static_cast<std::size_t>(n)))) return false;
    }
  }
  bool finish(int32_t id) {
    return exchange([&] { return client.reply(id).ended; });
  }

  TestClient client;
  bool closed_by_server = false;
  std::size_t received = 0;

 private:
  int fd_;
};

}  // namespace headrace::test
