#include "speech/streaming_network.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

namespace headrace {
namespace {

using Specs = std::vector<TensorSpec>;

// Of one stream's cache, and of all caches: what lies beyond is no speech network.
constexpr uint64_t kMaxStateBytes = uint64_t{1} << 28;

std::optional<std::size_t> find(const Specs& specs, const std::string& name) {
  for (std::size_t i = 0; i < specs.size(); ++i) {
    if (specs[i].name == name) return i;
  }
  return std::nullopt;
}

std::string shape_of(const TensorSpec& spec) {
  return "'" + spec.name + "' is " + std::string(dtype_name(spec.dtype)) + " " +
         Shape::dims_to_string(spec.dims);
}

// The output that an input of the next chunk comes from.
std::optional<std::size_t> next_of(const Specs& outputs, const std::string& name) {
  if (std::optional<std::size_t> found = find(outputs, "new_" + name)) return found;
  if (std::optional<std::size_t> found = find(outputs, name + "_next")) return found;
  constexpr std::string_view kLength = "_len";
  if (!name.ends_with(kLength)) return std::nullopt;
  return find(outputs, name.substr(0, name.size() - kLength.size()) + "_next_len");
}

std::size_t size_of(DType dtype) { return dtype == DType::kInt64 ? 8 : 4; }

Result<StreamingNetwork::Cache> cache_of(const StreamingNetworkOptions& options,
                                         const TensorSpec& input, const Specs& outputs) {
  const auto refuse = [&](const std::string& what) {
    return Status::invalid_argument("encoder: " + shape_of(input) + ": " + what);
  };
  StreamingNetwork::Cache cache;
  cache.dtype = input.dtype;
  cache.dims = input.dims;
  if (const auto given = options.caches.find(input.name); given != options.caches.end()) {
    if (given->second.size() != input.dims.size()) {
      return refuse("caches gives it " + std::to_string(given->second.size()) + " dimensions");
    }
    for (std::size_t i = 0; i < input.dims.size(); ++i) {
      if (input.dims[i] != -1 && input.dims[i] != given->second[i]) {
        return refuse("caches says " + Shape::dims_to_string(given->second));
      }
    }
    cache.dims = given->second;
  }
  if (input.dtype != DType::kFp32 && input.dtype != DType::kInt64) {
    return refuse("a cache is fp32 or int64");
  }
  const auto streams = std::count(cache.dims.begin(), cache.dims.end(), -1);
  if (streams != 1) {
    return refuse("a cache has one dynamic dimension, that of streams (caches can say which)");
  }
  uint64_t outer = 1;
  uint64_t inner = size_of(input.dtype);
  bool before = true;
  for (const int64_t dim : cache.dims) {
    if (dim == -1) {
      before = false;
      continue;
    }
    if (dim < 1 || static_cast<uint64_t>(dim) > kMaxStateBytes) return refuse("its size");
    (before ? outer : inner) *= static_cast<uint64_t>(dim);
    if (outer > kMaxStateBytes || inner > kMaxStateBytes) return refuse("its size");
  }
  if (outer * inner > kMaxStateBytes) return refuse("its size");
  cache.outer = static_cast<std::size_t>(outer);
  cache.inner = static_cast<std::size_t>(inner);
  const std::optional<std::size_t> output = next_of(outputs, input.name);
  if (!output) {
    return Status::invalid_argument("encoder: no output 'new_" + input.name + "' or '" +
                                    input.name + "_next'");
  }
  if (outputs[*output].dtype != input.dtype) {
    return Status::invalid_argument("encoder: " + shape_of(outputs[*output]) + ", but " +
                                    shape_of(input));
  }
  cache.output = *output;
  return cache;
}

}  // namespace

Result<std::shared_ptr<const StreamingNetwork>> StreamingNetwork::create(
    StreamingNetworkOptions options, std::shared_ptr<Model> model) {
  if (options.chunk < 1 || options.chunk > 4096 || options.shift < 1 ||
      options.shift > options.chunk) {
    return Status::invalid_argument(
        "chunk_frames: must be 1 to 4096, and shift_frames 1 to chunk_frames");
  }
  const Specs& inputs = model->inputs();
  const Specs& outputs = model->outputs();
  auto made = std::make_shared<StreamingNetwork>();
  const std::optional<std::size_t> nemo = find(inputs, "audio_signal");
  const std::optional<std::size_t> features = nemo ? nemo : find(inputs, "x");
  if (!features) return Status::invalid_argument("encoder: no input 'x' or 'audio_signal'");
  made->bands_first = nemo.has_value();
  made->features = *features;
  const TensorSpec& sound = inputs[*features];
  if (sound.dtype != DType::kFp32 || sound.dims.size() != 3) {
    return Status::invalid_argument("encoder: " + shape_of(sound) +
                                    ", expected fp32 of 3 dimensions");
  }
  if (sound.dims[0] != -1) {
    return Status::invalid_argument("encoder: " + shape_of(sound) + ": takes " +
                                    std::to_string(sound.dims[0]) +
                                    " streams only; its first dimension has to be dynamic");
  }
  const int64_t bands = sound.dims[nemo ? 1 : 2];
  const int64_t frames = sound.dims[nemo ? 2 : 1];
  if (bands < 3 || bands > 256) {
    return Status::invalid_argument("encoder: " + shape_of(sound) +
                                    " has no fixed number of mel bands");
  }
  if (frames != -1 && frames != static_cast<int64_t>(options.chunk)) {
    return Status::invalid_argument("encoder: " + shape_of(sound) + ", but chunk_frames is " +
                                    std::to_string(options.chunk));
  }
  made->bands = static_cast<std::size_t>(bands);
  const char* const result = nemo ? "logprobs" : "encoder_out";
  const std::optional<std::size_t> heard = find(outputs, result);
  if (!heard || outputs[*heard].dtype != DType::kFp32 || outputs[*heard].dims.size() != 3) {
    return Status::invalid_argument(std::string("encoder: no output '") + result +
                                    "' of fp32 and 3 dimensions");
  }
  made->heard = *heard;
  std::size_t state = 0;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (i == *features) continue;
    if (nemo && inputs[i].name == "length") {
      if (inputs[i].dtype != DType::kInt64 || inputs[i].dims.size() != 1) {
        return Status::invalid_argument("encoder: " + shape_of(inputs[i]) + ", expected int64 [N]");
      }
      made->has_length = true;
      made->length = i;
      continue;
    }
    Result<Cache> cache = cache_of(options, inputs[i], outputs);
    if (!cache) return cache.error();
    cache->input = i;
    state += cache->outer * cache->inner;
    made->caches.push_back(*std::move(cache));
  }
  if (made->caches.empty()) {
    return Status::invalid_argument("encoder: has no caches: it does not stream");
  }
  if (state > kMaxStateBytes) {
    return Status::invalid_argument("encoder: caches of " + std::to_string(state) +
                                    " bytes a stream");
  }
  made->options = std::move(options);
  made->model = std::move(model);
  return std::shared_ptr<const StreamingNetwork>(std::move(made));
}

