#include "backends/tensorrt/tensorrt_instance.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace headrace {
namespace {

bool takes(const TensorRtProfile::Range& range, const Shape& shape) {
  if (shape.size() != range.min.size() || shape.size() != range.max.size()) return false;
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] < range.min[i] || shape[i] > range.max[i]) return false;
  }
  return true;
}

std::string ranges_of(const TensorRtSignature& signature) {
  std::string text;
  for (const TensorRtProfile& profile : signature.profiles) {
    text += text.empty() ? "" : "; ";
    for (std::size_t i = 0; i < profile.inputs.size(); ++i) {
      text += (i == 0 ? "" : ", ") + signature.inputs[i].name + " " +
              profile.inputs[i].min.to_string() + " to " + profile.inputs[i].max.to_string();
    }
  }
  return text;
}

// Sizes double, so that a slowly growing batch does not allocate every time.
std::size_t rounded(std::size_t bytes) { return std::bit_ceil(std::max<std::size_t>(bytes, 256)); }

}  // namespace

std::optional<std::size_t> choose_profile(const TensorRtSignature& signature,
                                          const std::vector<Shape>& shapes) {
  std::optional<std::size_t> best;
  double least = std::numeric_limits<double>::infinity();
  for (std::size_t p = 0; p < signature.profiles.size(); ++p) {
    const TensorRtProfile& profile = signature.profiles[p];
    if (profile.inputs.size() != shapes.size()) continue;
    double room = 0;
    bool fits = true;
    for (std::size_t i = 0; i < shapes.size() && fits; ++i) {
      fits = takes(profile.inputs[i], shapes[i]);
      room += static_cast<double>(profile.inputs[i].max.element_count().value_or(UINT64_MAX));
    }
    if (fits && room < least) {
      least = room;
      best = p;
    }
  }
  return best;
}

TensorRtInstance::TensorRtInstance(std::shared_ptr<TensorRtEngine> engine,
                                   std::shared_ptr<TensorRtMeter> meter,
                                   const TensorRtOptions& options)
    : engine_(std::move(engine)),
      meter_(std::move(meter)),
      options_(options),
      inputs_(engine_->signature().inputs.size()),
      outputs_(engine_->signature().outputs.size()),
      shapes_(inputs_.size()),
      output_shapes_(outputs_.size()),
      given_(inputs_.size(), false) {}

Result<std::unique_ptr<TensorRtInstance>> TensorRtInstance::create(
    std::shared_ptr<TensorRtEngine> engine, std::shared_ptr<TensorRtMeter> meter,
    const TensorRtOptions& options) {
  std::unique_ptr<TensorRtInstance> instance(
      new TensorRtInstance(std::move(engine), std::move(meter), options));
  const int64_t own = instance->engine_->signature().context_bytes;
  TensorRtMeter& all = *instance->meter_;
  if (all.limit > 0 && all.device_bytes + own > all.limit) {
    return Status::resource_exhausted("an execution context takes " + std::to_string(own) +
                                      " bytes of device memory, more than is left of " +
                                      std::to_string(all.limit));
  }
  Result<std::unique_ptr<TensorRtContext>> context = instance->engine_->make_context();
  if (!context) return context.error();
  all.device_bytes += own;
  instance->context_ = std::move(*context);
  return instance;
}

TensorRtInstance::~TensorRtInstance() {
  buckets_.clear();
  if (!context_) return;
  for (std::vector<Buffer>* buffers : {&inputs_, &outputs_}) {
    for (const Buffer& buffer : *buffers) {
      if (buffer.pinned) context_->release(TensorRtMemory::kPinned, buffer.pinned);
      if (buffer.device) context_->release(TensorRtMemory::kDevice, buffer.device);
      meter_->pinned_bytes -= static_cast<int64_t>(buffer.pinned_size);
      meter_->device_bytes -= static_cast<int64_t>(buffer.device_size);
    }
  }
  meter_->device_bytes -= engine_->signature().context_bytes;
}

