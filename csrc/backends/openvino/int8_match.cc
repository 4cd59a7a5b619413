#include "backends/openvino/int8_match.h"

#include <cmath>
#include <utility>

#include <openvino/op/ops.hpp>

namespace headrace {
namespace {

using ov::op::v0::Constant;

constexpr int kFoldDepth = 8;

// What a tree of constants comes to; null when it has anything else in it.
std::shared_ptr<Constant> fold(const ov::Output<ov::Node>& output, int depth = kFoldDepth) {
  const std::shared_ptr<ov::Node> node = output.get_node_shared_ptr();
  if (auto constant = ov::as_type_ptr<Constant>(node)) return constant;
  if (depth == 0 || node->get_input_size() == 0 || !node->has_evaluate() ||
      output.get_partial_shape().is_dynamic() || output.get_element_type().is_dynamic()) {
    return nullptr;
  }
  std::vector<std::shared_ptr<Constant>> constants;  // the memory that `inputs` are views of
  ov::TensorVector inputs;
  for (const ov::Output<ov::Node>& input : node->input_values()) {
    const std::shared_ptr<Constant> constant = fold(input, depth - 1);
    if (!constant) return nullptr;
    constants.push_back(constant);
    inputs.emplace_back(constant->get_element_type(), constant->get_shape(),
                        const_cast<void*>(constant->get_data_ptr()));
  }
  ov::TensorVector outputs;
  for (const ov::Output<ov::Node>& out : node->outputs()) {
    outputs.emplace_back(out.get_element_type(), out.get_shape());
  }
  if (!node->evaluate(outputs, inputs)) return nullptr;
  const ov::Tensor& tensor = outputs[output.get_index()];
  return std::make_shared<Constant>(tensor.get_element_type(), tensor.get_shape(), tensor.data());
}

std::optional<float> scalar(const ov::Output<ov::Node>& output) {
  const std::shared_ptr<Constant> constant = fold(output);
  if (!constant || ov::shape_size(constant->get_shape()) != 1) return std::nullopt;
  return constant->cast_vector<float>()[0];
}

bool is_scalar(const ov::Output<ov::Node>& output, float value) {
  const std::optional<float> found = scalar(output);
  return found && std::abs(*found - value) <= 1e-4f * std::abs(value);
}

// A scalar or a value for each of the last dimension's `n`, and nothing else.
std::optional<std::vector<float>> along_last(const ov::Output<ov::Node>& output, std::size_t n) {
  const std::shared_ptr<Constant> constant = fold(output);
  if (!constant) return std::nullopt;
  const ov::Shape& shape = constant->get_shape();
  const std::size_t count = ov::shape_size(shape);
  if (count != 1 && (count != n || shape.back() != n)) return std::nullopt;
  std::vector<float> values = constant->cast_vector<float>();
  if (count == 1) values.assign(n, values[0]);
  return values;
}

// x of a commutative operator whose other input satisfies `wanted`.
template <class Wanted>
std::optional<ov::Output<ov::Node>> other_than(const ov::Node& node, Wanted wanted) {
  for (const std::size_t i : {0, 1}) {
    if (wanted(node.input_value(1 - i))) return node.input_value(i);
  }
  return std::nullopt;
}

// (q - zero point) * scale with q an integer tensor: what is subtracted and multiplied.
struct Dequantise {
  ov::Output<ov::Node> integers;
  std::shared_ptr<Constant> zero_point;  // null: none
  std::shared_ptr<Constant> scale;
  std::vector<std::shared_ptr<ov::Node>> nodes;
};

std::optional<Dequantise> match_dequantise(const ov::Output<ov::Node>& output) {
  const auto multiply = ov::as_type_ptr<ov::op::v1::Multiply>(output.get_node_shared_ptr());
  if (!multiply) return std::nullopt;
  Dequantise found;
  found.scale = fold(multiply->input_value(1));
  if (!found.scale) return std::nullopt;
  found.nodes = {multiply};
  std::shared_ptr<ov::Node> node = multiply->get_input_node_shared_ptr(0);
  if (const auto subtract = ov::as_type_ptr<ov::op::v1::Subtract>(node)) {
    found.zero_point = fold(subtract->input_value(1));
    if (!found.zero_point) return std::nullopt;
    found.nodes.insert(found.nodes.begin(), subtract);
    node = subtract->get_input_node_shared_ptr(0);
  }
  const auto convert = ov::as_type_ptr<ov::op::v0::Convert>(node);
  if (!convert || convert->get_destination_type() != ov::element::f32) return std::nullopt;
  const ov::element::Type type = convert->get_input_element_type(0);
  if (type != ov::element::i8 && type != ov::element::u8) return std::nullopt;
  found.nodes.insert(found.nodes.begin(), convert);
  found.integers = convert->input_value(0);
  return found;
}

// int8 weights with a scale an output channel (or one for all) and no zero point.
std::optional<QuantisedWeights> match_weights(const ov::Output<ov::Node>& output, bool transposed) {
  const std::optional<Dequantise> found = match_dequantise(output);
  if (!found) return std::nullopt;
  const auto values = ov::as_type_ptr<Constant>(found->integers.get_node_shared_ptr());
  if (!values || values->get_element_type() != ov::element::i8 || values->get_shape().size() != 2) {
    return std::nullopt;
  }
  if (found->zero_point) {
    for (const float zero : found->zero_point->cast_vector<float>()) {
      if (zero != 0) return std::nullopt;
    }
  }
  const ov::Shape& shape = values->get_shape();
  QuantisedWeights weights;
  weights.inputs = shape[transposed ? 1 : 0];
  weights.outputs = shape[transposed ? 0 : 1];
  const ov::Shape& scale_shape = found->scale->get_shape();
  const std::size_t scales = ov::shape_size(scale_shape);
  weights.scales = found->scale->cast_vector<float>();
  if (scales == 1) {
    weights.scales.assign(weights.outputs, weights.scales[0]);
  } else {
    const std::size_t from_end = transposed ? 2 : 1;
    if (scales != weights.outputs || scale_shape.size() < from_end ||
        scale_shape[scale_shape.size() - from_end] != weights.outputs) {
      return std::nullopt;
    }
  }
  const int8_t* const from = values->get_data_ptr<int8_t>();
  if (transposed) {
    weights.values.assign(from, from + weights.inputs * weights.outputs);
  } else {
    weights.values.resize(weights.inputs * weights.outputs);
    for (std::size_t k = 0; k < weights.inputs; ++k) {
      for (std::size_t n = 0; n < weights.outputs; ++n) {
        weights.values[n * weights.inputs + k] = from[k * weights.outputs + n];
      }
    }
  }
  return weights;
}

bool nearly(float a, float b) { return std::abs(a - b) <= 1e-4f * std::abs(b); }

// Quantise and dequantise by the same scale and zero point: FakeQuantize to whole numbers, Convert and
// back; or FakeQuantize alone, from a range to the same range.
struct Requantise {
  StaticActivations activations;
  ov::Output<ov::Node> x;
  std::vector<std::shared_ptr<ov::Node>> nodes;
};

std::optional<Requantise> match_requantise(const ov::Output<ov::Node>& output) {
  const std::optional<Dequantise> back = match_dequantise(output);
  std::shared_ptr<ov::Node> node = output.get_node_shared_ptr();
  Requantise found;
  bool is_signed = false;
  if (back) {
    const auto convert = ov::as_type_ptr<ov::op::v0::Convert>(back->integers.get_node_shared_ptr());
    if (!convert) return std::nullopt;
    is_signed = convert->get_destination_type() == ov::element::i8;
    node = convert->get_input_node_shared_ptr(0);
    found.nodes = {convert};
    found.nodes.insert(found.nodes.end(), back->nodes.begin(), back->nodes.end());
  }
  const auto fake = ov::as_type_ptr<ov::op::v0::FakeQuantize>(node);
  if (!fake || fake->get_levels() < 2 || fake->get_levels() > 256) return std::nullopt;
  found.nodes.insert(found.nodes.begin(), fake);
  found.x = fake->input_value(0);
  float range[4];
  for (std::size_t i = 0; i < 4; ++i) {
    const std::optional<float> value = scalar(fake->input_value(i + 1));
    if (!value) return std::nullopt;
    range[i] = *value;
  }
  const auto [in_low, in_high, out_low, out_high] = range;
  const auto steps = static_cast<float>(fake->get_levels() - 1);
  const float scale = (in_high - in_low) / steps;
  if (!(scale > 0)) return std::nullopt;
  float zero_point = -in_low / scale;  // of codes 0 .. steps
  float first = 0;                     // code 0 as u8
  if (back) {
    if (out_high - out_low != steps || ov::shape_size(back->scale->get_shape()) != 1 ||
        !nearly(back->scale->cast_vector<float>()[0], scale)) {
      return std::nullopt;
    }
    float zero = 0;
    if (back->zero_point) {
      if (ov::shape_size(back->zero_point->get_shape()) != 1) return std::nullopt;
      zero = back->zero_point->cast_vector<float>()[0];
    }
    if (std::abs(zero - out_low - zero_point) > 0.01f) return std::nullopt;
    zero_point = zero - out_low;
    first = out_low + (is_signed ? 128.0f : 0.0f);
    found.activations.scale = back->scale->cast_vector<float>()[0];
  } else {
    if (!nearly(out_high - out_low, in_high - in_low) ||
        std::abs(out_low - in_low) > 1e-3f * scale ||
        std::abs(zero_point - std::nearbyint(zero_point)) > 0.01f) {
      return std::nullopt;
    }
    found.activations.scale = scale;
  }
  found.activations.zero_point = static_cast<int32_t>(std::nearbyint(zero_point + first));
  found.activations.low = static_cast<int32_t>(first);
  found.activations.high = static_cast<int32_t>(first + steps);
  const StaticActivations& a = found.activations;
  if (first != std::nearbyint(first) || a.low < 0 || a.high > 255 || a.zero_point < 0 ||
      a.zero_point > 255) {
    return std::nullopt;
  }
  return found;
}

// What reads `output`, when that is one operator only.
std::shared_ptr<ov::Node> only_reader(const ov::Output<ov::Node>& output) {
  const std::set<ov::Input<ov::Node>> readers = output.get_target_inputs();
  return readers.size() == 1 ? readers.begin()->get_node()->shared_from_this() : nullptr;
}

template <class Op>
std::shared_ptr<Op> reader(const ov::Output<ov::Node>& output) {
  for (const ov::Input<ov::Node>& input : output.get_target_inputs()) {
    if (auto op = ov::as_type_ptr<Op>(input.get_node()->shared_from_this())) return op;
  }
  return nullptr;
}

// y = v * 0.5 * (1 + Erf(v / sqrt(2))), the products in any order.
bool match_spelled_gelu(LinearMatch& match) {
  const ov::Output<ov::Node> v = match.y;
  constexpr float kRootHalf = 0.70710678f;
  std::vector<std::shared_ptr<ov::Node>> nodes;
  std::shared_ptr<ov::Node> erf;
  for (const ov::Input<ov::Node>& input : v.get_target_inputs()) {
    const std::shared_ptr<ov::Node> scaled = input.get_node()->shared_from_this();
    const bool divided = ov::is_type<ov::op::v1::Divide>(scaled) && input.get_index() == 0 &&
                         is_scalar(scaled->input_value(1), 1 / kRootHalf);
    const bool multiplied = ov::is_type<ov::op::v1::Multiply>(scaled) &&
                            is_scalar(scaled->input_value(1 - input.get_index()), kRootHalf);
    if (!divided && !multiplied) continue;
    erf = only_reader(scaled);
    if (!erf || !ov::is_type<ov::op::v0::Erf>(erf)) return false;
    nodes = {scaled, erf};
    break;
  }
  if (nodes.empty()) return false;
  const std::shared_ptr<ov::Node> plus = only_reader(erf);
  if (!plus || !ov::is_type<ov::op::v1::Add>(plus) ||
      !other_than(*plus, [](const auto& input) { return is_scalar(input, 1); })) {
    return false;
  }
  nodes.push_back(plus);
  // The rest multiplies plus by v and by a half.
  bool by_v = false, by_half = false;
  ov::Output<ov::Node> product = plus->output(0);
  std::size_t readers_of_v = 1;
  while (!by_v || !by_half) {
    const std::shared_ptr<ov::Node> next = only_reader(product);
    if (!next || !ov::is_type<ov::op::v1::Multiply>(next)) return false;
    const ov::Output<ov::Node> other = next->input_value(next->input_value(0) == product ? 1 : 0);
    if (!by_v && other == v) {
      by_v = true;
      ++readers_of_v;
    } else if (!by_half && is_scalar(other, 0.5f)) {
      by_half = true;
    } else if (const auto half = ov::as_type_ptr<ov::op::v1::Multiply>(other.get_node_shared_ptr());
               half && !by_v && !by_half && only_reader(half) == next) {
      const auto of = other_than(*half, [](const auto& input) { return is_scalar(input, 0.5f); });
      if (!of || *of != v) return false;
      by_v = by_half = true;
      ++readers_of_v;
      nodes.push_back(half);
    } else {
      return false;
    }
    nodes.push_back(next);
    product = next->output(0);
  }
  if (v.get_target_inputs().size() != readers_of_v) return false;
  match.activation = LinearActivation::kGeluErf;
  match.nodes.insert(match.nodes.end(), nodes.begin(), nodes.end());
  match.y = product;
  return true;
}

void match_activation(LinearMatch& match) {
  const std::shared_ptr<ov::Node> next = only_reader(match.y);
  if (!next) {
    if (match_spelled_gelu(match)) return;
    // v * Sigmoid(v)
    const auto sigmoid = reader<ov::op::v0::Sigmoid>(match.y);
    const auto multiply = reader<ov::op::v1::Multiply>(match.y);
    if (sigmoid && multiply && match.y.get_target_inputs().size() == 2 &&
        only_reader(sigmoid) == multiply) {
      match.activation = LinearActivation::kSilu;
      match.nodes.push_back(sigmoid);
      match.nodes.push_back(multiply);
      match.y = multiply->output(0);
    }
    return;
  }
  LinearActivation found = LinearActivation::kNone;
  if (ov::is_type<ov::op::v0::Relu>(next)) {
    found = LinearActivation::kRelu;
  } else if (ov::is_type<ov::op::v0::Gelu>(next)) {
    found = LinearActivation::kGeluErf;
  } else if (const auto gelu = ov::as_type_ptr<ov::op::v7::Gelu>(next)) {
    found = gelu->get_approximation_mode() == ov::op::GeluApproximationMode::ERF
                ? LinearActivation::kGeluErf
                : LinearActivation::kGeluTanh;
  } else if (ov::is_type<ov::op::v4::Swish>(next) &&
             (next->get_input_size() == 1 || is_scalar(next->input_value(1), 1))) {
    found = LinearActivation::kSilu;
  } else if (ov::is_type<ov::op::v0::Sigmoid>(next)) {
    found = LinearActivation::kSigmoid;
  } else if (ov::is_type<ov::op::v0::Tanh>(next)) {
    found = LinearActivation::kTanh;
  }
  if (found == LinearActivation::kNone) return;
  match.activation = found;
  match.nodes.push_back(next);
  match.y = next->output(0);
}

}  // namespace

std::optional<LinearMatch> match_linear(const std::shared_ptr<ov::op::v0::MatMul>& matmul) {
  const ov::PartialShape& in = matmul->get_input_partial_shape(0);
  const ov::PartialShape& weights = matmul->get_input_partial_shape(1);
  if (matmul->get_transpose_a() || in.rank().is_dynamic() || in.size() < 2 ||
      weights.is_dynamic() || weights.size() != 2 ||
      matmul->get_output_element_type(0) != ov::element::f32) {
    return std::nullopt;
  }
  LinearMatch match;
  match.transposed = matmul->get_transpose_b();
  const ov::Shape shape = weights.to_shape();
  match.inputs = shape[match.transposed ? 1 : 0];
  match.outputs = shape[match.transposed ? 0 : 1];
  if (match.inputs == 0 || match.outputs == 0 || match.inputs > PackedLinear::kMaxInputs) {
    return std::nullopt;
  }
  match.x = matmul->input_value(0);
  match.weights = matmul->input_value(1);
  match.quantised = match_weights(match.weights, match.transposed);
  if (!match.quantised && !fold(match.weights)) return std::nullopt;
  if (match.quantised) {
    if (std::optional<Requantise> found = match_requantise(match.x)) {
      match.x = found->x;
      match.activations = found->activations;
      match.nodes = std::move(found->nodes);
    }
  }
  match.nodes.push_back(matmul);
  match.y = matmul->output(0);
  // What is added or multiplied may have more dimensions, and so the result.
  const auto same_rank = [&](const ov::Node& node) {
    return node.get_output_partial_shape(0).rank() == matmul->get_output_partial_shape(0).rank();
  };

  // Gemm: alpha x W + beta C.
  if (const auto multiply = ov::as_type_ptr<ov::op::v1::Multiply>(only_reader(match.y))) {
    std::optional<float> factor;
    if (same_rank(*multiply) && other_than(*multiply, [&](const auto& input) {
          return !(input == match.y) && (factor = scalar(input)).has_value();
        })) {
      match.factor = *factor;
      match.nodes.push_back(multiply);
      match.y = multiply->output(0);
    }
  }
  if (const auto add = ov::as_type_ptr<ov::op::v1::Add>(only_reader(match.y))) {
    std::optional<std::vector<float>> bias;
    if (same_rank(*add) && other_than(*add, [&](const auto& input) {
          return !(input == match.y) && (bias = along_last(input, match.outputs)).has_value();
        })) {
      match.bias = *std::move(bias);
      match.nodes.push_back(add);
      match.y = add->output(0);
    }
  }
  match_activation(match);
  return match;
}

std::vector<float> read_weights(const LinearMatch& match) {
  const std::shared_ptr<Constant> constant = fold(match.weights);
  return constant ? constant->cast_vector<float>() : std::vector<float>();
}

}  // namespace headrace
