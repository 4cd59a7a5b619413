#include "server/server.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

#include "base/memory_limit.h"
#include "bindings/bindings.h"
#include "bindings/connection_limits.h"
#include "bindings/listeners.h"
#include "bindings/python_events.h"
#include "bindings/python_pool.h"
#include "bindings/python_status.h"
#include "bindings/traces.h"
#include "routing/fallback.h"
#include "routing/router.h"
#include "routing/shadow.h"
#include "serving/core_planner.h"
#include "serving/model_version.h"

namespace py = pybind11;
using namespace py::literals;

namespace headrace {
namespace {

Right right_named(const std::string& name) {
  const std::optional<Right> right = right_from_name(name);
  if (!right) raise_unless_ok(Status::invalid_argument("'" + name + "' is no right"));
  return *right;
}

Rights rights_named(const std::vector<std::string>& names) {
  Rights rights;
  for (const std::string& name : names) rights.add(right_named(name));
  return rights;
}

// (calls a second, burst)
using PyQuota = std::optional<std::pair<double, double>>;

std::shared_ptr<Quota> make_quota(const PyQuota& quota) {
  if (!quota) return nullptr;
  if (!(quota->first > 0) || !(quota->second >= 1)) {
    raise_unless_ok(Status::invalid_argument("a quota has a rate > 0 and a burst >= 1"));
  }
  return std::make_shared<Quota>(quota->first, quota->second);
}

// (name, rights, SHA-256 digests of keys, identities of certificates, quota)
using PyMember = std::tuple<std::string, std::vector<std::string>, std::vector<py::bytes>,
                            std::vector<std::string>, PyQuota>;

std::shared_ptr<const AccessPolicy> make_access_policy(const std::vector<std::string>& anonymous,
                                                       const std::vector<PyMember>& members,
                                                       const PyQuota& anonymous_quota) {
  std::vector<AccessPolicy::Member> made;
  for (const auto& [name, rights, keys, identities, quota] : members) {
    AccessPolicy::Member& member = made.emplace_back();
    member.principal = {name, rights_named(rights), make_quota(quota)};
    member.identities = identities;
    for (const py::bytes& key : keys) {
      const std::string_view digest = key;
      Sha256& to = member.keys.emplace_back();
      if (digest.size() != to.size()) {
        raise_unless_ok(Status::invalid_argument("a SHA-256 digest has 32 bytes"));
      }
      std::copy(digest.begin(), digest.end(), reinterpret_cast<char*>(to.data()));
    }
  }
  return std::make_shared<const AccessPolicy>(rights_named(anonymous), std::move(made),
                                              make_quota(anonymous_quota));
}

struct PyServerOptions {
  ServerOptions core;
  std::size_t python_threads = 4;
  std::size_t service_threads = 10;
  py::object on_service_thread = py::none();
  std::size_t max_concurrent_calls = 0;
};

PyServerOptions make_options(std::string host, uint16_t port, uint32_t io_threads,
                             std::size_t max_message_bytes, const py::dict& limits,
                             std::size_t python_threads, std::size_t service_threads,
                             py::object on_service_thread, std::size_t max_concurrent_calls,
                             bool kserve, double busy_poll_s, int response_compression) {
  PyServerOptions options;
  options.core.host = std::move(host);
  options.core.port = port;
  // One loop carries 60-100 thousand small calls a second; instances need the other cores.
  options.core.io_threads =
      io_threads != 0 ? io_threads : std::clamp<uint32_t>(available_cores() / 2, 1, 4);
  // A message that is executed is there about four times: itself, in its batch, in the batch's output,
  // in its answer. Half of the limit is for all else.
  if (const std::optional<uint64_t> memory = cgroup_memory()) {
    options.core.receive_budget_bytes =
        std::min<uint64_t>(options.core.receive_budget_bytes, *memory / 8);
  }
  // A single core has others to run.
  if (available_cores() > 1) options.core.busy_poll = nanoseconds_of(busy_poll_s);
  if (max_message_bytes != 0) options.core.max_message_bytes = max_message_bytes;
  options.core.limits = limits_from_python(limits);
  options.core.kserve = kserve;
  options.core.response_compression = compression_encoding(response_compression);
  options.python_threads = std::max<std::size_t>(1, python_threads);
  options.service_threads = std::max<std::size_t>(1, service_threads);
  options.on_service_thread = std::move(on_service_thread);
  options.max_concurrent_calls = max_concurrent_calls;
  return options;
}

MethodKind kind_of(bool request_streaming, bool response_streaming) {
  if (request_streaming) {
    return response_streaming ? MethodKind::kBidiStreaming : MethodKind::kClientStreaming;
  }
  return response_streaming ? MethodKind::kServerStreaming : MethodKind::kUnary;
}

// How a model's requests are shared out, by version numbers.
struct PyTraffic {
  int64_t default_version = 0;  // 0: the highest
  std::map<std::string, int64_t> labels;
  std::vector<std::pair<std::string, double>> split;  // labels and their shares
  std::string key;
  std::string salt;
  std::map<std::string, std::string> fallback;  // label -> label that answers what it fails
  std::string shadow;  // label that gets copies of what goes to the default; empty: none does
  ShadowOptions shadow_options;
  std::shared_ptr<ShadowTally> shadow_tally;
  bool replacing = false;
};

PyTraffic make_traffic(int64_t default_version, std::map<std::string, int64_t> labels,
                       std::vector<std::pair<std::string, double>> split, std::string key,
                       std::string salt, std::map<std::string, std::string> fallback,
                       std::string shadow, double shadow_share, double shadow_tolerance,
                       std::shared_ptr<ShadowTally> shadow_tally, bool replacing) {
  const auto check = [&](const std::string& label) {
    if (!labels.contains(label)) throw py::value_error("no label '" + label + "'");
  };
  double sum = 0;
  for (const auto& [label, share] : split) {
    check(label);
    if (!(share >= 0 && share <= 1e9)) throw py::value_error("a share is a number from 0 on");
    sum += share;
  }
  if (!split.empty() && !(sum > 0)) throw py::value_error("the shares add up to nothing");
  for (const auto& [label, other] : fallback) {
    check(label);
    check(other);
    if (label == other) throw py::value_error("'" + label + "' cannot fall back to itself");
  }
  ShadowOptions options;
  if (!shadow.empty()) {
    check(shadow);
    if (!split.empty()) throw py::value_error("a split and a shadow exclude each other");
    if (shadow_tally == nullptr) throw py::value_error("a shadow needs a tally");
    if (!(shadow_share > 0 && shadow_share <= 1)) throw py::value_error("a shadow's share");
    if (!(shadow_tolerance >= 0)) throw py::value_error("a shadow's tolerance");
    options.share = shadow_share;
    options.tolerance = shadow_tolerance;
  }
  return {default_version,   std::move(labels), std::move(split),
          std::move(key),    std::move(salt),   std::move(fallback),
          std::move(shadow), options,           std::move(shadow_tally),
          replacing};
}

// What is not ready takes no part: its share is the others'.
void apply(const PyTraffic& traffic, ModelRoutes& routes) {
  routes.replacing = traffic.replacing;
  const auto version = [&](int64_t number) -> std::shared_ptr<Servable> {
    const auto found = routes.versions.find(number);
    return found != routes.versions.end() ? found->second : nullptr;
  };
  if (auto chosen = version(traffic.default_version)) routes.default_version = std::move(chosen);
  for (const auto& [label, number] : traffic.labels) {
    std::shared_ptr<Servable> servable = version(number);
    const auto other = traffic.fallback.find(label);
    if (servable != nullptr && other != traffic.fallback.end()) {
      auto next = version(traffic.labels.at(other->second));
      if (next != nullptr && next != servable) {
        servable = Fallback::make({std::move(servable), std::move(next)}, label);
      }
    }
    routes.labels[label] = {std::make_shared<const std::string>(label), std::move(servable), 0};
  }
  std::vector<Arm> arms;
  double sum = 0;
  for (const auto& [label, share] : traffic.split) {
    const Arm& known = routes.labels[label];
    if (known.servable == nullptr) continue;
    arms.push_back({known.label, known.servable, share});
    sum += share;
  }
  if (sum > 0) routes.split = TrafficSplit(std::move(arms), traffic.key, traffic.salt);
  if (!traffic.shadow.empty()) {
    const std::shared_ptr<Servable>& shadow = routes.labels[traffic.shadow].servable;
    if (shadow != nullptr && routes.default_version != nullptr &&
        shadow != routes.default_version) {
      routes.default_version = std::make_shared<Shadow>(
          std::move(routes.default_version), shadow, traffic.shadow_tally, traffic.shadow_options);
    }
  }
}

// Server with its Python handlers and what runs them.
class PyServer {
 public:
  explicit PyServer(const PyServerOptions& options)
      : max_message_bytes_(options.core.max_message_bytes),
        limit_{options.max_concurrent_calls},
        quick_(std::make_unique<PythonPool>(
            PythonPool::Options{options.python_threads, "headrace-py", kQueueBound, py::none()})),
        blocking_(std::make_unique<PythonPool>(
            PythonPool::Options{kBlockingThreads, "headrace-pyblk", kQueueBound, py::none()})),
        services_(std::make_unique<PythonPool>(PythonPool::Options{
            options.service_threads, "headrace-svc", 0, options.on_service_thread})),
        endings_(
            std::make_unique<PythonPool>(PythonPool::Options{1, "headrace-pyend", 0, py::none()})),
        events_(std::make_unique<PythonEvents>()),
        server_(std::make_unique<Server>(options.core)) {}