std::size_t StreamingNetwork::state_bytes() const {
  std::size_t bytes = 0;
  for (const Cache& cache : caches) bytes += cache.outer * cache.inner;
  return bytes;
}

Result<std::unique_ptr<StreamingEncoder>> StreamingEncoder::create(
    std::shared_ptr<const StreamingNetwork> network) {
  Result<std::unique_ptr<Instance>> instance = network->model->make_instance();
  if (!instance) return instance.error();
  return std::unique_ptr<StreamingEncoder>(
      new StreamingEncoder(std::move(network), *std::move(instance)));
}

Result<StreamingEncoder::Heard> StreamingEncoder::run(std::span<const Row> rows) {
  if (Status status = lend_features(rows); !status.ok()) return status;
  if (Status status = lend_caches(rows); !status.ok()) return status;
  if (Status status = instance_->run(); !status.ok()) return status;
  if (Status status = keep_caches(rows); !status.ok()) return status;
  Result<BackendOutput> output = instance_->output(network_->heard);
  if (!output) return output.error();
  const Shape& shape = output->tensor.shape;
  if (shape.size() != 3 || shape[0] != static_cast<int64_t>(rows.size()) || shape[1] < 1 ||
      shape[2] < 1) {
    return Status::internal("encoder: answered with " + shape.to_string());
  }
  return Heard{reinterpret_cast<const float*>(output->tensor.data.data()),
               static_cast<std::size_t>(shape[1]), static_cast<std::size_t>(shape[2])};
}

