#include "backends/openvino/int8_timing.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <vector>

#include <openvino/op/parameter.hpp>
#include <openvino/op/result.hpp>
#include <openvino/runtime/properties.hpp>

#include "backends/openvino/int8_op.h"

namespace headrace {
namespace {

std::shared_ptr<ov::Model> as_model(const ov::Output<ov::Node>& y,
                                    const std::shared_ptr<ov::op::v0::Parameter>& x) {
  return std::make_shared<ov::Model>(ov::ResultVector{std::make_shared<ov::op::v0::Result>(y)},
                                     ov::ParameterVector{x}, "layer");
}

std::shared_ptr<ov::op::v0::Parameter> parameter(const LinearMatch& match, bool open) {
  return std::make_shared<ov::op::v0::Parameter>(
      ov::element::f32, open ? ov::PartialShape{-1, static_cast<int64_t>(match.inputs)}
                             : match.x.get_partial_shape());
}

// A copy of the operators between x and y, by the same constants.
std::shared_ptr<ov::Model> native(const LinearMatch& match, bool open) {
  const auto x = parameter(match, open);
  std::map<ov::Output<ov::Node>, ov::Output<ov::Node>> copies;
  copies[match.x] = x->output(0);
  for (const std::shared_ptr<ov::Node>& node : match.nodes) {
    ov::OutputVector inputs;
    for (const ov::Output<ov::Node>& input : node->input_values()) {
      const auto found = copies.find(input);
      inputs.push_back(found == copies.end() ? input : found->second);
    }
    const std::shared_ptr<ov::Node> copy = node->clone_with_new_inputs(inputs);
    for (std::size_t i = 0; i < node->get_output_size(); ++i) {
      copies[node->output(i)] = copy->output(i);
    }
  }
  return as_model(copies.at(match.y), x)->clone();  // leaves no readers at the graph's constants
}

}  // namespace

double int8_speedup(ov::Core& core, const LinearMatch& match,
                    const std::shared_ptr<const PackedLinear>& layer, const ov::AnyMap& config,
                    std::size_t threads) {
  const bool fixed = match.x.get_partial_shape().is_static();
  // A bias may have the rank of the layer's own x, so that x is not simply [rows, inputs].
  const bool open = !fixed && match.x.get_partial_shape().size() == 2;
  ov::AnyMap own = config;
  own.erase(ov::cache_dir.name());
  const auto x = parameter(match, open);
  const auto op = std::make_shared<Int8Linear>(
      x, std::make_shared<const Int8Layers>(std::vector<std::shared_ptr<const PackedLinear>>{layer},
                                            threads));
  ov::CompiledModel theirs = core.compile_model(native(match, open), "CPU", own);
  ov::CompiledModel ours = core.compile_model(as_model(op, x), "CPU", own);
  const std::vector<ov::Shape> shapes = shapes_to_time(match.x.get_partial_shape(), match.inputs);
  double logarithms = 0;
  for (const ov::Shape& shape : shapes) {
    const ov::Tensor data = random_tensor(shape);
    ov::InferRequest their_run = theirs.create_infer_request();
    ov::InferRequest our_run = ours.create_infer_request();
    their_run.set_input_tensor(data);
    our_run.set_input_tensor(data);
    logarithms += std::log(speed_ratio([&] { their_run.infer(); }, [&] { our_run.infer(); }));
  }
  return std::exp(logarithms / static_cast<double>(shapes.size()));
}

std::vector<ov::Shape> shapes_to_time(const ov::PartialShape& shape, std::size_t inputs) {
  if (shape.is_static()) return {shape.to_shape()};
  std::vector<ov::Shape> shapes;
  for (const int64_t rows : {1, 16, 128}) {
    ov::Shape one(shape.size(), 1);
    for (std::size_t i = 0; i < one.size(); ++i) {
      one[i] = static_cast<std::size_t>(std::max<int64_t>(1, shape[i].get_min_length()));
    }
    // The last open dimension before the inputs: the sequence, or else the batch.
    for (std::size_t i = one.size() - 1; i-- > 0;) {
      if (shape[i].is_dynamic()) {
        const int64_t most = shape[i].get_max_length();  // -1: any
        one[i] = std::max(one[i], static_cast<std::size_t>(most < 0 ? rows : std::min(rows, most)));
        break;
      }
    }
    one.back() = inputs;
    if (shapes.empty() || shapes.back() != one) shapes.push_back(std::move(one));
  }
  return shapes;
}

ov::Tensor random_tensor(const ov::Shape& shape) {
  ov::Tensor tensor(ov::element::f32, shape);
  std::mt19937 random(1);
  std::normal_distribution<float> value(0, 1);
  std::generate_n(tensor.data<float>(), tensor.get_size(), [&] { return value(random); });
  return tensor;
}

}  // namespace headrace
