#include "server/server.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <latch>
#include <thread>
#include <utility>

#include "base/snapshot.h"
#include "frontend/kserve_service.h"
#include "frontend/riva_service.h"
#include "frontend/rpc_rights.h"
#include "transport/connection_set.h"
#include "transport/listener.h"

namespace headrace {
namespace {

// Between the two GOAWAYs: a round trip for requests that were already on their way.
constexpr Milliseconds kGoawayPause{100};
constexpr Milliseconds kPoll{2};
constexpr const char* kStopping =
    "GRPC server is shutting down and has stopped accepting new requests.";
// How long an instance that ignores its cancelled batch may hold up stop() past the grace.
constexpr std::chrono::seconds kReturnPatience{1};

}  // namespace

// One I/O thread and everything that belongs to it. Members stand in the order of construction;
// requests return to `service`, so it goes last but for the loop.
class Server::Loop {
 public:
  Loop(Server& server, const Http2Options& http2, const TlsLimits& tls)
      : loop(
            server.options_.busy_poll, [this] { return nothing_runs(); },
            server.options_.limits.untrusted_percent),
        calls(methods, *server.budget_, loop.timers(), [this] { return loop.now(); }),
        service(std::make_unique<KServeService>(loop, calls, *server.state_)),
        speech(std::make_unique<RivaService>(loop, calls, *server.state_)),
        connections(std::make_unique<ConnectionSet>(loop, http2, calls, tls)) {
    calls.set_compression(server.options_.response_compression);
    if (server.options_.kserve) {
      service->add_to(methods, server.options_.max_message_bytes);
      speech->add_to(methods, server.options_.max_message_bytes);
    }
    for (const Registration& registration : server.registrations_) {
      handlers.push_back(registration.factory(loop, calls));
      const Right known = right_of_rpc(registration.path);
      const Method method{handlers.back().get(), registration.max_message_bytes, registration.kind,
                          known != Right::kNone ? known : registration.right};
      if (registration.path.empty()) {
        methods.set_fallback(method);
      } else {
        methods.add(registration.path, method);
      }
    }
    calls.set_access(server.access_);
    calls.spread_over(loop);
  }

  void start(std::size_t index) {
    thread = std::thread([this, index] {
      ::pthread_setname_np(::pthread_self(), ("headrace-io-" + std::to_string(index)).c_str());
      service->start();
      loop.run();
    });
  }

  // Nobody works on a call of this loop: what may come next comes from a client.
  bool nothing_runs() const {
    return service->outstanding() == 0 && calls.active() == service->open_streams();
  }