Status TensorRtInstance::fail(const Status& cause) {
  broken_ = Status::unavailable("the instance has failed before: " + cause.message());
  return Status::internal(cause.message());
}

Status TensorRtInstance::grow(TensorRtMemory kind, Buffer& buffer, std::size_t bytes) {
  const bool device = kind == TensorRtMemory::kDevice;
  std::byte*& memory = device ? buffer.device : buffer.pinned;
  std::size_t& size = device ? buffer.device_size : buffer.pinned_size;
  std::atomic<int64_t>& metered = device ? meter_->device_bytes : meter_->pinned_bytes;
  if (memory != nullptr && bytes <= size) return {};
  const std::size_t wanted = rounded(bytes);
  const auto more = static_cast<int64_t>(wanted - size);
  if (device && meter_->limit > 0 && metered + more > meter_->limit) {
    return Status::resource_exhausted("a batch needs " + std::to_string(wanted) +
                                      " bytes of device memory, more than is left of " +
                                      std::to_string(meter_->limit));
  }
  // Graphs hold addresses.
  buckets_.clear();
  if (memory != nullptr) {
    context_->release(kind, memory);
    metered -= static_cast<int64_t>(size);
    memory = nullptr;
    size = 0;
    set_shapes_.clear();  // what was bound is gone
  }
  Result<std::byte*> made = context_->allocate(kind, wanted);
  if (!made) return made.error();
  memory = *made;
  size = wanted;
  metered += static_cast<int64_t>(wanted);
  return {};
}

Result<std::span<std::byte>> TensorRtInstance::input(std::size_t index, const Shape& shape,
                                                     std::size_t bytes) {
  if (!broken_.ok()) return broken_;
  has_run_ = false;
  const TensorSpec& spec = engine_->signature().inputs[index];
  const std::optional<uint64_t> expected = dense_byte_size(spec.dtype, shape);
  if (!expected || *expected != bytes) {
    return Status::invalid_argument("input '" + spec.name + "': " + shape.to_string() +
                                    " is not of " + std::to_string(bytes) + " bytes");
  }
  given_[index] = false;
  if (Status status = grow(TensorRtMemory::kPinned, inputs_[index], bytes); !status.ok()) {
    return status;
  }
  inputs_[index].bytes = bytes;
  shapes_[index] = shape;
  given_[index] = true;
  return std::span(inputs_[index].pinned, bytes);
}

Status TensorRtInstance::omit(std::size_t index) {
  return Status::invalid_argument("input '" + engine_->signature().inputs[index].name +
                                  "' cannot be left out: TensorRT engines have no optional inputs");
}

// Sets the context to `profile` and shapes_, with memory for all of it.
Status TensorRtInstance::prepare(std::size_t profile) {
  if (profile_ == profile && set_shapes_ == shapes_) return {};
  set_shapes_.clear();
  if (profile_ != profile) {
    profile_.reset();
    if (Status status = context_->select_profile(profile); !status.ok()) return fail(status);
    profile_ = profile;
  }
  for (std::size_t i = 0; i < inputs_.size(); ++i) {
    if (Status status = context_->set_input_shape(i, shapes_[i]); !status.ok()) return status;
    if (Status status = grow(TensorRtMemory::kDevice, inputs_[i], inputs_[i].bytes); !status.ok()) {
      return status;
    }
  }
  const std::vector<TensorSpec>& specs = engine_->signature().outputs;
  for (std::size_t i = 0; i < outputs_.size(); ++i) {
    Result<Shape> shape = context_->output_shape(i);
    if (!shape) return shape.error();
    const std::optional<uint64_t> bytes = dense_byte_size(specs[i].dtype, *shape);
    if (!bytes) {
      return Status::unimplemented("output '" + specs[i].name +
                                   "' has no size before the run: " + shape->to_string());
    }
    output_shapes_[i] = *shape;
    outputs_[i].bytes = *bytes;
    for (const TensorRtMemory kind : {TensorRtMemory::kDevice, TensorRtMemory::kPinned}) {
      if (Status status = grow(kind, outputs_[i], *bytes); !status.ok()) return status;
    }
  }
  for (std::size_t i = 0; i < inputs_.size(); ++i) {
    if (Status status = context_->bind_input(i, inputs_[i].device); !status.ok()) {
      return fail(status);
    }
  }
  for (std::size_t i = 0; i < outputs_.size(); ++i) {
    if (Status status = context_->bind_output(i, outputs_[i].device); !status.ok()) {
      return fail(status);
    }
  }
  set_shapes_ = shapes_;
  return {};
}

