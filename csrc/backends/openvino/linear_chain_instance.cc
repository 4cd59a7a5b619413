#include "backends/openvino/linear_chain_instance.h"

#include <new>
#include <string>
#include <utility>

namespace headrace {
LinearChainInstance::LinearChainInstance(std::shared_ptr<const LinearChain> chain,
                                         const TensorSpec& input, std::size_t most_rows,
                                         std::unique_ptr<Instance> other)
    : chain_(std::move(chain)),
      input_(input),
      most_rows_(most_rows),
      other_(std::move(other)),
      scratch_(chain_->scratch_bytes()) {}

bool LinearChainInstance::prepare(std::size_t index, const Shape& shape, std::size_t bytes) {
  state_ = State::kOther;
  const std::size_t row_bytes = chain_->inputs() * sizeof(float);
  const std::size_t rows = bytes / row_bytes;
  if (index != 0 || rows == 0 || rows > most_rows_ || shape.size() != input_.dims.size() ||
      shape[shape.size() - 1] != static_cast<int64_t>(chain_->inputs()) ||
      dense_byte_size(DType::kFp32, shape) != bytes) {
    return false;
  }
  for (std::size_t i = 0; i < input_.dims.size(); ++i) {
    if (input_.dims[i] >= 0 && input_.dims[i] != shape[i]) return false;
  }
  rows_ = rows;
  shape_.clear();
  for (std::size_t i = 0; i + 1 < shape.size(); ++i) shape_.push_back(shape[i]);
  shape_.push_back(static_cast<int64_t>(chain_->outputs()));
  y_.reserve(rows * chain_->outputs() * sizeof(float));
  state_ = State::kGiven;
  return true;
}

Result<std::span<std::byte>> LinearChainInstance::input(std::size_t index, const Shape& shape,
                                                        std::size_t bytes) try {
  if (!prepare(index, shape, bytes)) return other_->input(index, shape, bytes);
  std::byte* const memory = memory_.reserve(bytes);
  x_ = reinterpret_cast<const float*>(memory);
  return std::span<std::byte>(memory, bytes);
} catch (const std::bad_alloc&) {
  state_ = State::kOther;
  return Status::resource_exhausted("no memory for " + std::to_string(bytes) + " bytes of input");
}

Status LinearChainInstance::lend(std::size_t index, const TensorView& tensor) try {
  if (!prepare(index, tensor.shape, tensor.data.size())) return other_->lend(index, tensor);
  x_ = reinterpret_cast<const float*>(tensor.data.data());
  return {};
} catch (const std::bad_alloc&) {
  state_ = State::kOther;
  return Status::resource_exhausted("no memory for the output");
}

Status LinearChainInstance::omit(std::size_t index) {
  state_ = State::kOther;
  return other_->omit(index);
}

Status LinearChainInstance::run() {
  if (state_ == State::kOther) return other_->run();
  if (state_ == State::kRan) return Status::internal("input '" + input_.name + "' was not given");
  chain_->run(x_, rows_, reinterpret_cast<float*>(y_.data()), scratch_.data());
  state_ = State::kRan;
  return {};
}

Result<BackendOutput> LinearChainInstance::output(std::size_t index) {
  if (state_ == State::kOther) return other_->output(index);
  if (index != 0) return Status::internal("no output " + std::to_string(index));
  if (state_ != State::kRan) return Status::internal("no output before a run");
  BackendOutput output;
  output.tensor.dtype = DType::kFp32;
  output.tensor.shape = shape_;
  output.tensor.data = {y_.data(), rows_ * chain_->outputs() * sizeof(float)};
  return output;
}

}  // namespace headrace
