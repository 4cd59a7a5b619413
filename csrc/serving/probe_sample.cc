#include "serving/probe_sample.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace headrace {
namespace {

BufferRef copy_of(std::span<const std::byte> bytes) {
  BufferRef copy = BufferRef::allocate(bytes.size());
  if (!bytes.empty()) std::memcpy(copy.data(), bytes.data(), bytes.size());
  return copy;
}

// Of one element of zeros: an empty string is its length.
std::size_t element_bytes(DType dtype) {
  return dtype == DType::kBytes ? sizeof(uint32_t) : dtype_size(dtype);
}

}  // namespace

std::optional<ProbeSample> ProbeSample::zeros(const ModelSpec& spec) {
  ProbeSample sample;
  std::size_t left = kMostBytes;
  for (const TensorSpec& input : spec.inputs) {
    if (input.optional) continue;
    Shape shape;
    if (spec.batching()) shape.push_back(1);
    for (const int64_t dim : input.dims) shape.push_back(dim < 0 ? 1 : dim);
    const std::optional<uint64_t> count = shape.element_count();
    const std::size_t each = element_bytes(input.dtype);
    if (!count || *count > left / each) return std::nullopt;
    left -= *count * each;
    BufferRef bytes = BufferRef::allocate(*count * each);
    std::fill(bytes.span().begin(), bytes.span().end(), std::byte{0});
    sample.inputs_.push_back({input.name, input.dtype, shape, std::move(bytes)});
  }
  return sample;
}

ProbeSample::ProbeSample(const std::vector<InputTensor>& inputs) {
  for (const InputTensor& input : inputs) {
    inputs_.push_back({std::string(input.name), input.tensor.dtype, input.tensor.shape,
                       copy_of(input.tensor.data)});
  }
}

std::vector<InputTensor> ProbeSample::inputs() const {
  std::vector<InputTensor> inputs;
  for (const Input& input : inputs_) {
    inputs.push_back({input.name, {input.dtype, input.shape, input.bytes.span()}});
  }
  return inputs;
}

std::size_t ProbeSample::bytes() const {
  std::size_t sum = 0;
  for (const Input& input : inputs_) sum += input.bytes.size();
  return sum;
}

}  // namespace headrace
