// Int8Linear: one or more INT8 linear layers that read the same tensor, as an operator of an OpenVINO
// graph. Input 0: f32 [..., inputs]; output i: f32 [..., outputs of layer i].
//
// OpenVINO merges operators with equal inputs and equal attributes: the attribute is a hash of all that
// the layers hold, so only what is truly equal becomes one.
//
// Threads: immutable; evaluate() runs on any number of them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <openvino/op/op.hpp>

#include "kernels/int8_linear.h"

namespace headrace {

// Shared by all compiled copies of a graph. At least one layer; all read alike (int8_linear.h).
struct Int8Layers {
  Int8Layers(std::vector<std::shared_ptr<const PackedLinear>> all, std::size_t threads);

  std::vector<std::shared_ptr<const PackedLinear>> layers;
  std::size_t threads;  // at most; 1: no other thread is asked
  std::string hash;
};

class Int8Linear : public ov::op::Op {
 public:
  OPENVINO_OP("Int8Linear", "headrace");

  Int8Linear() = default;
  Int8Linear(const ov::Output<ov::Node>& x, std::shared_ptr<const Int8Layers> layers);

  void validate_and_infer_types() override;
  bool visit_attributes(ov::AttributeVisitor& visitor) override;
  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override;
  bool has_evaluate() const override { return true; }
  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override;

  const std::vector<std::shared_ptr<const PackedLinear>>& layers() const { return layers_->layers; }

 private:
  std::shared_ptr<const Int8Layers> layers_;
};

// The threads of the OpenVINO stream that calls.
LinearParallel openvino_threads();

}  // namespace headrace
