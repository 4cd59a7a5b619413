// Rule: an answer that is known beforehand: the same tensors for every row of every request.
// Immutable; any thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "base/status.h"
#include "core/model_spec.h"
#include "core/request.h"

namespace headrace {

class Rule {
 public:
  struct Tensor {
    std::string name;
    TensorView row;   // shape without the batch dimension
    BufferRef owner;  // of row.data
  };
  // One tensor an output of the signature. Errors: INVALID_ARGUMENT naming the output that is
  // missing, unknown, or of another datatype or shape.
  static Result<std::shared_ptr<const Rule>> make(std::shared_ptr<const ModelSpec> spec,
                                                  std::vector<Tensor> tensors);

  // Fills the response with the outputs that the request asks for. Errors: INVALID_ARGUMENT for a
  // request that names an output the model has not, or has more rows than the model takes.
  Status answer(Request& request) const;
  const std::vector<Tensor>& tensors() const { return tensors_; }

 private:
  Rule(std::shared_ptr<const ModelSpec> spec, std::vector<Tensor> tensors)
      : spec_(std::move(spec)), tensors_(std::move(tensors)) {}

  const std::shared_ptr<const ModelSpec> spec_;
  const std::vector<Tensor> tensors_;  // in the order of the signature
};

}  // namespace headrace
