#include "backends/openvino/shape_check.h"

#include <openvino/op/constant.hpp>
#include <openvino/op/parameter.hpp>

#include "backends/openvino/openvino_error.h"

namespace headrace {
namespace {

// Constants above this are weights; below, they may be shapes, axes or scales, whose values count.
constexpr std::size_t kWeightBytes = 4096;

}  // namespace

ShapeCheck::ShapeCheck(const ov::Model& model)
    : inputs_(model.get_parameters().size()), dynamic_(model.is_dynamic()) {
  if (!dynamic_) return;
  model_ = model.clone();
  for (const std::shared_ptr<ov::Node>& node : model_->get_ordered_ops()) {
    const auto constant = ov::as_type_ptr<ov::op::v0::Constant>(node);
    if (!constant || constant->get_byte_size() <= kWeightBytes) continue;
    const auto stand_in = std::make_shared<ov::op::v0::Parameter>(constant->get_element_type(),
                                                                  constant->get_shape());
    constant->output(0).replace(stand_in->output(0));
    model_->add_parameters({stand_in});
  }
}

Status ShapeCheck::check(std::span<const Shape> shapes) {
  if (!dynamic_) return {};
  std::string key;
  for (const Shape& shape : shapes) {
    // Ranks are fixed by the signature, so the dims alone tell combinations apart.
    key.append(reinterpret_cast<const char*>(shape.begin()), shape.size() * sizeof(int64_t));
  }
  const std::lock_guard lock(mutex_);
  const auto found = judged_.find(key);
  if (found != judged_.end()) return found->second;
  Status status = infer(shapes);
  if (judged_.size() >= kMaxRemembered) judged_.clear();
  judged_.emplace(std::move(key), status);
  return status;
}

Status ShapeCheck::infer(std::span<const Shape> shapes) try {
  const ov::ParameterVector& parameters = model_->get_parameters();
  for (std::size_t i = 0; i < inputs_ && i < shapes.size(); ++i) {
    parameters[i]->set_partial_shape(ov::Shape(shapes[i].begin(), shapes[i].end()));
  }
  // Not Model::reshape(), which rewrites operators to make shapes fit.
  model_->validate_nodes_and_infer_types();
  return {};
} catch (...) {
  std::string prefix = "the model cannot take inputs of shapes ";
  for (std::size_t i = 0; i < shapes.size(); ++i)
    prefix += (i == 0 ? "" : ", ") + shapes[i].to_string();
  return caught_openvino_status(StatusCode::kInvalidArgument, prefix);
}

}  // namespace headrace
