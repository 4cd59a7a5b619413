// Finds linear layers in an OpenVINO graph: MatMul by constant weights, with what follows it and can be
// part of the same operator: a scalar factor and a bias (ONNX Gemm arrives as those), then ReLU, GELU
// (one operator or spelled out with Erf), SiLU, Sigmoid or Tanh.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include <openvino/core/model.hpp>
#include <openvino/op/matmul.hpp>

#include "kernels/int8_pack.h"

namespace headrace {

struct LinearMatch {
  ov::Output<ov::Node> x;  // f32 [..., inputs]
  ov::Output<ov::Node> y;
  // All operators from x to y, each after those it reads; constants are not among them.
  std::vector<std::shared_ptr<ov::Node>> nodes;
  std::size_t inputs = 0;
  std::size_t outputs = 0;
  LinearActivation activation = LinearActivation::kNone;
  std::vector<float> bias;  // empty: none
  float factor = 1;         // of x W, before the bias
  // One of the two: the model's own int8 weights, or float ones.
  std::optional<QuantisedWeights> quantised;
  ov::Output<ov::Node> weights;
  bool transposed = false;
  // With int8 weights: the model's quantisation of x, which then is the tensor before it.
  std::optional<StaticActivations> activations;

  bool is_exact() const { return quantised.has_value() && activations.has_value(); }
};

// nullopt: not of that form. Float weights are not read yet.
std::optional<LinearMatch> match_linear(const std::shared_ptr<ov::op::v0::MatMul>& matmul);

// The float weights of a match; empty when they cannot be had. A copy.
std::vector<float> read_weights(const LinearMatch& match);

}  // namespace headrace