  EventLoop loop;
  MethodTable methods;
  CallSet calls;
  std::vector<std::unique_ptr<Handler>> handlers;
  std::unique_ptr<KServeService> service;
  std::unique_ptr<RivaService> speech;
  std::unique_ptr<ConnectionSet> connections;
  std::thread thread;
};

// An address that the server listens on. The first loop accepts for all.
struct Server::Port {
  uint16_t number = 0;  // 0: no TCP
  std::optional<TlsOptions> tls;
  std::unique_ptr<Snapshot<TlsContext>> context;  // null: no TLS
  ListenSocket socket;                            // until start()
  std::unique_ptr<Listener> listener;             // from then on
};

Server::Server(ServerOptions options)
    : options_(std::move(options)),
      state_(std::make_unique<ServerState>()),
      budget_(std::make_unique<ReceiveBudget>(options_.receive_budget_bytes)),
      cap_(options_.limits.max_connections, options_.limits.max_connections_per_peer) {}

Server::~Server() {
  stop(Nanoseconds(0));
  if (requests_returned()) return;
  // An instance hangs: freeing what it will answer into would be worse than to keep it for ever.
  for (std::unique_ptr<Loop>& loop : loops_) (void)loop.release();
  (void)state_.release();
  (void)budget_.release();
}

void Server::add_method(std::string path, HandlerFactory factory, std::size_t max_message_bytes,
                        MethodKind kind, Right right) {
  registrations_.push_back({std::move(path), std::move(factory), max_message_bytes, kind, right});
}

Result<uint16_t> Server::add_listener(const std::string& address,
                                      const std::optional<TlsOptions>& tls, uint32_t unix_mode) {
  if (stopped_ || start_called_) {
    return Status{StatusCode::kFailedPrecondition, "listeners are added before start()"};
  }
  const Result<ListenAddress> parsed = parse_listen_address(address);
  if (!parsed) return parsed.error();
  auto port = std::make_unique<Port>();
  if (tls) {
    Result<std::shared_ptr<const TlsContext>> context = TlsContext::make(*tls);
    if (!context) return context.error();
    port->tls = tls;
    port->context = std::make_unique<Snapshot<TlsContext>>(std::move(*context));
  }
  Result<ListenSocket> socket = ListenSocket::open(*parsed, unix_mode);
  if (!socket) return socket.error();
  port->socket = std::move(*socket);
  const bool tcp = parsed->kind == ListenAddress::Kind::kTcp;
  if (tcp) port->number = port->socket.address().port;
  ports_.push_back(std::move(port));
  return tcp ? ports_.back()->number : uint16_t{1};
}

Status Server::reload_tls() {
  std::string problems;
  for (const std::unique_ptr<Port>& port : ports_) {
    if (!port->tls) continue;
    Result<std::shared_ptr<const TlsContext>> context = TlsContext::make(*port->tls);
    if (context) {
      port->context->publish(std::move(*context));
    } else if (problems.find(context.error().message()) == std::string::npos) {
      if (!problems.empty()) problems += "; ";
      problems += context.error().message();
    }
  }
  return problems.empty() ? Status() : Status::invalid_argument(problems);
}

int64_t Server::tls_not_after() const {
  int64_t first = 0;
  for (const std::unique_ptr<Port>& port : ports_) {
    if (!port->context) continue;
    const int64_t end = port->context->load()->not_after();
    first = first == 0 ? end : std::min(first, end);
  }
  return first;
}

// Accepting loop's thread.
void Server::accept(int fd, std::string peer, const Port& port) {
  Limit why{};
  const ConnectionCap::Admission admission = cap_.admit(peer, why);
  if (admission == nullptr) {
    refused_.add(why);
    ::close(fd);
    return;
  }
  std::shared_ptr<const TlsContext> tls = port.context ? port.context->load() : nullptr;
  // In turn: few long-lived connections still spread over all loops.
  Loop& target = *loops_[next_loop_++ % loops_.size()];
  if (&target == loops_.front().get()) {
    return target.connections->adopt(fd, std::move(peer), tls, admission);
  }
  const bool posted = target.loop.post(
      [&target, fd, peer = std::move(peer), tls = std::move(tls), admission = admission] {
        target.connections->adopt(fd, peer, tls, admission);
      });
  if (!posted) ::close(fd);
}

Status Server::start() {
  if (stopped_ || start_called_) {
    return {StatusCode::kFailedPrecondition, "a Server starts once; make a new one"};
  }
  if (ports_.empty() && !options_.host.empty()) {
    ListenAddress address;
    address.host = options_.host;
    address.port = options_.port;
    const Result<uint16_t> added = add_listener(address.text());
    if (!added) {
      start_called_ = true;
      return added.error();
    }
  }
  start_called_ = true;
  std::signal(SIGPIPE, SIG_IGN);
  Http2Options http2;
  http2.limits = options_.limits;
  const uint32_t loops = std::max<uint32_t>(1, options_.io_threads);
  TlsLimits tls;
  const Milliseconds limit = options_.limits.preface_timeout;
  tls.handshake_timeout = limit == Milliseconds(0) ? Nanoseconds::max() : Nanoseconds(limit);
  tls.max_handshakes = std::max<uint32_t>(1, options_.limits.max_tls_handshakes / loops);
  for (uint32_t i = 0; i < loops; ++i) {
    loops_.push_back(std::make_unique<Loop>(*this, http2, tls));
    Status status = loops_.back()->loop.open();
    if (!status.ok()) return status;
  }
  for (const std::unique_ptr<Port>& port : ports_) {
    const Port* from = port.get();
    port->listener = std::make_unique<Listener>(
        loops_.front()->loop, std::move(port->socket),
        [this, from](int fd, std::string peer) { accept(fd, std::move(peer), *from); });
    Status status = port->listener->start();
    if (!status.ok()) return status;
  }
  for (std::size_t i = 0; i < loops_.size(); ++i) loops_[i]->start(i);
  started_ = true;
  return {};
}

uint16_t Server::port() const {
  for (const std::unique_ptr<Port>& port : ports_) {
    if (port->number != 0) return port->number;
  }
  return 0;
}

void Server::on_every_loop(const std::function<void(Loop&)>& function) {
  if (!started_ || stopped_) return;
  // Shared: the last count_down() may still run when wait() returns.
  const auto done = std::make_shared<std::latch>(static_cast<std::ptrdiff_t>(loops_.size()));
  for (const std::unique_ptr<Loop>& loop : loops_) {
    Loop* target = loop.get();
    const bool posted = target->loop.post([&function, done, target] {
      function(*target);
      done->count_down();
    });
    if (!posted) done->count_down();
  }
  done->wait();
}

void Server::publish(std::shared_ptr<const RouteTable> routes) {
  if (stopped_) return;
  // Kept until the loops have let go: the end of a model version may take long, and is not theirs.
  const std::shared_ptr<const RouteTable> old = state_->routes.load();
  state_->routes.publish(std::move(routes));
  on_every_loop([](Loop& loop) { loop.service->refresh(); });
}

void Server::publish_speech(std::shared_ptr<const SpeechTable> table) {
  if (stopped_) return;
  const std::shared_ptr<const SpeechTable> old = state_->speech.load();
  state_->speech.publish(std::move(table));
  on_every_loop([](Loop& loop) { loop.speech->refresh(); });
}

void Server::set_access(std::shared_ptr<const AccessPolicy> policy) {
  access_.publish(std::move(policy));
}

std::vector<std::pair<std::string, Right>> Server::rights() const {
  std::vector<std::pair<std::string, Right>> rights;
  if (loops_.empty()) return rights;
  loops_.front()->methods.for_each([&](const std::string& path, const Method& method) {
    rights.emplace_back(path, method.right);
  });
  std::sort(rights.begin(), rights.end());
  return rights;
}

void Server::set_tracing(double ratio, std::size_t capacity) {
  state_->tracing.configure(ratio, capacity);
}

Tracing::Drained Server::drain_traces() { return state_->tracing.drain(); }

void Server::set_ready(bool ready) {
  if (!stopped_) state_->ready.store(ready, std::memory_order_release);
}

void Server::set_health(const std::string& service, bool serving) {
  if (stopped_) return;
  auto table = std::make_shared<HealthTable>(*state_->health.load());
  (*table)[service] = serving;
  publish_health(std::move(table));
}

void Server::publish_health(std::shared_ptr<const HealthTable> table) {
  state_->health.publish(std::move(table));
  if (!started_) return;
  // Not waited for: nothing hangs on the old table.
  for (const std::unique_ptr<Loop>& loop : loops_) {
    Loop* target = loop.get();
    target->loop.post([target] { target->service->refresh(); });
  }
}

std::size_t Server::active_calls() const {
  std::size_t active = 0;
  for (const std::unique_ptr<Loop>& loop : loops_) active += loop->calls.active();
  return active;
}

bool Server::requests_returned() {
  bool all = true;
  for (const std::unique_ptr<Loop>& loop : loops_) {
    loop->service->on_wake();
    all = all && loop->service->outstanding() == 0;
  }
  return all;
}

void Server::shorten_grace(Nanoseconds grace) {
  const TimePoint end = saturating_add(Clock::now(), grace);
  TimePoint current = grace_end_.load();
  while (end < current && !grace_end_.compare_exchange_weak(current, end)) {
  }
}

bool Server::stop(Nanoseconds grace) {
  if (!started_ || stopped_) {
    stopped_ = true;
    for (const std::unique_ptr<Port>& port : ports_) port->socket.close();
    return true;
  }
  shorten_grace(grace);
  set_ready(false);
  auto health = std::make_shared<HealthTable>(*state_->health.load());
  for (auto& [service, serving] : *health) serving = false;
  publish_health(std::move(health));
  // In a turn of its own: GOAWAY would overtake what the watchers are told.
  on_every_loop([](Loop& loop) { loop.service->refresh(); });
  on_every_loop([this](Loop& loop) {
    if (&loop == loops_.front().get()) {
      for (const std::unique_ptr<Port>& port : ports_) port->listener->close();
    }
    loop.connections->begin_shutdown();
  });
  if (counters().connections_open != 0) {
    std::this_thread::sleep_for(std::min<Nanoseconds>(kGoawayPause, grace));
  }
  on_every_loop([](Loop& loop) {
    loop.connections->finish_shutdown();
    loop.service->end_watches(Status::unavailable(kStopping));
    loop.speech->end_streams(Status::unavailable(kStopping));
  });
  while (active_calls() != 0 && Clock::now() < grace_end_.load())
    std::this_thread::sleep_for(kPoll);

  const bool all_finished = active_calls() == 0;
  on_every_loop([](Loop& loop) {
    loop.calls.fail_all(Status::unavailable(kStopping));
    loop.connections->close_all();
  });
  stopped_ = true;
  for (const std::unique_ptr<Loop>& loop : loops_) {
    loop->loop.stop();
    loop->thread.join();
  }
  // Requests still with an instance come back here.
  const TimePoint patience = Clock::now() + kReturnPatience;
  while (!requests_returned() && Clock::now() < patience) std::this_thread::sleep_for(kPoll);
  state_->routes.publish(std::make_shared<RouteTable>());
  state_->speech.publish(std::make_shared<SpeechTable>());
  for (const std::unique_ptr<Loop>& loop : loops_) {
    loop->service->refresh();
    loop->speech->refresh();
  }
  return all_finished;
}

ServerCounters Server::counters() const {
  ServerCounters sum;
  sum.connections_refused =
      refused_.read(Limit::kConnections) + refused_.read(Limit::kConnectionsPerPeer);
  for (std::size_t i = 0; i < kLimitCount; ++i) {
    sum.limits_exceeded[i] = refused_.read(static_cast<Limit>(i));
  }
  for (const std::unique_ptr<Loop>& loop : loops_) {
    if (loop->connections) {
      const TransportCounters& transport = loop->connections->counters();
      sum.connections_open += transport.connections_open.read();
      sum.connections_total += transport.connections_total.read();
      sum.bytes_received += transport.bytes_received.read();
      sum.bytes_sent += transport.bytes_sent.read();
      for (std::size_t result = 0; result < kTlsResults; ++result) {
        sum.tls_handshakes[result] += transport.tls_handshakes[result].read();
      }
      sum.tls_resumed += transport.tls_resumed.read();
      for (std::size_t i = 0; i < kLimitCount; ++i) {
        sum.limits_exceeded[i] += transport.limits.read(static_cast<Limit>(i));
      }
    }
    const RpcCounters& rpc = loop->calls.counters();
    sum.calls_started += rpc.started.read();
    sum.calls_finished += rpc.finished.read();
    sum.quota_refused += rpc.quota_refused.read();
    for (std::size_t code = 0; code < sum.calls_by_code.size(); ++code) {
      sum.calls_by_code[code] += rpc.finished_by_code[code].read();
    }
  }
  sum.calls_active = active_calls();
  return sum;
}

}  // namespace headrace
