// Listener: a listening TCP socket on an event loop; hands every accepted connection to `on_accept`.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/status.h"
#include "transport/event_loop.h"

namespace headrace {

class Listener final : public EventLoop::FdHandler {
 public:
  // `fd` is connected, non-blocking, with TCP_NODELAY; the callee owns it.
  using OnAccept = std::function<void(int fd, std::string peer)>;
  Listener(EventLoop& loop, OnAccept on_accept);
  ~Listener() override;

  // host: a numeric address or a name; "0.0.0.0", "::". port 0: any free one.
  // Errors: UNAVAILABLE naming the address and the reason.
  Status open(const std::string& host, uint16_t port);
  uint16_t port() const { return port_; }
  // Accepts what already waits in the backlog, then closes. Loop's thread.
  void close();

  void on_ready(uint32_t events) override;

 private:
  // True: the backlog may hold more.
  bool accept_some();
  void pause();

  EventLoop& loop_;
  const OnAccept on_accept_;
  int fd_ = -1;
  uint16_t port_ = 0;
  TimerWheel::Timer resume_;  // after running out of descriptors
};

}  // namespace headrace
