#include "routing/human_desk.h"

#include <algorithm>
#include <utility>

namespace headrace {

Status check_decision(const ModelSpec& spec, int64_t rows, std::vector<OutputTensor>& outputs) {
  if (outputs.size() != spec.outputs.size()) {
    return Status::invalid_argument("expected " + std::to_string(spec.outputs.size()) +
                                    " outputs of model '" + spec.name + "', got " +
                                    std::to_string(outputs.size()));
  }
  std::vector<OutputTensor> ordered;
  for (const TensorSpec& output : spec.outputs) {
    const auto found = std::find_if(outputs.begin(), outputs.end(),
                                    [&](const OutputTensor& o) { return o.name == output.name; });
    if (found == outputs.end()) {
      return Status::invalid_argument("output '" + output.name + "' is missing");
    }
    std::vector<int64_t> wanted;
    if (spec.batching()) wanted.push_back(rows);
    wanted.insert(wanted.end(), output.dims.begin(), output.dims.end());
    const Shape& shape = found->tensor.shape;
    bool fits = found->tensor.dtype == output.dtype && shape.size() == wanted.size();
    for (std::size_t i = 0; fits && i < wanted.size(); ++i) {
      fits = shape[i] >= 0 && (wanted[i] == -1 || wanted[i] == shape[i]);
    }
    const std::size_t bytes = found->tensor.data.size();
    if (fits && output.dtype == DType::kBytes) {
      const auto elements = shape.element_count();
      fits = elements && bytes_prefix_size(found->tensor.data, *elements) == bytes;
    } else if (fits) {
      fits = dense_byte_size(output.dtype, shape) == bytes;
    }
    if (!fits) {
      return Status::invalid_argument(
          "output '" + output.name + "' is to be " + std::string(dtype_name(output.dtype)) + " " +
          Shape::dims_to_string(wanted) + ", got " + std::string(dtype_name(found->tensor.dtype)) +
          " " + shape.to_string());
    }
    ordered.push_back({output.name, found->tensor, std::move(found->owner)});
  }
  outputs = std::move(ordered);
  return {};
}

}  // namespace headrace
