// OpenVinoInstance: one ov::InferRequest and the memory around it. Inputs live in blocks the
// instance owns and grows, seen by the request as tensors, so that a run of a shape already seen
// sets nothing and allocates nothing here. Outputs stay in the request's memory.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <openvino/runtime/compiled_model.hpp>
#include <openvino/runtime/infer_request.hpp>

#include "backends/backend.h"
#include "backends/openvino/shape_check.h"

namespace headrace {

struct OpenVinoSignature {
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
};

// kInvalid for a type the protocol lacks (f8e4m3, u4, ...).
DType dtype_from_openvino(const ov::element::Type& type);
ov::element::Type dtype_to_openvino(DType dtype);

class OpenVinoInstance final : public Instance {
 public:
  // `lease` is held until the instance is gone. Without a `shape_check` shapes are trusted. May throw
  // what OpenVINO throws.
  OpenVinoInstance(std::shared_ptr<const OpenVinoSignature> signature,
                   std::shared_ptr<ShapeCheck> shape_check, ov::CompiledModel compiled,
                   std::shared_ptr<void> lease);

  Result<std::span<std::byte>> input(std::size_t index, const Shape& shape,
                                     std::size_t bytes) override;
  Status lend(std::size_t index, const TensorView& tensor) override;
  Status omit(std::size_t index) override;
  Status run() override;
  Result<BackendOutput> output(std::size_t index) override;

 private:
  struct Input {
    BufferRef memory;  // capacity; the tensor is a view of its front, except for BYTES
    std::size_t bytes = 0;
    bool bound = false;               // the request knows `memory`, or what was lent, and the shape
    const std::byte* lent = nullptr;  // in the place of `memory`
    bool given = false;               // for the next run
    ov::Tensor strings;               // BYTES: what the wire form in `memory` is parsed into
  };
  struct Output {
    ov::Tensor tensor;
    BufferRef wire;  // BYTES: serialised
  };

  Status parse_strings(Input& input, const TensorSpec& spec);
  Result<std::span<const std::byte>> serialise_strings(Output& output);

  std::shared_ptr<void> lease_;
  std::shared_ptr<const OpenVinoSignature> signature_;
  ov::CompiledModel compiled_;
  ov::InferRequest request_;
  std::shared_ptr<ShapeCheck> shape_check_;
  std::vector<Input> inputs_;
  std::vector<Shape> shapes_;    // an input each
  bool shapes_checked_ = false;  // the graph accepts shapes_
  std::vector<Output> outputs_;
  bool ran_ = false;
};

}  // namespace headrace
