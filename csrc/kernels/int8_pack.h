// PackedLinear: the weights of y = activation(x W + b) as int8, laid out for one instruction set.
//
// Weights are symmetric, a scale an output channel. Activations are u8 with a scale and a zero point:
// found a row at run time (dynamic), or given (static: quantised models).
//
// On AVX2 two products are added in an int16, four where the weights allow. What may be added is proven
// here, from the weights alone, for every input that there can be: entries whose sums of positive and of
// negative weights stay below 32767 / (largest activation) are paired; an entry that would be too much
// even alone is split into two. So dynamic activations have 7 bits there, which costs little accuracy and
// pairs nearly everything; where it does not (weights far from Gaussian), weights have 7 bits too.
//
// Threads: immutable once made.
// ---------------------------------------------------------------------------------------------
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "kernels/int8_isa.h"
#include "kernels/int8_table.h"

namespace headrace {

// As quantise_weights() makes them, or as a quantised model has them.
struct QuantisedWeights {
  std::size_t inputs = 0;
  std::size_t outputs = 0;
  std::vector<int8_t> values;  // [outputs][inputs]
  std::vector<float> scales;   // an output channel; weight = value * scale
};

// How a quantised model wants its activations: u8 = clamp(round(x / scale) + zero_point, low, high).
// A model's int8 is this with 128 added to the zero point and the limits. Rounds half to even.
struct StaticActivations {
  float scale = 1;  // > 0, finite
  int32_t zero_point = 128;
  int32_t low = 0;  // 0 <= low < high <= 255
  int32_t high = 255;
};

// `weights`: [inputs][outputs], or with `transposed` [outputs][inputs]. Values are -max to max.
// INVALID_ARGUMENT: a weight is not finite.
Result<QuantisedWeights> quantise_weights(std::span<const float> weights, std::size_t inputs,
                                          std::size_t outputs, bool transposed, int32_t max = 127);

struct PackOptions {
  LinearActivation activation = LinearActivation::kNone;
  Isa isa = best_isa();
};

class PackedLinear {
 public:
  // More inputs might overflow an int32.
  static constexpr std::size_t kMaxInputs = 65536;

  // From float weights, for dynamic activations. `bias`: empty, or an output channel each.
  static Result<PackedLinear> pack(std::span<const float> weights, std::size_t inputs,
                                   std::size_t outputs, bool transposed,
                                   std::span<const float> bias, const PackOptions& options = {});
  // From int8 weights; with `activations` null for dynamic ones.
  static Result<PackedLinear> pack(const QuantisedWeights& weights, std::span<const float> bias,
                                   const StaticActivations* activations,
                                   const PackOptions& options = {});

  std::size_t inputs() const { return inputs_; }
  std::size_t outputs() const { return outputs_; }
  Isa isa() const { return isa_; }
  bool is_static() const { return static_; }
  const StaticActivations& activations() const { return activations_; }
  // Dynamic rows are quantised to 0 .. activation_max().
  int32_t activation_max() const { return activation_max_; }
  // AVX2: the share of the inputs that are added four products at a time; elsewhere 1.
  double paired_share() const { return paired_share_; }
  // How many bits weights have, 7 or 8.
  int weight_bits() const { return weight_bits_; }
  std::size_t memory_bytes() const;
  // Of everything that decides the result: equal hashes, equal layers.
  const std::string& content_hash() const { return content_hash_; }

  // For the kernels.
  Int8Matrix matrix() const;
  std::size_t panel_count() const { return panels_.size(); }

 private:
  struct Free {
    void operator()(void* memory) const;
  };

  PackedLinear() = default;
  static Result<PackedLinear> pack_for(const QuantisedWeights& weights, std::span<const float> bias,
                                       const StaticActivations* activations, int32_t activation_max,
                                       const PackOptions& options);

  std::size_t inputs_ = 0;
  std::size_t outputs_ = 0;
  Isa isa_ = Isa::kReference;
  LinearActivation activation_ = LinearActivation::kNone;
  bool static_ = false;
  StaticActivations activations_;
  int32_t activation_max_ = 255;
  double paired_share_ = 1;
  int weight_bits_ = 8;
  std::string content_hash_;
  std::unique_ptr<int8_t[], Free> weights_;
  std::size_t weights_bytes_ = 0;
  std::vector<uint32_t> order_;
  std::vector<Int8Panel> panels_;
  std::vector<float> scales_, bias_;
  std::vector<int32_t> sums_;
};

}  // namespace headrace
