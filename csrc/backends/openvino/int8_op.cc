#include "backends/openvino/int8_op.h"

#include <algorithm>
#include <array>
#include <span>
#include <utility>

#include <openvino/core/attribute_visitor.hpp>
#include <openvino/core/except.hpp>

namespace headrace {

Int8Layers::Int8Layers(std::vector<std::shared_ptr<const PackedLinear>> all, std::size_t most)
    : layers(std::move(all)), threads(most) {
  for (const auto& layer : layers) hash += layer->content_hash();
}

Int8Linear::Int8Linear(const ov::Output<ov::Node>& x, std::shared_ptr<const Int8Layers> layers)
    : Op({x}), layers_(std::move(layers)) {
  constructor_validate_and_infer_types();
}

void Int8Linear::validate_and_infer_types() {
  const ov::PartialShape& in = get_input_partial_shape(0);
  NODE_VALIDATION_CHECK(this, get_input_element_type(0).compatible(ov::element::f32),
                        "an INT8 linear layer reads f32");
  NODE_VALIDATION_CHECK(this, in.rank().is_static() && in.size() >= 1,
                        "an INT8 linear layer's input has a known rank");
  const auto inputs = static_cast<int64_t>(layers_->layers.front()->inputs());
  NODE_VALIDATION_CHECK(this, in[in.size() - 1].compatible(inputs), "expected ", inputs,
                        " values in the last dimension, got ", in);
  set_output_size(layers_->layers.size());
  for (std::size_t i = 0; i < layers_->layers.size(); ++i) {
    ov::PartialShape out = in;
    out[out.size() - 1] = static_cast<int64_t>(layers_->layers[i]->outputs());
    set_output_type(i, ov::element::f32, out);
  }
}

bool Int8Linear::visit_attributes(ov::AttributeVisitor& visitor) {
  std::string content = layers_->hash;
  visitor.on_attribute("content", content);
  return true;
}

std::shared_ptr<ov::Node> Int8Linear::clone_with_new_inputs(const ov::OutputVector& inputs) const {
  check_new_args_count(this, inputs);
  return std::make_shared<Int8Linear>(inputs.at(0), layers_);
}

bool Int8Linear::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
  constexpr std::size_t kMany = 16;
  // A thread's, for all layers it runs: it grows to the largest.
  thread_local AlignedBytes scratch;
  const PackedLinear& first = *layers_->layers.front();
  const ov::Shape& in = inputs[0].get_shape();
  const std::size_t rows = inputs[0].get_size() / first.inputs();
  const std::size_t count = layers_->layers.size();
  std::array<LinearOutput, kMany> few;
  std::vector<LinearOutput> many(count > kMany ? count : 0);
  LinearOutput* const parts = count > kMany ? many.data() : few.data();
  for (std::size_t i = 0; i < count; ++i) {
    const PackedLinear& layer = *layers_->layers[i];
    const ov::Shape& now = outputs[i].get_shape();
    if (outputs[i].get_size() != rows * layer.outputs() || now.size() != in.size()) {
      ov::Shape out = in;
      out.back() = layer.outputs();
      outputs[i].set_shape(out);
    }
    parts[i] = {&layer, outputs[i].data<float>()};
  }
  if (rows == 0) return true;
  LinearParallel parallel;
  if (layers_->threads > 1) {
    parallel = openvino_threads();
    parallel.threads = std::min(parallel.threads, layers_->threads);
  }
  linear(std::span<const LinearOutput>(parts, count), inputs[0].data<float>(), rows,
         scratch.reserve(linear_scratch_bytes(first, rows)), parallel);
  return true;
}

}  // namespace headrace
