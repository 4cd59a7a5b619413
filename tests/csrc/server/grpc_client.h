// A blocking gRPC client over a loopback socket, and small models that it can hold up.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <array>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <protozero/pbf_message.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "backends/callback/callback_backend.h"
#include "frontend/messages.h"
#include "server/server.h"
#include "serving/model_version.h"
#include "wire_client.h"

namespace headrace::testing {

inline const std::string kInfer = "/inference.GRPCInferenceService/ModelInfer";

// Belongs to one thread.
class GrpcClient {
 public:
  explicit GrpcClient(uint16_t port) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    struct sockaddr_in address {};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    // So that a server that never answers fails the test.
    const struct timeval patience { 120, 0 };
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    const int on = 1;
    ::setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    if (::connect(fd_, reinterpret_cast<struct sockaddr*>(&address), sizeof(address)) != 0) {
      throw std::runtime_error("connect");
    }
  }
  ~GrpcClient() { disconnect(); }
  GrpcClient(const GrpcClient&) = delete;
  GrpcClient& operator=(const GrpcClient&) = delete;

  void disconnect() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  // With an RST on the wire instead of a FIN.
  void abort_connection() {
    const struct linger hard { 1, 0 };
    ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
    disconnect();
  }

  int32_t begin(const std::string& path, std::string_view message,
                const test::Headers& headers = {}) {
    const int32_t id = session.call(path, message, headers);
    flush();
    return id;
  }
  const test::Reply& wait(int32_t id) {
    while (!session.reply(id).closed && receive()) {
    }
    return session.reply(id);
  }
  const test::Reply& call(const std::string& path, std::string_view message,
                          const test::Headers& headers = {}) {
    return wait(begin(path, message, headers));
  }

  bool flush() {
    std::string bytes = session.output();
    std::string_view rest = bytes;
    while (!rest.empty()) {
      const ssize_t n = ::send(fd_, rest.data(), rest.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      rest.remove_prefix(static_cast<std::size_t>(n));
    }
    return true;
  }
  // Waits for bytes. False: the connection has ended.
  bool receive() {
    flush();
    std::array<char, 65536> bytes;
    const ssize_t n = ::recv(fd_, bytes.data(), bytes.size(), 0);
    if (n < 0 && errno == EAGAIN) throw std::runtime_error("the server does not answer");
    if (n <= 0) return false;
    return session.input({bytes.data(), static_cast<std::size_t>(n)}) && flush();
  }

  test::TestClient session;

 private:
  int fd_;
};

// A door in a model: whoever passes waits until it is open.
class Gate {
 public:
  void pass() {
    std::unique_lock lock(mutex_);
    ++arrived_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return open_; });
  }
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  // Until so many have come to the door, ever.
  void wait_for(int count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return arrived_ >= count; });
  }
  int arrived() {
    const std::lock_guard lock(mutex_);
    return arrived_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
  int arrived_ = 0;
};

using Inputs = std::vector<std::optional<CallbackInput>>;
using Outputs = std::vector<BackendOutput>;

inline Status identity(const Inputs& inputs, Outputs& outputs) {
  outputs.push_back({inputs[0]->tensor, inputs[0]->owner});
  return {};
}

struct VersionOptions {
  std::string name = "m";
  int64_t number = 1;
  int64_t max_batch_size = 4;
  uint32_t instances = 1;
  uint32_t queue_bound = 65536;
};

// X, INT64 [-1] -> Y, INT64 [-1]; started.
inline std::shared_ptr<ModelVersion> make_version(Reaper& reaper, const Callback& callback,
                                                  const VersionOptions& options = {}) {
  ModelSpec spec;
  spec.name = options.name;
  spec.version = options.number;
  spec.version_text = std::to_string(options.number);
  spec.max_batch_size = options.max_batch_size;
  const auto tensor = [](const char* name, std::vector<int64_t> dims) {
    TensorSpec result;
    result.name = name;
    result.dtype = DType::kInt64;
    result.dims = std::move(dims);
    return result;
  };
  spec.inputs = {tensor("X", {-1})};
  spec.outputs = {tensor("Y", {-1})};
  ModelVersionOptions version_options;
  version_options.instances = options.instances;
  version_options.batch.max_rows = std::max<int64_t>(1, options.max_batch_size);
  version_options.batch.queue_bound = options.queue_bound;
  auto model = make_callback_model({tensor("X", {-1, -1})}, {tensor("Y", {-1, -1})},
                                   std::vector<Callback>(options.instances, callback), "test");
  auto version =
      ModelVersion::create(std::move(spec), std::move(version_options), std::move(model), reaper);
  if (!version) throw std::runtime_error(version.error().message());
  (*version)->start();
  return *version;
}

inline std::shared_ptr<const RouteTable> routes_to(const std::shared_ptr<Servable>& version,
                                                   int64_t number = 1) {
  std::map<std::string, ModelRoutes, std::less<>> models;
  models["m"] = {{{number, version}}, version};
  return std::make_shared<const RouteTable>(std::move(models));
}

inline std::string infer_message(int64_t value, std::string_view version = "",
                                 std::string_view model = "m") {
  return field(1, model) + field(2, version) + field(3, std::to_string(value)) +
         input("X", "INT64", {1, 2}) + raw_contents(raw<int64_t>({value, -value}));
}

// What a ModelInferResponse says.
struct InferAnswer {
  std::string version;
  std::string id;
  std::vector<int64_t> values;
};

inline InferAnswer infer_answer(const test::Reply& reply) {
  InferAnswer answer;
  const std::string bytes = reply.message().value_or("");
  protozero::pbf_reader reader(bytes);
  while (reader.next()) {
    if (reader.tag() == 2) {
      answer.version = reader.get_string();
    } else if (reader.tag() == 3) {
      answer.id = reader.get_string();
    } else if (reader.tag() == 6) {
      const auto data = reader.get_view();
      answer.values.resize(data.size() / sizeof(int64_t));
      std::memcpy(answer.values.data(), data.data(), data.size());
    } else {
      reader.skip();
    }
  }
  return answer;
}

inline ServerOptions loopback(uint32_t io_threads = 2) {
  ServerOptions options;
  options.host = "127.0.0.1";
  options.port = 0;
  options.io_threads = io_threads;
  options.busy_poll = std::chrono::microseconds(50);
  return options;
}

inline uint64_t by_code(const ServerCounters& counters, StatusCode code) {
  return counters.calls_by_code[static_cast<std::size_t>(code)];
}

}  // namespace headrace::testing
