#include "server/server.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <latch>
#include <thread>
#include <utility>

#include "frontend/kserve_service.h"
#include "transport/connection_set.h"
#include "transport/listener.h"

namespace headrace {
namespace {

// Between the two GOAWAYs: a round trip for requests that were already on their way.
constexpr Milliseconds kGoawayPause{100};
constexpr Milliseconds kPoll{2};
// How long an instance that ignores its cancelled batch may hold up stop() past the grace.
constexpr std::chrono::seconds kReturnPatience{1};

}  // namespace

// One I/O thread and everything that belongs to it. Members stand in the order of construction;
// requests return to `service`, so it goes last but for the loop.
class Server::Loop {
 public:
  Loop(Server& server, const Http2Options& http2)
      : calls(methods, *server.budget_, loop.timers(), [this] { return loop.now(); }),
        service(std::make_unique<KServeService>(loop, calls, *server.state_)),
        connections(std::make_unique<ConnectionSet>(loop, http2, calls)) {
    service->add_to(methods, server.options_.max_message_bytes);
    for (const Registration& registration : server.registrations_) {
      handlers.push_back(registration.factory(loop, calls));
      methods.add(registration.path, {handlers.back().get(), registration.max_message_bytes});
    }
  }

  void start(std::size_t index) {
    thread = std::thread([this, index] {
      ::pthread_setname_np(::pthread_self(), ("headrace-io-" + std::to_string(index)).c_str());
      service->start();
      loop.run();
    });
  }

  EventLoop loop;
  MethodTable methods;
  CallSet calls;
  std::vector<std::unique_ptr<Handler>> handlers;
  std::unique_ptr<KServeService> service;
  std::unique_ptr<ConnectionSet> connections;
  std::unique_ptr<Listener> listener;  // the first loop's
  std::thread thread;
};

Server::Server(ServerOptions options)
    : options_(std::move(options)),
      state_(std::make_unique<ServerState>()),
      budget_(std::make_unique<ReceiveBudget>(options_.receive_budget_bytes)) {}

Server::~Server() {
  stop(Nanoseconds(0));
  if (requests_returned()) return;
  // An instance hangs: freeing what it will answer into would be worse than to keep it for ever.
  for (std::unique_ptr<Loop>& loop : loops_) (void)loop.release();
  (void)state_.release();
  (void)budget_.release();
}

void Server::add_method(std::string path, HandlerFactory factory, std::size_t max_message_bytes) {
  registrations_.push_back({std::move(path), std::move(factory), max_message_bytes});
}

Status Server::start() {
  if (stopped_ || std::exchange(start_called_, true)) {
    return {StatusCode::kFailedPrecondition, "a Server starts once; make a new one"};
  }
  std::signal(SIGPIPE, SIG_IGN);
  Http2Options http2;
  http2.max_concurrent_streams = options_.max_concurrent_streams;
  for (uint32_t i = 0; i < std::max<uint32_t>(1, options_.io_threads); ++i) {
    loops_.push_back(std::make_unique<Loop>(*this, http2));
    Status status = loops_.back()->loop.open();
    if (!status.ok()) return status;
  }
  Loop& first = *loops_.front();
  first.listener = std::make_unique<Listener>(first.loop, [this](int fd, std::string peer) {
    uint64_t open = 0;
    for (const auto& loop : loops_) {
      open += loop->connections->counters().connections_open.read();
    }
    if (open >= options_.max_connections) {
      connections_refused_.fetch_add(1, std::memory_order_relaxed);
      ::close(fd);
      return;
    }
    // In turn: few long-lived connections still spread over all loops.
    Loop& target = *loops_[next_loop_++ % loops_.size()];
    if (&target == loops_.front().get()) return target.connections->adopt(fd, std::move(peer));
    if (!target.loop.post([&target, fd, peer] { target.connections->adopt(fd, peer); })) {
      ::close(fd);
    }
  });
  Status status = first.listener->open(options_.host, options_.port);
  if (!status.ok()) return status;
  port_ = first.listener->port();
  for (std::size_t i = 0; i < loops_.size(); ++i) loops_[i]->start(i);
  started_ = true;
  return {};
}

uint16_t Server::port() const { return port_; }

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

void Server::set_ready(bool ready) {
  if (!stopped_) state_->ready.store(ready, std::memory_order_release);
}

void Server::set_health(const std::string& service, bool serving) {
  if (stopped_) return;
  auto table = std::make_shared<HealthTable>(*state_->health.load());
  (*table)[service] = serving;
  state_->health.publish(std::move(table));
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

bool Server::stop(Nanoseconds grace) {
  if (!started_ || stopped_) {
    stopped_ = true;
    return true;
  }
  const TimePoint end = saturating_add(Clock::now(), grace);
  set_ready(false);
  on_every_loop([](Loop& loop) {
    if (loop.listener) loop.listener->close();
    loop.connections->begin_shutdown();
  });
  if (counters().connections_open != 0) {
    std::this_thread::sleep_for(std::min<Nanoseconds>(kGoawayPause, grace));
  }
  on_every_loop([](Loop& loop) { loop.connections->finish_shutdown(); });
  while (active_calls() != 0 && Clock::now() < end) std::this_thread::sleep_for(kPoll);

  const bool all_finished = active_calls() == 0;
  on_every_loop([](Loop& loop) {
    loop.calls.fail_all(Status::unavailable(
        "GRPC server is shutting down and has stopped accepting new requests."));
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
  for (const std::unique_ptr<Loop>& loop : loops_) loop->service->refresh();
  return all_finished;
}

ServerCounters Server::counters() const {
  ServerCounters sum;
  sum.connections_refused = connections_refused_.load(std::memory_order_relaxed);
  for (const std::unique_ptr<Loop>& loop : loops_) {
    if (loop->connections) {
      const TransportCounters& transport = loop->connections->counters();
      sum.connections_open += transport.connections_open.read();
      sum.connections_total += transport.connections_total.read();
      sum.bytes_received += transport.bytes_received.read();
      sum.bytes_sent += transport.bytes_sent.read();
    }
    const RpcCounters& rpc = loop->calls.counters();
    sum.calls_started += rpc.started.read();
    sum.calls_finished += rpc.finished.read();
    for (std::size_t code = 0; code < sum.calls_by_code.size(); ++code) {
      sum.calls_by_code[code] += rpc.finished_by_code[code].read();
    }
  }
  sum.calls_active = active_calls();
  return sum;
}

}  // namespace headrace