  ~PyServer() {
    // Called with the GIL; threads that are joined may wait for it.
    {
      const py::gil_scoped_release release;
      stop(0.0);
    }
    if (!quick_->on_worker() && !blocking_->on_worker() && !services_->on_worker() &&
        !endings_->on_worker()) {
      return;
    }
    // Dropped by one of its own handlers, whose thread cannot be waited for: kept for ever.
    for (std::unique_ptr<PythonMethod>& method : methods_) (void)method.release();
    for (auto* pool : {&quick_, &blocking_, &services_, &endings_}) (void)pool->release();
    (void)events_.release();
    (void)server_.release();
  }

  // `pool`: "quick", "blocking", "service", or "events" (of an asyncio loop).
  void add_method(std::string path, py::object run, const std::string& pool, bool request_streaming,
                  bool response_streaming, std::size_t max_message_bytes, int compression,
                  py::object on_end) {
    methods_.push_back(std::make_unique<PythonMethod>());
    PythonMethod& method = *methods_.back();
    method.run = std::move(run);
    method.ended = std::move(on_end);
    method.kind = kind_of(request_streaming, response_streaming);
    method.encoding = compression_encoding(compression);
    method.endings = endings_.get();
    PythonPool* threads = nullptr;
    if (pool == "quick") {
      threads = quick_.get();
    } else if (pool == "blocking") {
      threads = blocking_.get();
      method.blocking = true;
    } else if (pool == "service") {
      threads = services_.get();
      method.limit = &limit_;
    } else if (pool == "events") {
      method.limit = &limit_;
      method.endings = events_.get();
      method.tell_cancel = true;
    } else {
      throw py::value_error("no pool is called '" + pool + "'");
    }
    method.calls = threads == nullptr ? static_cast<CallSink*>(events_.get()) : threads;
    if (max_message_bytes == 0) {
      // Blocking methods take payloads (a model's files); quick ones are small questions.
      max_message_bytes = method.blocking ? max_message_bytes_ : std::size_t{4} << 20;
    }
    server_->add_method(
        std::move(path),
        [this, &method, threads](EventLoop& loop, CallSet& calls) -> std::unique_ptr<Handler> {
          std::shared_ptr<CallOutbox>& outbox = outboxes_[{&loop, threads}];
          if (!outbox) outbox = std::make_shared<CallOutbox>(loop, calls, threads);
          return std::make_unique<PythonHandler>(method, outbox);
        },
        max_message_bytes, method.kind);
  }

