// ListenSocket: bound, listening sockets for one address. Listener: one on an event loop; hands every
// accepted connection to `on_accept`.
//
//   Result<ListenSocket> socket = ListenSocket::open(*parse_listen_address("[::]:0"));
//   Listener listener(loop, std::move(*socket), on_accept);
//   listener.start();
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "transport/event_loop.h"
#include "transport/listen_address.h"

namespace headrace {

class ListenSocket {
 public:
  static constexpr uint32_t kPrivate = 0600;

  ListenSocket() = default;
  ListenSocket(ListenSocket&& other) noexcept;
  ListenSocket& operator=(ListenSocket&& other) noexcept;
  ~ListenSocket();  // close()

  // A name is bound at each of its addresses, with one port. "::" also takes IPv4, and is 0.0.0.0 where
  // there is no IPv6. A unix socket's file gets `unix_mode`, never more for a moment; one that a dead
  // process left is replaced, a live one or another kind of file is an error.
  // Errors: UNAVAILABLE naming the address and the reason.
  static Result<ListenSocket> open(const ListenAddress& address, uint32_t unix_mode = kPrivate);

  // With the port that was bound.
  const ListenAddress& address() const { return address_; }
  const std::vector<int>& fds() const { return fds_; }
  // Removes its file, too, if that is still its own.
  void close();

 private:
  Status open_tcp();
  Status open_unix(uint32_t mode);

  ListenAddress address_;
  std::vector<int> fds_;
  // Of the unix socket's file; inode 0: none.
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

class Listener final : public EventLoop::FdHandler {
 public:
  // `fd` is connected, non-blocking, with TCP_NODELAY; the callee owns it. `peer` as grpcio's
  // context.peer(): "ipv4:127.0.0.1:5000", "ipv6:%5B::1%5D:5000", "unix:".
  using OnAccept = std::function<void(int fd, std::string peer)>;
  Listener(EventLoop& loop, ListenSocket socket, OnAccept on_accept);
  ~Listener() override;

  // Begins to accept. Loop's thread, or before run().
  Status start();
  uint16_t port() const { return socket_.address().port; }
  // Accepts what already waits in the backlog, then closes. Loop's thread.
  void close();

  void on_ready(uint32_t events) override;

 private:
  // True: the backlog may hold more.
  bool accept_some(int fd);
  void watch(uint32_t events);

  EventLoop& loop_;
  ListenSocket socket_;
  const OnAccept on_accept_;
  TimerWheel::Timer resume_;  // after running out of descriptors
};

}  // namespace headrace
