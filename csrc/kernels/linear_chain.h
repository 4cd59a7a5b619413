// LinearChain: linear layers one after the other, executed without any runtime around them. For models
// so small that a runtime's call costs more than their layers.
//
//   LinearChain chain;
//   Status status = chain.append(packed);                      // INT8, with its activation function
//   status = chain.append(FloatLinear{512, 3, weights, bias});  // a small one in f32
//   chain.end_with_softmax();
//   AlignedBytes scratch(chain.scratch_bytes());
//   chain.run(x, rows, y, scratch.data());
//
// INT8 layers compute bit for bit what linear() does. Rows go through all layers in blocks, so scratch
// does not depend on their number; nothing is allocated in run().
//
// Threads: immutable once built; run() on any number of them, each with its own scratch and y.
// ---------------------------------------------------------------------------------------------
#pragma once

#include <cstddef>
#include <memory>
#include <variant>
#include <vector>

#include "kernels/int8_linear.h"

namespace headrace {

// y = activation(x W + b) in f32, a dot product an output: for layers of some hundred weights.
struct FloatLinear {
  std::size_t inputs = 0;
  std::size_t outputs = 0;
  std::vector<float> weights;  // [outputs][inputs]
  std::vector<float> bias;     // empty: none
  LinearActivation activation = LinearActivation::kNone;
};

class LinearChain {
 public:
  // INVALID_ARGUMENT: it does not read what the layer before answers, nothing may follow (softmax), or
  // its sizes contradict each other.
  Status append(std::shared_ptr<const PackedLinear> layer);
  Status append(FloatLinear layer);
  // Over the outputs of the last layer.
  void end_with_softmax() { softmax_ = true; }
  bool has_softmax() const { return softmax_; }

  bool empty() const { return layers_.empty(); }
  std::size_t inputs() const;
  std::size_t outputs() const;
  std::size_t int8_layers() const { return int8_layers_; }
  std::size_t scratch_bytes() const;

  // `x`: [rows][inputs()], dense, need not be aligned. `y`: [rows][outputs()], floats. `scratch`:
  // scratch_bytes(), aligned to 64. Not empty().
  void run(const float* x, std::size_t rows, float* y, std::byte* scratch) const;

 private:
  using Layer = std::variant<std::shared_ptr<const PackedLinear>, FloatLinear>;

  Status check(std::size_t inputs) const;
  void run_block(const float* x, std::size_t rows, float* y, std::byte* scratch) const;
  // Floats between two layers, for a block of rows.
  std::size_t between_bytes() const;

  std::vector<Layer> layers_;
  std::size_t int8_layers_ = 0;
  bool softmax_ = false;
  std::size_t widest_ = 0;     // of what lies between two layers
  std::size_t quantised_ = 0;  // bytes that the INT8 layers want
};

}  // namespace headrace