  void start() {
    const Status status = [&] {
      const py::gil_scoped_release release;
      return server_->start();
    }();
    raise_unless_ok(status);
  }

  void publish(const std::map<std::string, std::map<int64_t, std::shared_ptr<Servable>>>& wanted,
               const std::map<std::string, PyTraffic>& traffic, bool starting) {
    const py::gil_scoped_release release;
    std::map<std::string, ModelRoutes, std::less<>> models;
    for (const auto& [name, versions] : wanted) {
      ModelRoutes& routes = models[name];
      for (const auto& [number, version] : versions) {
        routes.versions[number] = version;
        if (version != nullptr) routes.default_version = version;  // ascending: the highest stays
      }
      const auto found = traffic.find(name);
      if (found != traffic.end()) apply(found->second, routes);
    }
    server_->publish(std::make_shared<RouteTable>(std::move(models), starting));
  }

  bool stop(double grace_s) {
    const std::lock_guard lock(stop_mutex_);
    const bool all_finished = server_->stop(nanoseconds_of(grace_s));
    for (const auto& [key, outbox] : outboxes_) outbox->close();
    for (PythonPool* pool : {quick_.get(), blocking_.get(), services_.get(), endings_.get()}) {
      if (!pool->on_worker()) pool->stop();
    }
    return all_finished;
  }