Status StreamingEncoder::lend_features(std::span<const Row> rows) {
  const auto count = static_cast<int64_t>(rows.size());
  const std::size_t chunk = network_->chunk();
  const std::size_t bands = network_->bands;
  const auto frames = static_cast<int64_t>(chunk);
  const auto width = static_cast<int64_t>(bands);
  features_.resize(rows.size() * chunk * bands);
  float* to = features_.data();
  for (const Row& row : rows) {
    if (network_->bands_first) {
      for (std::size_t t = 0; t < chunk; ++t) {
        for (std::size_t f = 0; f < bands; ++f) to[f * chunk + t] = row.features[t * bands + f];
      }
    } else {
      std::copy_n(row.features, chunk * bands, to);
    }
    to += chunk * bands;
  }
  const Shape shape =
      network_->bands_first ? Shape{count, width, frames} : Shape{count, frames, width};
  Status status = instance_->lend(
      network_->features, {DType::kFp32, shape, std::as_bytes(std::span<const float>(features_))});
  if (!status.ok() || !network_->has_length) return status;
  lengths_.assign(rows.size(), frames);
  return instance_->lend(network_->length, {DType::kInt64, Shape{count},
                                            std::as_bytes(std::span<const int64_t>(lengths_))});
}

// One row's caches lie as they go in; those of several are laid side by side along the axis of streams.
Status StreamingEncoder::lend_caches(std::span<const Row> rows) {
  gathered_.resize(network_->caches.size());
  for (std::size_t i = 0; i < network_->caches.size(); ++i) {
    const StreamingNetwork::Cache& cache = network_->caches[i];
    Shape shape(cache.dims);
    for (int64_t& dim : std::span(&shape[0], shape.size())) {
      if (dim == -1) dim = static_cast<int64_t>(rows.size());
    }
    for (const Row& row : rows) {
      row.state->caches_.resize(network_->caches.size());
      row.state->caches_[i].resize(cache.outer * cache.inner);  // zeros at first
    }
    std::span<const std::byte> bytes = rows.front().state->caches_[i];
    if (rows.size() > 1) {
      gathered_[i].resize(rows.size() * cache.outer * cache.inner);
      std::byte* to = gathered_[i].data();
      for (std::size_t outer = 0; outer < cache.outer; ++outer) {
        for (const Row& row : rows) {
          std::memcpy(to, row.state->caches_[i].data() + outer * cache.inner, cache.inner);
          to += cache.inner;
        }
      }
      bytes = gathered_[i];
    }
    Status status = instance_->lend(cache.input, {cache.dtype, shape, bytes});
    if (!status.ok()) return status;
  }
  return {};
}

Status StreamingEncoder::keep_caches(std::span<const Row> rows) {
  for (std::size_t i = 0; i < network_->caches.size(); ++i) {
    const StreamingNetwork::Cache& cache = network_->caches[i];
    Result<BackendOutput> output = instance_->output(cache.output);
    if (!output) return output.error();
    const std::span<const std::byte> bytes = output->tensor.data;
    if (bytes.size() != rows.size() * cache.outer * cache.inner) {
      return Status::internal("encoder: '" + network_->model->outputs()[cache.output].name +
                              "' came out as " + output->tensor.shape.to_string());
    }
    const std::byte* from = bytes.data();
    for (std::size_t outer = 0; outer < cache.outer; ++outer) {
      for (const Row& row : rows) {
        std::memcpy(row.state->caches_[i].data() + outer * cache.inner, from, cache.inner);
        from += cache.inner;
      }
    }
  }
  return {};
}

}  // namespace headrace
