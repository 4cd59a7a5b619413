#include "kernels/linear_chain.h"

#include <algorithm>
#include <string>
#include <utility>

namespace headrace {
namespace {

// What stays in the caches from one layer to the next.
constexpr std::size_t kBlockRows = 32;

const std::shared_ptr<const PackedLinear>* packed_in(
    const std::variant<std::shared_ptr<const PackedLinear>, FloatLinear>& layer) {
  return std::get_if<std::shared_ptr<const PackedLinear>>(&layer);
}

void run_float(const FloatLinear& layer, const float* x, std::size_t rows, float* y) {
  const Int8Table& table = *int8_table(best_isa());
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t n = 0; n < layer.outputs; ++n) {
      y[row * layer.outputs + n] =
          table.dot(x + row * layer.inputs, layer.weights.data() + n * layer.inputs, layer.inputs);
    }
    for (std::size_t n = 0; n < layer.bias.size(); ++n) {
      y[row * layer.outputs + n] += layer.bias[n];
    }
  }
  if (layer.activation != LinearActivation::kNone) {
    table.activate(layer.activation, y, rows * layer.outputs);
  }
}

}  // namespace

Status LinearChain::check(std::size_t inputs) const {
  if (softmax_) return Status::invalid_argument("nothing may follow the softmax of a chain");
  if (inputs == 0) return Status::invalid_argument("a layer of a chain has at least one input");
  if (!layers_.empty() && outputs() != inputs) {
    return Status::invalid_argument("a layer of " + std::to_string(inputs) +
                                    " inputs cannot follow one of " + std::to_string(outputs()) +
                                    " outputs");
  }
  return {};
}

Status LinearChain::append(std::shared_ptr<const PackedLinear> layer) {
  if (Status status = check(layer->inputs()); !status.ok()) return status;
  if (!layers_.empty()) widest_ = std::max(widest_, layer->inputs());
  quantised_ = std::max(quantised_, linear_scratch_bytes(*layer, kBlockRows));
  ++int8_layers_;
  layers_.emplace_back(std::move(layer));
  return {};
}

Status LinearChain::append(FloatLinear layer) {
  if (Status status = check(layer.inputs); !status.ok()) return status;
  if (layer.outputs == 0 || layer.weights.size() != layer.inputs * layer.outputs ||
      (!layer.bias.empty() && layer.bias.size() != layer.outputs)) {
    return Status::invalid_argument("a layer of " + std::to_string(layer.inputs) + " x " +
                                    std::to_string(layer.outputs) + " has " +
                                    std::to_string(layer.weights.size()) + " weights and " +
                                    std::to_string(layer.bias.size()) + " biases");
  }
  if (!layers_.empty()) widest_ = std::max(widest_, layer.inputs);
  layers_.emplace_back(std::move(layer));
  return {};
}

std::size_t LinearChain::inputs() const {
  const auto* const packed = packed_in(layers_.front());
  return packed != nullptr ? (*packed)->inputs() : std::get<FloatLinear>(layers_.front()).inputs;
}

std::size_t LinearChain::outputs() const {
  const auto* const packed = packed_in(layers_.back());
  return packed != nullptr ? (*packed)->outputs() : std::get<FloatLinear>(layers_.back()).outputs;
}

std::size_t LinearChain::between_bytes() const {
  return (kBlockRows * widest_ * sizeof(float) + 63) / 64 * 64;
}

std::size_t LinearChain::scratch_bytes() const { return quantised_ + 2 * between_bytes(); }

void LinearChain::run(const float* x, std::size_t rows, float* y, std::byte* scratch) const {
  // Of nearly equal size: 17 + 16 rows rather than 32 + 1.
  const std::size_t blocks = (rows + kBlockRows - 1) / kBlockRows;
  for (std::size_t b = 0, row = 0; b < blocks; ++b) {
    const std::size_t count = (rows - row + blocks - b - 1) / (blocks - b);
    run_block(x + row * inputs(), count, y + row * outputs(), scratch);
    row += count;
  }
}

void LinearChain::run_block(const float* x, std::size_t rows, float* y, std::byte* scratch) const {
  std::byte* const between[2] = {scratch + quantised_, scratch + quantised_ + between_bytes()};
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    float* const to = i + 1 == layers_.size() ? y : reinterpret_cast<float*>(between[i % 2]);
    if (const auto* const packed = packed_in(layers_[i])) {
      linear(**packed, x, rows, to, scratch);
    } else {
      run_float(std::get<FloatLinear>(layers_[i]), x, rows, to);
    }
    x = to;
  }
  if (!softmax_) return;
  const Int8Table& table = *int8_table(best_isa());
  for (std::size_t row = 0; row < rows; ++row) table.softmax(y + row * outputs(), outputs());
}

}  // namespace headrace
