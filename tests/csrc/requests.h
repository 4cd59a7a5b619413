// Requests and a Completion for tests of the model tower.
#pragma once

#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "core/request.h"

namespace headrace::testing {

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

// BYTES elements in wire form.
inline std::string strings(const std::vector<std::string>& elements) {
  std::string bytes;
  for (const std::string& element : elements) {
    const auto length = static_cast<uint32_t>(element.size());
    bytes.append(reinterpret_cast<const char*>(&length), sizeof(length));
    bytes += element;
  }
  return bytes;
}

inline std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

struct TestInput {
  std::string name;
  DType dtype;
  Shape shape;
  std::string bytes;
};

struct TestOutput {
  std::string name;
  DType dtype;
  Shape shape;
  std::string bytes;
};

struct Answer {
  uint64_t id = 0;  // Request::call_id
  Status status;
  std::vector<TestOutput> outputs;
};

// Keeps what was answered, in order.
class Collector final : public Completion {
 public:
  void complete(RequestPtr request) noexcept override {
    Answer answer{request->call_id, request->response.status, {}};
    for (const OutputTensor& output : request->response.outputs) {
      answer.outputs.push_back({std::string(output.name), output.tensor.dtype, output.tensor.shape,
                                text_of(output.tensor.data)});
    }
    const std::lock_guard lock(mutex_);
    answers_.push_back(std::move(answer));
    changed_.notify_all();
  }
  std::vector<Answer> wait(std::size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return answers_.size() >= count; });
    return answers_;
  }
  std::vector<Answer> answers() { return wait(0); }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Answer> answers_;
};

// A request whose message holds copies of all it views.
inline RequestPtr make_request(Completion& completion, const std::vector<TestInput>& inputs,
                               uint64_t id = 0, const std::vector<std::string>& outputs = {}) {
  RequestPtr request(new Request(completion));
  request->call_id = id;
  std::size_t size = 0;
  for (const TestInput& input : inputs) size += input.name.size() + input.bytes.size();
  for (const std::string& output : outputs) size += output.size();
  request->message = BufferRef::allocate(size);
  std::byte* to = request->message.data();
  const auto keep = [&](const std::string& text) {
    std::memcpy(to, text.data(), text.size());
    const std::span<const std::byte> kept(to, text.size());
    to += text.size();
    return kept;
  };
  const auto keep_name = [&](const std::string& name) {
    const std::span<const std::byte> kept = keep(name);
    return std::string_view(reinterpret_cast<const char*>(kept.data()), kept.size());
  };
  for (const TestInput& input : inputs) {
    const std::string_view name = keep_name(input.name);
    request->inputs.push_back({name, {input.dtype, input.shape, keep(input.bytes)}});
  }
  for (const std::string& output : outputs) request->outputs.push_back({keep_name(output), 0});
  return request;
}

inline TensorSpec tensor_spec(std::string name, DType dtype, std::vector<int64_t> dims) {
  TensorSpec spec;
  spec.name = std::move(name);
  spec.dtype = dtype;
  spec.dims = std::move(dims);
  return spec;
}

}  // namespace headrace::testing
