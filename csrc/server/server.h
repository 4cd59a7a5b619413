// Server: the composition root. It owns the I/O threads, joins the wire tower (transport, rpc,
// frontend) with what the control plane publishes, and ends everything in order.
//
// Threads: the control plane calls one member at a time, from any thread that is not an I/O thread.
//
//   Server server(options);
//   server.add_method("/pkg.Service/Method", factory);
//   server.add_listener("unix:/run/headrace.sock");
//   Status status = server.start();
//   server.publish(routes);
//   server.stop(30s);
// ---------------------------------------------------------------------------------------------
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "frontend/server_state.h"
#include "rpc/call.h"
#include "transport/connection_cap.h"
#include "transport/connection_limits.h"
#include "transport/event_loop.h"
#include "transport/tls.h"
#include "transport/tls_session.h"

namespace headrace {

struct ServerOptions {
  // Listened on, without TLS, by a server that has no add_listener(). host "": nowhere.
  std::string host = "0.0.0.0";
  uint16_t port = 8001;  // 0: any free one
  uint32_t io_threads = 1;
  // How long an I/O thread may look for the next call before it sleeps (busy_poll.h); zero: never.
  Nanoseconds busy_poll{0};
  bool kserve = true;  // answers ModelInfer, the probes and health, and nvidia.riva.asr
  std::size_t max_message_bytes = 0x7fffffff;  // of ModelInfer
  // Of received and unanswered messages, over all connections.
  std::size_t receive_budget_bytes = std::size_t{4} << 30;
  // Of responses whose call does not choose, for clients that accept it. It runs on the I/O threads.
  Encoding response_compression = Encoding::kIdentity;
  ConnectionLimits limits;
};

struct ServerCounters {
  uint64_t connections_open = 0;
  uint64_t connections_total = 0;
  uint64_t connections_refused = 0;
  std::array<uint64_t, kLimitCount> limits_exceeded{};  // by Limit
  uint64_t bytes_received = 0;
  uint64_t bytes_sent = 0;
  std::array<uint64_t, kTlsResults> tls_handshakes{};  // by TlsResult
  uint64_t tls_resumed = 0;                            // of the kOk ones
  uint64_t calls_started = 0;
  uint64_t calls_finished = 0;
  uint64_t calls_active = 0;
  uint64_t quota_refused = 0;
  std::array<uint64_t, 17> calls_by_code{};
};

class Server {
 public:
  // Makes the handler of a method for one I/O loop; it lives as long as the loop.
  using HandlerFactory = std::function<std::unique_ptr<Handler>(EventLoop&, CallSet&)>;

  explicit Server(ServerOptions options);
  ~Server();  // stop(0)

  // Before start(). A path of "" stands for every path that has no handler of its own. `right`: what
  // callers need where frontend/rpc_rights.h does not say it.
  void add_method(std::string path, HandlerFactory factory, std::size_t max_message_bytes,
                  MethodKind kind = MethodKind::kUnary, Right right = Right::kCall);
  // Before start(), as often as wanted: another address to listen on (listen_address.h has the
  // spelling), with or without TLS. It is bound at once; clients wait in its backlog until start(). A
  // unix socket's file gets `unix_mode`. Answers the TCP port, or 1 for a unix socket, as gRPC does.
  // Errors: INVALID_ARGUMENT; UNAVAILABLE naming the address.
  Result<uint16_t> add_listener(const std::string& address,
                                const std::optional<TlsOptions>& tls = std::nullopt,
                                uint32_t unix_mode = 0600);
  // Reads the certificate files of every TLS listener again; connections made from now on use them,
  // others go on. A listener whose files are no good keeps what it has. Errors: INVALID_ARGUMENT
  // naming each such file and the reason. Blocks on files.
  Status reload_tls();
  // When the first of the servers' certificates ends, in seconds since 1970; 0 without TLS. Any
  // thread.
  int64_t tls_not_after() const;

  // Once: a server that could not start, or has stopped, is done. Errors: UNAVAILABLE naming the
  // address; RESOURCE_EXHAUSTED; FAILED_PRECONDITION the second time.
  Status start();
  // Of the first TCP listener; 0 without one.
  uint16_t port() const;

  // Replaces the routes. Returns when no I/O thread uses the old ones any more; what only they held
  // ends on this thread.
  void publish(std::shared_ptr<const RouteTable> routes);
  // Replaces the recognisers; streams that run keep theirs. Returns when no I/O thread holds the old table any
  // more.
  void publish_speech(std::shared_ptr<const SpeechTable> table);
  // Who may call what from now on; running calls go on. Any time.
  void set_access(std::shared_ptr<const AccessPolicy> policy);
  // Every method and the right it needs. After start().
  std::vector<std::pair<std::string, Right>> rights() const;
  // Which requests are traced (frontend/tracing.h), and what became of those that were. Any time.
  void set_tracing(double ratio, std::size_t capacity);
  Tracing::Drained drain_traces();
  void set_ready(bool ready);
  // "": the server. Watchers (Health/Watch) are told.
  void set_health(const std::string& service, bool serving);

  // Health turns NOT_SERVING, watchers are told. Then stops accepting, sends GOAWAY, ends the watches, lets running calls finish within `grace`, ends the rest with
  // UNAVAILABLE, joins the I/O threads. True if no call had to be ended. Idempotent.
  bool stop(Nanoseconds grace);
  // While another thread is in stop(): running calls have this long from now, if that is less.
  void shorten_grace(Nanoseconds grace);

  // Any thread, at any time after start().
  ServerCounters counters() const;

 private:
  class Loop;
  struct Port;
  struct Registration {
    std::string path;
    HandlerFactory factory;
    std::size_t max_message_bytes;
    MethodKind kind;
    Right right;
  };

  void accept(int fd, std::string peer, const Port& port);
  void on_every_loop(const std::function<void(Loop&)>& function);
  void publish_health(std::shared_ptr<const HealthTable> table);
  std::size_t active_calls() const;
  // Whether every Request is back. Only when the loops have ended.
  bool requests_returned();

  const ServerOptions options_;
  std::vector<Registration> registrations_;
  std::unique_ptr<ServerState> state_;
  std::unique_ptr<ReceiveBudget> budget_;
  ConnectionCap cap_;
  Snapshot<AccessPolicy> access_;  // open until set_access()
  std::vector<std::unique_ptr<Loop>> loops_;
  std::vector<std::unique_ptr<Port>> ports_;  // before the loops' end: their listeners
  LimitCounters refused_;                     // accepting thread only
  std::size_t next_loop_ = 0;                 // accepting thread only
  std::atomic<TimePoint> grace_end_{kNever};
  bool start_called_ = false;
  bool started_ = false;
  bool stopped_ = false;
};

}  // namespace headrace
