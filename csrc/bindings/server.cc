#include "server/server.h"

#include <pybind11/stl.h>

#include <map>
#include <utility>

#include "bindings/bindings.h"
#include "bindings/connection_limits.h"
#include "bindings/listeners.h"
#include "bindings/python_pool.h"
#include "bindings/python_status.h"
#include "rpc/grpc_codec.h"
#include "serving/core_planner.h"
#include "serving/model_version.h"

namespace py = pybind11;
using namespace py::literals;

namespace headrace {
namespace {

using PyMetadata = std::vector<std::pair<std::string, std::variant<py::str, py::bytes>>>;

// `-bin` values are base64 on the wire, several joined by commas; Python sees bytes.
py::list metadata_to_python(const Metadata& metadata) {
  py::list result;
  for (const auto& [name, value] : metadata) {
    if (!name.ends_with("-bin")) {
      result.append(py::make_tuple(
          name, py::reinterpret_steal<py::str>(PyUnicode_DecodeLatin1(
                    value.data(), static_cast<py::ssize_t>(value.size()), nullptr))));
      continue;
    }
    for (std::size_t start = 0; start <= value.size();) {
      const std::size_t comma = std::min(value.find(',', start), value.size());
      const auto decoded = base64_decode(std::string_view(value).substr(start, comma - start));
      if (decoded) result.append(py::make_tuple(name, py::bytes(*decoded)));
      start = comma + 1;
    }
  }
  return result;
}

// Header values that could break the protocol never leave: names are gRPC's Header-Name, values ASCII.
Metadata metadata_from_python(const py::iterable& pairs) {
  Metadata metadata;
  for (const py::handle item : pairs) {
    const auto pair = item.cast<std::pair<std::string, py::object>>();
    const std::string& name = pair.first;
    const bool valid_name =
        !name.empty() && !name.starts_with("grpc-") &&
        name.find_first_not_of("0123456789abcdefghijklmnopqrstuvwxyz_-.") == std::string::npos;
    if (!valid_name) {
      raise_unless_ok(Status::invalid_argument("'" + name + "' is no valid metadata key"));
    }
    if (name.ends_with("-bin")) {
      metadata.emplace_back(name, base64_encode(pair.second.cast<std::string>()));
      continue;
    }
    const auto value = pair.second.cast<std::string>();
    for (const char c : value) {
      if (c < 0x20 || c > 0x7E) {
        raise_unless_ok(Status::invalid_argument("metadata '" + name + "' is not printable ASCII"));
      }
    }
    metadata.emplace_back(name, value);
  }
  return metadata;
}

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

// (name, rights, SHA-256 digests of keys, identities of certificates)
using PyMember = std::tuple<std::string, std::vector<std::string>, std::vector<py::bytes>,
                            std::vector<std::string>>;

std::shared_ptr<const AccessPolicy> make_access_policy(const std::vector<std::string>& anonymous,
                                                       const std::vector<PyMember>& members) {
  std::vector<AccessPolicy::Member> made;
  for (const auto& [name, rights, keys, identities] : members) {
    AccessPolicy::Member& member = made.emplace_back();
    member.principal = {name, rights_named(rights)};
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
  return std::make_shared<const AccessPolicy>(rights_named(anonymous), std::move(made));
}

struct PyServerOptions {
  ServerOptions core;
  std::size_t python_threads = 4;
};

PyServerOptions make_options(std::string host, uint16_t port, uint32_t io_threads,
                             std::size_t max_message_bytes, const py::dict& limits,
                             std::size_t python_threads) {
  PyServerOptions options;
  options.core.host = std::move(host);
  options.core.port = port;
  // One loop carries 60-100 thousand small calls a second; instances need the other cores.
  options.core.io_threads =
      io_threads != 0 ? io_threads : std::clamp<uint32_t>(available_cores() / 2, 1, 4);
  if (max_message_bytes != 0) options.core.max_message_bytes = max_message_bytes;
  options.core.limits = limits_from_python(limits);
  options.python_threads = std::max<std::size_t>(1, python_threads);
  return options;
}

// Server with its Python handlers and the pools that run them.
class PyServer {
 public:
  explicit PyServer(const PyServerOptions& options)
      : quick_(std::make_unique<PythonPool>(options.python_threads, kJobsPerHold, "headrace-py")),
        blocking_(std::make_unique<PythonPool>(kBlockingThreads, 1, "headrace-pyblk")),
        max_message_bytes_(options.core.max_message_bytes),
        server_(std::make_unique<Server>(options.core)) {}

  ~PyServer() {
    // Called with the GIL; threads that are joined may wait for it.
    const py::gil_scoped_release release;
    stop(0.0);
    server_.reset();
  }

  void add_method(std::string path, py::object handler, bool blocking) {
    handlers_.push_back(std::make_unique<py::object>(std::move(handler)));
    const py::object* held = handlers_.back().get();
    PythonPool* pool = blocking ? blocking_.get() : quick_.get();
    // Blocking methods take payloads (a model's files); quick ones are small questions.
    const std::size_t limit = blocking ? max_message_bytes_ : std::size_t{4} << 20;
    server_->add_method(
        std::move(path),
        [this, held, pool](EventLoop& loop, CallSet& calls) -> std::unique_ptr<Handler> {
          std::shared_ptr<PythonReplies>& replies = replies_[&loop];
          if (!replies) replies = std::make_shared<PythonReplies>(loop, calls);
          return std::make_unique<PythonHandler>(*pool, *held, replies);
        },
        limit);
  }

  void start() {
    const Status status = [&] {
      const py::gil_scoped_release release;
      return server_->start();
    }();
    raise_unless_ok(status);
  }

  void publish(
      const std::map<std::string, std::map<int64_t, std::shared_ptr<ModelVersion>>>& wanted) {
    const py::gil_scoped_release release;
    std::map<std::string, ModelRoutes, std::less<>> models;
    for (const auto& [name, versions] : wanted) {
      ModelRoutes& routes = models[name];
      for (const auto& [number, version] : versions) {
        routes.versions[number] = version;
        if (version != nullptr) routes.default_version = version;  // ascending: the highest stays
      }
    }
    server_->publish(std::make_shared<RouteTable>(std::move(models)));
  }

  bool stop(double grace_s) {
    const bool all_finished = server_->stop(nanoseconds_of(grace_s));
    quick_->stop();
    blocking_->stop();
    return all_finished;
  }

  Server& core() { return *server_; }

 private:
  static constexpr std::size_t kBlockingThreads = 8;
  // Quick handlers a hold of the GIL.
  static constexpr std::size_t kJobsPerHold = 64;
  std::vector<std::unique_ptr<py::object>> handlers_;
  std::map<EventLoop*, std::shared_ptr<PythonReplies>> replies_;
  std::unique_ptr<PythonPool> quick_;
  std::unique_ptr<PythonPool> blocking_;
  std::size_t max_message_bytes_;
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
      "calls_active"_a = counters.calls_active, "calls_by_code"_a = counters.calls_by_code,
      "bytes_received"_a = counters.bytes_received, "bytes_sent"_a = counters.bytes_sent,
      "tls_handshakes"_a = handshakes_by_result(counters), "tls_resumed"_a = counters.tls_resumed);
}

}  // namespace

void bind_server(py::module_& module) {
  bind_tls_options(module);
  py::class_<PyServerOptions>(module, "ServerOptions")
      .def(py::init(&make_options), py::kw_only(), "host"_a = "0.0.0.0", "port"_a = 8001,
           "io_threads"_a = 0, "max_message_bytes"_a = 0, "limits"_a = py::dict(),
           "python_threads"_a = 4);
  module.def("default_limits", &default_limits);
  py::class_<CallInfo, std::shared_ptr<CallInfo>>(module, "CallInfo")
      .def_readonly("method", &CallInfo::method)
      .def_readonly("peer", &CallInfo::peer)
      .def_property_readonly("principal",
                             [](const CallInfo& self) -> std::optional<std::string> {
                               if (self.principal.empty()) return std::nullopt;
                               return self.principal;
                             })
      .def_property_readonly("metadata",
                             [](const CallInfo& self) { return metadata_to_python(self.metadata); })
      .def("time_remaining",
           [](const CallInfo& self) -> std::optional<double> {
             if (self.deadline == kNever) return std::nullopt;
             return static_cast<double>(elapsed_ns(Clock::now(), self.deadline)) / 1e9;
           })
      .def("is_active",
           [](const CallInfo& self) { return !self.cancelled.load(std::memory_order_relaxed); })
      .def(
          "set_trailing_metadata",
          [](CallInfo& self, const py::iterable& pairs) {
            self.trailing_metadata = metadata_from_python(pairs);
          },
          "metadata"_a)
      .def(
          "send_initial_metadata",
          [](CallInfo& self, const py::iterable& pairs) {
            self.initial_metadata = metadata_from_python(pairs);
          },
          "metadata"_a);
  py::class_<PyServer>(module, "Server")
      .def(py::init<const PyServerOptions&>(), "options"_a)
      .def("add_method", &PyServer::add_method, "path"_a, "handler"_a, py::kw_only(),
           "blocking"_a = false)
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
      .def("publish", &PyServer::publish, "routes"_a)
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
          "set_access",
          [](PyServer& self, const std::vector<std::string>& anonymous,
             const std::vector<PyMember>& members) {
            self.core().set_access(make_access_policy(anonymous, members));
          },
          "anonymous"_a, "members"_a)
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
      .def("statistics", [](PyServer& self) { return statistics_of(self.core().counters()); });
}

}  // namespace headrace