Status TensorRtInstance::queue_work() {
  for (const Buffer& input : inputs_) {
    if (input.bytes == 0) continue;
    if (Status status = context_->upload(input.device, input.pinned, input.bytes); !status.ok()) {
      return status;
    }
  }
  if (Status status = context_->enqueue(); !status.ok()) return status;
  for (const Buffer& output : outputs_) {
    if (output.bytes == 0) continue;
    if (Status status = context_->download(output.pinned, output.device, output.bytes);
        !status.ok()) {
      return status;
    }
  }
  return {};
}

TensorRtInstance::Bucket* TensorRtInstance::find_bucket() {
  for (Bucket& bucket : buckets_) {
    if (bucket.profile == *profile_ && bucket.shapes == set_shapes_) return &bucket;
  }
  return nullptr;
}

void TensorRtInstance::add_bucket() {
  if (buckets_.size() >= std::max<std::size_t>(options_.max_graphs, 1)) {
    buckets_.erase(std::min_element(
        buckets_.begin(), buckets_.end(),
        [](const Bucket& a, const Bucket& b) { return a.last_used < b.last_used; }));
  }
  buckets_.push_back({*profile_, set_shapes_, nullptr, false, clock_});
}

Status TensorRtInstance::execute() {
  ++clock_;
  Bucket* bucket = options_.graphs ? find_bucket() : nullptr;
  if (bucket == nullptr) {
    // The first run of a shape cannot be recorded: TensorRT sets itself up in it.
    if (Status status = queue_work(); !status.ok()) return status;
    if (options_.graphs) add_bucket();
    return context_->synchronize();
  }
  bucket->last_used = clock_;
  if (!bucket->graph && !bucket->refused) {
    if (Status status = context_->begin_capture(); !status.ok()) return status;
    const Status queued = queue_work();
    Result<std::unique_ptr<TensorRtGraph>> graph = context_->end_capture();
    if (queued.ok() && graph) {
      bucket->graph = std::move(*graph);
    } else {
      bucket->refused = true;
    }
  }
  Status status = bucket->graph ? context_->launch(*bucket->graph) : queue_work();
  return status.ok() ? context_->synchronize() : status;
}

Status TensorRtInstance::run() {
  if (!broken_.ok()) return broken_;
  has_run_ = false;
  const TensorRtSignature& signature = engine_->signature();
  for (std::size_t i = 0; i < given_.size(); ++i) {
    if (!given_[i]) {
      return Status::invalid_argument("input '" + signature.inputs[i].name + "' is missing");
    }
  }
  std::fill(given_.begin(), given_.end(), false);
  const std::optional<std::size_t> profile = choose_profile(signature, shapes_);
  if (!profile) {
    return Status::invalid_argument(
        "no optimisation profile of the engine takes these shapes; it has " + ranges_of(signature));
  }
  if (Status status = prepare(*profile); !status.ok()) return status;
  if (const Status status = execute(); !status.ok()) return fail(status);
  has_run_ = true;
  return {};
}

Result<BackendOutput> TensorRtInstance::output(std::size_t index) {
  if (!has_run_) return Status::internal("there was no run that this output would be of");
  const Buffer& buffer = outputs_[index];
  return BackendOutput{{engine_->signature().outputs[index].dtype, output_shapes_[index],
                        std::span<const std::byte>(buffer.pinned, buffer.bytes)},
                       {}};
}

std::size_t TensorRtInstance::graph_count() const {
  return static_cast<std::size_t>(std::count_if(
      buckets_.begin(), buckets_.end(), [](const Bucket& b) { return b.graph != nullptr; }));
}

}  // namespace headrace
