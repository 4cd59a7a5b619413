// A thin FAKE of TensorRT and CUDA behind backends/tensorrt/engine.h, for tests of what is above it: y = 2 x in
// host memory. It keeps the rules that the real ones have: memory must be live, work needs a profile, shapes
// and addresses, what is recorded is not run, the first enqueue after new shapes cannot be recorded, and after
// an error of the device everything fails. It proves nothing about TensorRT.
#pragma once

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "backends/tensorrt/engine.h"

namespace headrace::fake {

struct Log {
  int allocations = 0, captures = 0, launches = 0, enqueues = 0, profiles = 0;
  std::size_t live = 0;  // bytes
  // Calls of this name fail from the n-th on (1 = the next).
  std::map<std::string, int> fail_at;
  bool cannot_capture = false;
  bool device_lost = false;
};

struct Graph final : TensorRtGraph {
  std::vector<std::function<Status()>> steps;
};

class Context final : public TensorRtContext {
 public:
  Context(const TensorRtSignature& signature, std::shared_ptr<Log> log)
      : signature_(signature), log_(std::move(log)) {}
  ~Context() override {
    for (const auto& [memory, size] : memory_) log_->live -= size;
  }

  Result<std::byte*> allocate(TensorRtMemory, std::size_t bytes) override {
    if (fails("allocate")) return Status::resource_exhausted("out of memory");
    ++log_->allocations;
    log_->live += bytes;
    auto memory = std::make_unique<std::byte[]>(bytes);
    std::byte* const address = memory.get();
    owned_.push_back(std::move(memory));
    memory_[address] = bytes;
    return address;
  }
  void release(TensorRtMemory, std::byte* memory) noexcept override {
    log_->live -= memory_.at(memory);
    memory_.erase(memory);
    std::erase_if(owned_, [&](const auto& owned) { return owned.get() == memory; });
  }
  Status select_profile(std::size_t profile) override {
    if (fails("select_profile")) return Status::internal("device lost");
    ++log_->profiles;
    profile_ = profile;
    shape_.reset();
    return {};
  }
  Status set_input_shape(std::size_t, const Shape& shape) override {
    if (!profile_) return Status::internal("no profile");
    if (fails("set_input_shape"))
      return Status::invalid_argument("a shape that the engine refuses");
    const TensorRtProfile::Range& range = signature_.profiles[*profile_].inputs[0];
    if (shape[0] < range.min[0] || shape[0] > range.max[0]) {
      return Status::invalid_argument("not of this profile");
    }
    if (!shape_ || !(*shape_ == shape)) warm_ = false;
    shape_ = shape;
    return {};
  }
  Result<Shape> output_shape(std::size_t) override {
    if (!shape_) return Status::internal("no shape");
    return *shape_;
  }
  Status bind_input(std::size_t, std::byte* device) override {
    x_ = device;
    return {};
  }
  Status bind_output(std::size_t, std::byte* device) override {
    y_ = device;
    return {};
  }
  Status upload(std::byte* device, const std::byte* pinned, std::size_t bytes) override {
    return copy(device, pinned, bytes);
  }
  Status download(std::byte* pinned, const std::byte* device, std::size_t bytes) override {
    return copy(pinned, device, bytes);
  }
  Status enqueue() override {
    if (fails("enqueue")) return lost();
    if (!shape_ || !x_ || !y_) return Status::internal("shapes or addresses are missing");
    if (recording_ && (!warm_ || log_->cannot_capture))
      return Status::internal("not while recording");
    ++log_->enqueues;
    warm_ = true;
    const std::size_t count = *shape_->element_count();
    return queue([this, x = x_, y = y_, count]() -> Status {
      if (!live(x, count * 4) || !live(y, count * 4)) return lost();
      for (std::size_t i = 0; i < count; ++i) {
        reinterpret_cast<float*>(y)[i] = 2 * reinterpret_cast<const float*>(x)[i];
      }
      return {};
    });
  }
  Status synchronize() override {
    if (fails("synchronize") || log_->device_lost) return lost();
    return {};
  }
  Status begin_capture() override {
    if (recording_) return Status::internal("already recording");
    ++log_->captures;
    recording_ = std::make_unique<Graph>();
    return {};
  }
  Result<std::unique_ptr<TensorRtGraph>> end_capture() override {
    std::unique_ptr<Graph> recorded = std::move(recording_);
    if (log_->cannot_capture) return Status::internal("cannot be recorded");
    return std::unique_ptr<TensorRtGraph>(std::move(recorded));
  }
  Status launch(TensorRtGraph& graph) override {
    if (fails("launch")) return lost();
    ++log_->launches;
    for (const auto& step : static_cast<Graph&>(graph).steps) {
      if (Status status = step(); !status.ok()) return status;
    }
    return {};
  }

 private:
  Status lost() {
    log_->device_lost = true;
    return Status::internal("device lost");
  }
  bool fails(const char* call) {
    const auto found = log_->fail_at.find(call);
    return found != log_->fail_at.end() && --found->second <= 0;
  }
  bool live(const std::byte* memory, std::size_t bytes) const {
    const auto found = memory_.find(const_cast<std::byte*>(memory));
    return found != memory_.end() && found->second >= bytes;
  }
  Status copy(std::byte* to, const std::byte* from, std::size_t bytes) {
    if (fails("copy")) return lost();
    return queue([this, to, from, bytes]() -> Status {
      if (!live(to, bytes) || !live(from, bytes)) return lost();
      std::memcpy(to, from, bytes);
      return {};
    });
  }
  Status queue(std::function<Status()> step) {
    if (!recording_) return step();
    recording_->steps.push_back(std::move(step));
    return {};
  }

  const TensorRtSignature& signature_;
  std::shared_ptr<Log> log_;
  std::vector<std::unique_ptr<std::byte[]>> owned_;
  std::map<std::byte*, std::size_t> memory_;
  std::optional<std::size_t> profile_;
  std::optional<Shape> shape_;
  std::byte* x_ = nullptr;
  std::byte* y_ = nullptr;
  bool warm_ = false;
  std::unique_ptr<Graph> recording_;
};

class Engine final : public TensorRtEngine {
 public:
  // Profile 0 takes 1 to 64 rows of 4, profile 1 takes 1 to 8.
  explicit Engine(std::shared_ptr<Log> log) : log_(std::move(log)) {
    TensorSpec rows;
    rows.dtype = DType::kFp32;
    rows.dims = {-1, 4};
    rows.name = "x";
    signature_.inputs = {rows};
    rows.name = "y";
    signature_.outputs = {rows};
    signature_.profiles = {{{{Shape{1, 4}, Shape{32, 4}, Shape{64, 4}}}},
                           {{{Shape{1, 4}, Shape{4, 4}, Shape{8, 4}}}}};
    signature_.description = "a fake";
    signature_.context_bytes = 1000;
    signature_.weights_bytes = 5000;
  }
  const TensorRtSignature& signature() const override { return signature_; }
  Result<std::unique_ptr<TensorRtContext>> make_context() override {
    return std::unique_ptr<TensorRtContext>(std::make_unique<Context>(signature_, log_));
  }

 private:
  std::shared_ptr<Log> log_;
  TensorRtSignature signature_;
};

}  // namespace headrace::fake
