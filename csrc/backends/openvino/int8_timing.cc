#include "backends/openvino/int8_timing.h"

#include <algorithm>
#include <chrono>
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

constexpr int kSlices = 5;
constexpr std::chrono::microseconds kSlice{300};

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

struct Candidate {
  ov::CompiledModel compiled;
  ov::InferRequest request;
  double best = 1e30;  // seconds a run

  void slice() {
    const auto start = std::chrono::steady_clock::now();
    auto now = start;
    int runs = 0;
    do {
      request.infer();
      ++runs;
      now = std::chrono::steady_clock::now();
    } while (now - start < kSlice);
    best = std::min(best, std::chrono::duration<double>(now - start).count() / runs);
  }
};

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
  Candidate candidates[2];
  candidates[0].compiled = core.compile_model(native(match, open), "CPU", own);
  candidates[1].compiled = core.compile_model(as_model(op, x), "CPU", own);
  std::vector<ov::Shape> shapes;
  if (fixed) {
    shapes.push_back(match.x.get_shape());
  } else {
    for (const std::size_t rows : {1, 16, 128}) {
      ov::Shape shape(match.x.get_partial_shape().size(), 1);
      for (std::size_t i = 0; i < shape.size(); ++i) {
        const ov::Dimension& dim = match.x.get_partial_shape()[i];
        if (dim.is_static()) shape[i] = static_cast<std::size_t>(dim.get_length());
      }
      // The last open dimension before the inputs: the sequence, or else the batch.
      for (std::size_t i = shape.size() - 1; i-- > 0;) {
        if (match.x.get_partial_shape()[i].is_dynamic()) {
          shape[i] = rows;
          break;
        }
      }
      shape.back() = match.inputs;
      shapes.push_back(std::move(shape));
    }
  }
  double logarithms = 0;
  for (const ov::Shape& shape : shapes) {
    ov::Tensor data(ov::element::f32, shape);
    std::mt19937 random(1);
    std::normal_distribution<float> value(0, 1);
    std::generate_n(data.data<float>(), data.get_size(), [&] { return value(random); });
    for (Candidate& candidate : candidates) {
      candidate.request = candidate.compiled.create_infer_request();
      candidate.request.set_input_tensor(data);
      candidate.request.infer();
      candidate.best = 1e30;
    }
    for (int slice = 0; slice < kSlices; ++slice) {
      for (Candidate& candidate : candidates) candidate.slice();
    }
    logarithms += std::log(candidates[0].best / candidates[1].best);
  }
  return std::exp(logarithms / static_cast<double>(shapes.size()));
}

}  // namespace headrace