  Server& core() { return *server_; }
  PythonEvents& events() { return *events_; }

 private:
  static constexpr std::size_t kBlockingThreads = 8;
  static constexpr std::size_t kQueueBound = 4096;

  std::mutex stop_mutex_;
  const std::size_t max_message_bytes_;
  CallLimit limit_;
  std::vector<std::unique_ptr<PythonMethod>> methods_;
  std::map<std::pair<EventLoop*, PythonPool*>, std::shared_ptr<CallOutbox>> outboxes_;
  std::unique_ptr<PythonPool> quick_;
  std::unique_ptr<PythonPool> blocking_;
  std::unique_ptr<PythonPool> services_;
  std::unique_ptr<PythonPool> endings_;
  std::unique_ptr<PythonEvents> events_;
  std::unique_ptr<Server> server_;
};

py::dict statistics_of(const ServerCounters& counters) {
  py::dict limits_exceeded;
  for (std::size_t i = 0; i < kLimitCount; ++i) {
    limits_exceeded[py::str(kLimitNames[i])] = counters.limits_exceeded[i];
  }
  return py::dict(
      "connections_open"_a = counters.connections_open,
      "connections_total"_a = counters.connections_total,
      "connections_refused"_a = counters.connections_refused, "limits_exceeded"_a = limits_exceeded,
      "calls_started"_a = counters.calls_started, "calls_finished"_a = counters.calls_finished,
      "calls_active"_a = counters.calls_active, "quota_refused"_a = counters.quota_refused,
      "calls_by_code"_a = counters.calls_by_code, "bytes_received"_a = counters.bytes_received,
      "bytes_sent"_a = counters.bytes_sent, "tls_handshakes"_a = handshakes_by_result(counters),
      "tls_resumed"_a = counters.tls_resumed);
}

}  // namespace

void bind_server(py::module_& module) {
  bind_tls_options(module);
  py::class_<PyServerOptions>(module, "ServerOptions")
      .def(py::init(&make_options), py::kw_only(), "host"_a = "0.0.0.0", "port"_a = 8001,
           "io_threads"_a = 0, "max_message_bytes"_a = 0, "limits"_a = py::dict(),
           "python_threads"_a = 4, "service_threads"_a = 10, "on_service_thread"_a = py::none(),
           "max_concurrent_calls"_a = 0, "kserve"_a = true, "busy_poll_s"_a = 0.0,
           "response_compression"_a = 0);
  module.def("default_limits", &default_limits);
  py::class_<ShadowTally, std::shared_ptr<ShadowTally>>(module, "ShadowTally")
      .def(py::init<>())
      .def("read", [](const ShadowTally& self) {
        const ShadowTally::Values values = self.read();
        return py::dict("compared"_a = values.compared, "different"_a = values.different,
                        "failed"_a = values.failed, "dropped"_a = values.dropped,
                        "largest_difference"_a = values.largest_difference);
      });
  py::class_<PyTraffic>(module, "Traffic")
      .def(py::init(&make_traffic), py::kw_only(), "default_version"_a = 0,
           "labels"_a = std::map<std::string, int64_t>(),
           "split"_a = std::vector<std::pair<std::string, double>>(), "key"_a = "", "salt"_a = "",
           "fallback"_a = std::map<std::string, std::string>(), "shadow"_a = "",
           "shadow_share"_a = 1.0, "shadow_tolerance"_a = 0.0, "shadow_tally"_a = py::none(),
           "replacing"_a = false);
  py::class_<PyServer>(module, "Server")
      .def(py::init<const PyServerOptions&>(), "options"_a)
      .def("add_method", &PyServer::add_method, "path"_a, "run"_a, py::kw_only(),
           "pool"_a = "quick", "request_streaming"_a = false, "response_streaming"_a = false,
           "max_message_bytes"_a = 0, "compression"_a = 0, "on_end"_a = py::none())
      .def("events", &PyServer::events, py::return_value_policy::reference_internal)
      .def(
          "add_listener",
          [](PyServer& self, const std::string& address, const std::optional<TlsOptions>& tls,
             uint32_t unix_mode) { return add_listener(self.core(), address, tls, unix_mode); },
          "address"_a, "tls"_a = py::none(), py::kw_only(), "unix_mode"_a = 0600)
      .def("reload_tls", [](PyServer& self) { reload_tls(self.core()); })
      .def_property_readonly("tls_not_after",
                             [](PyServer& self) { return self.core().tls_not_after(); })
      .def("start", &PyServer::start)
      .def_property_readonly("port", [](PyServer& self) { return self.core().port(); })
      .def("publish", &PyServer::publish, "routes"_a,
           "traffic"_a = std::map<std::string, PyTraffic>(), "starting"_a = false)
      .def(
          "publish_speech",
          [](PyServer& self, SpeechTable::Models models) {
            const py::gil_scoped_release release;
            self.core().publish_speech(std::make_shared<const SpeechTable>(std::move(models)));
          },
          "models"_a)
      .def(
          "set_ready", [](PyServer& self, bool ready) { self.core().set_ready(ready); }, "ready"_a)
      .def(
          "set_health",
          [](PyServer& self, const std::string& service, bool serving) {
            self.core().set_health(service, serving);
          },
          "service"_a, "serving"_a)
      .def("stop", &PyServer::stop, "grace_s"_a = 30.0, py::call_guard<py::gil_scoped_release>())
      .def(
          "shorten_grace",
          [](PyServer& self, double grace_s) {
            self.core().shorten_grace(nanoseconds_of(grace_s));
          },
          "grace_s"_a)
      .def(
          "set_access",
          [](PyServer& self, const std::vector<std::string>& anonymous,
             const std::vector<PyMember>& members, const PyQuota& anonymous_quota) {
            self.core().set_access(make_access_policy(anonymous, members, anonymous_quota));
          },
          "anonymous"_a, "members"_a, "anonymous_quota"_a = py::none())
      .def("clear_access",
           [](PyServer& self) { self.core().set_access(std::make_shared<const AccessPolicy>()); })
      .def("rights",
           [](PyServer& self) {
             std::vector<std::pair<std::string, std::string>> rights;
             for (const auto& [path, right] : self.core().rights()) {
               rights.emplace_back(path, name_of(right));
             }
             return rights;
           })
      .def(
          "set_tracing",
          [](PyServer& self, double ratio, std::size_t capacity) {
            self.core().set_tracing(ratio, capacity);
          },
          py::kw_only(), "ratio"_a, "capacity"_a)
      .def("drain_traces", [](PyServer& self) { return drain_traces(self.core()); })
      .def("statistics", [](PyServer& self) { return statistics_of(self.core().counters()); });
}

}  // namespace headrace
