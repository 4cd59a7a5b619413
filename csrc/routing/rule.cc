#include "routing/rule.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "core/classification.h"

namespace headrace {
namespace {

bool fits(const TensorSpec& spec, const Shape& row) {
  if (spec.dims.size() != row.size()) return false;
  for (std::size_t i = 0; i < row.size(); ++i) {
    if (row[i] < 0 || (spec.dims[i] != -1 && spec.dims[i] != row[i])) return false;
  }
  return true;
}

// How many rows the answer needs: as many as the request has.
Result<int64_t> rows_of(const ModelSpec& spec, const Request& request) {
  if (!spec.batching() || request.inputs.empty()) return int64_t{1};
  const Shape& shape = request.inputs.front().tensor.shape;
  const int64_t rows = shape.empty() ? 1 : shape[0];
  if (rows < 1 || rows > spec.max_batch_size) {
    return Status::invalid_argument("inference request batch-size must be 1 to " +
                                    std::to_string(spec.max_batch_size) + " for '" + spec.name +
                                    "'");
  }
  return rows;
}

}  // namespace

Result<std::shared_ptr<const Rule>> Rule::make(std::shared_ptr<const ModelSpec> spec,
                                               std::vector<Tensor> tensors) {
  const std::string of = "rule for model '" + spec->name + "'";
  for (const Tensor& tensor : tensors) {
    if (!spec->find_output(tensor.name)) {
      return Status::invalid_argument(of + ": the model has no output '" + tensor.name + "'");
    }
  }
  std::vector<Tensor> ordered;
  for (const TensorSpec& output : spec->outputs) {
    const auto found = std::find_if(tensors.begin(), tensors.end(),
                                    [&](const Tensor& t) { return t.name == output.name; });
    if (found == tensors.end()) {
      return Status::invalid_argument(of + ": output '" + output.name + "' is missing");
    }
    if (found->row.dtype != output.dtype) {
      return Status::invalid_argument(of + ": output '" + output.name + "' is " +
                                      std::string(dtype_name(output.dtype)) + ", not " +
                                      std::string(dtype_name(found->row.dtype)));
    }
    if (!fits(output, found->row.shape)) {
      return Status::invalid_argument(
          of + ": output '" + output.name + "' has shape " + Shape::dims_to_string(output.dims) +
          (spec->batching() ? " a row" : "") + ", not " + found->row.shape.to_string());
    }
    ordered.push_back(std::move(*found));
  }
  return std::shared_ptr<const Rule>(new Rule(std::move(spec), std::move(ordered)));
}

Status Rule::answer(Request& request) const {
  const Result<int64_t> rows = rows_of(*spec_, request);
  if (!rows) return rows.error();
  for (const RequestedOutput& wanted : request.outputs) {
    if (!spec_->find_output(wanted.name)) {
      return Status::invalid_argument("unexpected inference output '" + std::string(wanted.name) +
                                      "' for model '" + spec_->name + "'");
    }
  }
  Response& response = request.response;
  response.clear();
  request.spec = spec_;
  response.model_name = spec_->name;
  response.model_version = spec_->version_text;
  const auto add = [&](std::size_t index, int64_t classes) -> Status {
    const Tensor& tensor = tensors_[index];
    const TensorSpec& spec = spec_->outputs[index];
    const std::size_t bytes = tensor.row.data.size();
    BufferRef owner = BufferRef::allocate(bytes * static_cast<std::size_t>(*rows));
    for (int64_t row = 0; row < *rows && bytes > 0; ++row) {
      std::memcpy(owner.data() + static_cast<std::size_t>(row) * bytes, tensor.row.data.data(),
                  bytes);
    }
    Shape shape;
    if (spec_->batching()) shape.push_back(*rows);
    for (const int64_t dim : tensor.row.shape) shape.push_back(dim);
    const std::span<const std::byte> data = std::as_const(owner).span();
    response.outputs.push_back({spec.name, {spec.dtype, shape, data}, std::move(owner)});
    if (classes <= 0) return {};
    return classify(spec, spec_->batching(), classes, response.outputs.back());
  };
  if (request.outputs.empty()) {
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      if (Status status = add(i, 0); !status) return status;
    }
    return {};
  }
  for (const RequestedOutput& wanted : request.outputs) {
    const std::size_t index = *spec_->find_output(wanted.name);
    if (Status status = add(index, wanted.classification); !status) return status;
  }
  return {};
}

}  // namespace headrace
