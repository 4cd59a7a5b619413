#include "backends/openvino/linear_chain_match.h"

#include <cmath>
#include <cstdio>
#include <set>
#include <string_view>
#include <utility>

#include <openvino/op/constant.hpp>
#include <openvino/op/parameter.hpp>
#include <openvino/op/result.hpp>
#include <openvino/op/softmax.hpp>

#include "backends/openvino/int8_match.h"
#include "backends/openvino/int8_op.h"
#include "backends/openvino/int8_timing.h"

namespace headrace {
namespace {

// Above this many weights a call's cost is lost in the layers, and packing them twice is not.
constexpr std::size_t kMostWeights = std::size_t{4} << 20;

// By how much its answers may differ from OpenVINO's, relatively: of the same operators, or where more
// layers are INT8 ones or their own INT8 rounds in another way.
constexpr double kSameLayers = 1e-2;  // OpenVINO may be asked for bf16
constexpr double kOtherLayers = 0.3;

// The last dimension only, which has n values.
bool is_over_last(const ov::Node& softmax, const ov::PartialShape& shape) {
  const auto rank = static_cast<int64_t>(shape.size());
  if (const auto* old = ov::as_type<const ov::op::v1::Softmax>(&softmax)) {
    return static_cast<int64_t>(old->get_axis()) == rank - 1;
  }
  if (const auto* now = ov::as_type<const ov::op::v8::Softmax>(&softmax)) {
    return now->get_axis() == rank - 1 || now->get_axis() == -1;
  }
  return false;
}

// A layer that rewrite_int8() left because it is small.
std::optional<FloatLinear> float_layer(const LinearMatch& match) {
  if (match.activations || match.inputs * match.outputs >= kLeastInt8Weights) return std::nullopt;
  const std::vector<float> weights = read_weights(match);
  if (weights.size() != match.inputs * match.outputs) return std::nullopt;
  FloatLinear layer{match.inputs, match.outputs, weights, match.bias, match.activation};
  for (std::size_t n = 0; n < match.outputs; ++n) {
    for (std::size_t k = 0; k < match.inputs; ++k) {
      const std::size_t at = match.transposed ? n * match.inputs + k : k * match.outputs + n;
      layer.weights[n * match.inputs + k] = weights[at] * match.factor;
    }
  }
  return layer;
}

// Whether the answers are the same, up to how the layers round: |ours - theirs| <= most * |theirs|.
bool agree(const float* ours, const ov::Tensor& theirs, std::size_t size, double most) {
  if (theirs.get_element_type() != ov::element::f32 || theirs.get_size() != size) return false;
  const float* want = theirs.data<float>();
  double difference = 0, all = 0;
  for (std::size_t i = 0; i < size; ++i) {
    const double d = static_cast<double>(ours[i]) - want[i];
    difference += d * d;
    all += static_cast<double>(want[i]) * want[i];
  }
  return std::sqrt(difference) <= most * std::sqrt(all);  // false with NaN
}

// How many times as fast it is with the fewest rows, at most `least`: not worth it. Sets most_rows.
// 0: the answers differ from OpenVINO's, it was recognised wrongly.
double time_chain(DirectChain& direct, ov::CompiledModel& compiled, double least) {
  const LinearChain& chain = *direct.chain;
  AlignedBytes scratch(chain.scratch_bytes());
  direct.most_rows = 0;
  double first = 0;
  const std::vector<ov::Shape> shapes =
      shapes_to_time(compiled.input().get_partial_shape(), chain.inputs());
  for (const ov::Shape& shape : shapes) {
    const ov::Tensor x = random_tensor(shape);
    const std::size_t rows = x.get_size() / chain.inputs();
    AlignedBytes y(rows * chain.outputs() * sizeof(float));
    ov::InferRequest request = compiled.create_infer_request();
    request.set_input_tensor(x);
    const double ratio = speed_ratio(
        [&] { request.infer(); },
        [&] {
          chain.run(x.data<float>(), rows, reinterpret_cast<float*>(y.data()), scratch.data());
        });
    const auto* ours = reinterpret_cast<const float*>(y.data());
    if (!agree(ours, request.get_output_tensor(), rows * chain.outputs(),
               direct.same_layers ? kSameLayers : kOtherLayers)) {
      return 0;
    }
    if (first == 0) first = ratio;
    if (ratio <= least) return first;
    direct.most_rows = rows;
  }
  direct.most_rows = SIZE_MAX;
  return first;
}

}  // namespace

std::shared_ptr<const LinearChain> match_chain(const ov::Model& model) {
  if (model.get_parameters().size() != 1 || model.get_results().size() != 1 ||
      !model.get_sinks().empty()) {
    return nullptr;
  }
  ov::Output<ov::Node> value = model.get_parameters()[0]->output(0);
  if (value.get_element_type() != ov::element::f32 ||
      value.get_partial_shape().rank().is_dynamic()) {
    return nullptr;
  }
  for (const ov::Dimension& dim : value.get_partial_shape()) {
    // OpenVINO refuses what is out of bounds; a chain knows of none.
    if (dim.is_dynamic() && (dim.get_min_length() > 0 || dim.get_max_length() >= 0)) return nullptr;
  }
  auto chain = std::make_shared<LinearChain>();
  while (true) {
    const std::set<ov::Input<ov::Node>> readers = value.get_target_inputs();
    if (readers.size() != 1) return nullptr;
    const std::shared_ptr<ov::Node> node = readers.begin()->get_node()->shared_from_this();
    if (ov::is_type<ov::op::v0::Result>(node)) break;
    Status status;
    if (const auto int8 = ov::as_type_ptr<Int8Linear>(node)) {
      if (int8->layers().size() != 1) return nullptr;
      status = chain->append(int8->layers().front());
      value = int8->output(0);
    } else if (const auto matmul = ov::as_type_ptr<ov::op::v0::MatMul>(node)) {
      const std::optional<LinearMatch> match = match_linear(matmul);
      if (!match || match->x != value) return nullptr;
      std::optional<FloatLinear> layer = float_layer(*match);
      if (!layer) return nullptr;
      status = chain->append(std::move(*layer));
      value = match->y;
    } else if (is_over_last(*node, value.get_partial_shape()) && !chain->empty() &&
               !chain->has_softmax()) {
      chain->end_with_softmax();
      value = node->output(0);
    } else {
      return nullptr;
    }
    if (!status.ok()) return nullptr;
  }
  return chain->int8_layers() == 0 ? nullptr : chain;
}

std::shared_ptr<ov::Model> before_rewrite(const ov::Model& model, Int8Mode mode, Isa isa) {
  if (mode != Int8Mode::kAuto && (mode != Int8Mode::kExact || openvino_saturates(isa))) {
    return nullptr;
  }
  static const std::set<std::string_view> kOfChains = {
      "Parameter",    "Result",  "Constant",  "MatMul",  "Add",   "Multiply", "Subtract",
      "Divide",       "Convert", "Relu",      "Gelu",    "Swish", "Sigmoid",  "Tanh",
      "FakeQuantize", "Softmax", "Transpose", "Reshape", "Erf",   "Squeeze",  "Unsqueeze"};
  std::size_t weights = 0;
  bool quantised = false;
  for (const std::shared_ptr<ov::Node>& node : model.get_ops()) {
    const std::string_view type = node->get_type_name();
    if (!kOfChains.contains(type)) return nullptr;
    quantised = quantised || type == "FakeQuantize";
    if (type == "Constant") weights += ov::shape_size(node->get_output_shape(0));
  }
  if (weights > kMostWeights || (mode == Int8Mode::kExact && !quantised)) return nullptr;
  return model.clone();
}

std::optional<DirectChain> find_chain(ov::Core& core, const ov::Model& rewritten,
                                      const Int8Rewritten& done,
                                      const std::shared_ptr<ov::Model>& before, Int8Mode mode,
                                      Isa isa) {
  if (auto chain = match_chain(rewritten)) {
    return DirectChain{.chain = std::move(chain), .layers = done.summary, .same_layers = true};
  }
  if (!before) return std::nullopt;
  const Int8Rewritten whole = rewrite_int8(core, before, Int8Mode::kDynamic, {}, 1, isa);
  if (mode == Int8Mode::kExact && whole.dynamic > 0) return std::nullopt;
  if (auto chain = match_chain(*before)) {
    return DirectChain{.chain = std::move(chain), .layers = whole.summary};
  }
  return std::nullopt;
}

std::string choose_chain(std::optional<DirectChain>& direct, ov::CompiledModel& compiled,
                         const Int8Rewritten& done, Int8Mode mode, bool always) {
  if (!direct) return done.summary;
  if (always) return direct->layers + ", without OpenVINO";
  // Float layers become INT8 ones only where it pays clearly.
  const double least = mode == Int8Mode::kAuto ? kLeastInt8Speedup : 1;
  const double speed = time_chain(*direct, compiled, least);
  if (speed == 0) {
    direct.reset();
    return done.summary;
  }
  if (speed <= least) {
    direct.reset();
    return done.summary.empty() ? "int8: in OpenVINO, not faster on our kernels"
                                : done.summary + ", not faster without OpenVINO";
  }
  char times[32];
  std::snprintf(times, sizeof(times), "%.1f", speed);
  std::string summary = direct->layers + ", without OpenVINO (" + times + " times as fast)";
  if (direct->most_rows == SIZE_MAX) return summary;
  return summary + " up to " + std::to_string(direct->most_rows) + " rows; beyond, " +
         (done.summary.empty() ? "in OpenVINO" : done.summary);
}

}  // namespace headrace
