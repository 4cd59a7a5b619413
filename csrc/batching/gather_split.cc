#include "batching/gather_split.h"

#include <cstring>
#include <functional>
#include <new>
#include <optional>
#include <string>
#include <utility>

namespace headrace {
namespace {

// `to` with its -1s replaced, in order, by the sizes `dims` has where `from` has -1. `dims` matches
// `from`, and both patterns have as many -1s: checked when the model version was created.
Shape carry_dims(std::span<const int64_t> from, std::span<const int64_t> dims,
                 std::span<const int64_t> to) {
  Shape result;
  std::size_t next = 0;
  for (const int64_t dim : to) {
    if (dim != -1) {
      result.push_back(dim);
      continue;
    }
    while (next < from.size() && from[next] != -1) ++next;
    result.push_back(next < dims.size() ? dims[next++] : -1);
  }
  return result;
}

bool matches(std::span<const int64_t> pattern, std::span<const int64_t> dims) {
  if (pattern.size() != dims.size()) return false;
  for (std::size_t i = 0; i < dims.size(); ++i) {
    if (pattern[i] != -1 && pattern[i] != dims[i]) return false;
  }
  return true;
}

Shape with_rows(const ModelSpec& spec, int64_t rows, std::span<const int64_t> dims) {
  Shape shape;
  if (spec.batching()) shape.push_back(rows);
  for (const int64_t dim : dims) shape.push_back(dim);
  return shape;
}

Status gather_input(const Batch& batch, const ModelSpec& spec, std::size_t input,
                    Instance& instance) {
  const TensorSpec& tensor_spec = spec.inputs[input];
  const auto tensor_of = [&](const RequestPtr& request) -> const TensorView& {
    return request->inputs[request->input_of[input]].tensor;
  };
  const Request& first = *batch.requests.front();
  if (first.input_of[input] == Request::kAbsent) return instance.omit(tensor_spec.backend_index);

  std::size_t bytes = 0;
  for (const RequestPtr& request : batch.requests) bytes += tensor_of(request).data.size();
  const std::span<const int64_t> client_dims =
      first.inputs[first.input_of[input]].tensor.shape.span().subspan(spec.batching() ? 1 : 0);
  const Shape shape = with_rows(
      spec, batch.rows,
      tensor_spec.reshape ? carry_dims(tensor_spec.dims, client_dims, *tensor_spec.reshape).span()
                          : client_dims);

  const Result<std::span<std::byte>> memory =
      instance.input(tensor_spec.backend_index, shape, bytes);
  if (!memory) return memory.error();
  if (memory->size() < bytes) {
    return Status::internal("the backend of model '" + spec.name + "' offers " +
                            std::to_string(memory->size()) + " bytes for input '" +
                            tensor_spec.name + "' of " + std::to_string(bytes) + " bytes");
  }
  std::byte* to = memory->data();
  for (const RequestPtr& request : batch.requests) {
    const std::span<const std::byte> from = tensor_of(request).data;
    if (from.empty()) continue;
    std::memcpy(to, from.data(), from.size());
    to += from.size();
  }
  return {};
}

Status bad_output(const ModelSpec& spec, const TensorSpec& output, const std::string& what) {
  return Status::internal("the backend of model '" + spec.name + "' answered output '" +
                          output.name + "' " + what);
}

// Where a request wants the spec's output `output`, if it does.
std::optional<std::size_t> wanted_at(const Request& request, const ModelSpec& spec,
                                     std::size_t output) {
  if (request.outputs.empty()) return output;
  for (std::size_t i = 0; i < request.outputs.size(); ++i) {
    if (request.outputs[i].name == spec.outputs[output].name) return i;
  }
  return std::nullopt;
}

// Checks what the backend answered for the whole batch.
Status check_output(const Batch& batch, const ModelSpec& spec, const TensorSpec& expected,
                    const BackendOutput& output) {
  const TensorView& tensor = output.tensor;
  if (tensor.dtype != expected.dtype) {
    return bad_output(spec, expected,
                      "with data-type '" + std::string(dtype_name(tensor.dtype)) + "', expected '" +
                          std::string(dtype_name(expected.dtype)) + "'");
  }
  const std::vector<int64_t>& dims = expected.reshape ? *expected.reshape : expected.dims;
  const bool batching = spec.batching();
  if ((batching && (tensor.shape.empty() || tensor.shape[0] != batch.rows)) ||
      !matches(dims, tensor.shape.span().subspan(batching ? 1 : 0)) ||
      !tensor.shape.element_count()) {
    return bad_output(spec, expected,
                      "with shape " + tensor.shape.to_string() + ", expected " +
                          with_rows(spec, batch.rows, dims).to_string());
  }
  const std::size_t size = tensor.data.size();
  if (tensor.dtype == DType::kBytes) {
    if (bytes_prefix_size(tensor.data, *tensor.shape.element_count()) != size) {
      return bad_output(spec, expected,
                        "of " + std::to_string(size) + " bytes that are not the " +
                            std::to_string(*tensor.shape.element_count()) +
                            " string elements of shape " + tensor.shape.to_string());
    }
  } else if (dense_byte_size(tensor.dtype, tensor.shape) != size) {
    return bad_output(spec, expected,
                      "of " + std::to_string(size) + " bytes for shape " +
                          tensor.shape.to_string() + " of " +
                          std::string(dtype_name(tensor.dtype)));
  }
  if (size > 0 && output.owner) {
    const std::span<const std::byte> owned = output.owner.span();
    const std::less_equal<const std::byte*> before;  // total order, unlike <=
    if (!before(owned.data(), tensor.data.data()) ||
        !before(tensor.data.data() + size, owned.data() + owned.size())) {
      return bad_output(spec, expected, "that lies outside the memory of its owner");
    }
  }
  return {};
}

Status split_output(Batch& batch, const ModelSpec& spec, std::size_t index, Instance& instance) {
  const TensorSpec& expected = spec.outputs[index];
  Result<BackendOutput> answered = instance.output(expected.backend_index);
  if (!answered) return answered.error();
  BackendOutput& output = *answered;
  if (Status status = check_output(batch, spec, expected, output); !status) return status;
  TensorView& whole = output.tensor;
  if (!output.owner && !whole.data.empty()) {
    output.owner = BufferRef::allocate(whole.data.size());
    std::memcpy(output.owner.data(), whole.data.data(), whole.data.size());
    whole.data = output.owner.span();
  }

  const std::span<const int64_t> row_dims = whole.shape.span().subspan(spec.batching() ? 1 : 0);
  const Shape client_row =
      expected.reshape ? carry_dims(*expected.reshape, row_dims, expected.dims) : Shape(row_dims);
  const uint64_t row_elements = *Shape(row_dims).element_count();
  const std::size_t row_bytes = row_elements * dtype_size(whole.dtype);
  std::size_t offset = 0;
  for (const RequestPtr& request : batch.requests) {
    const auto rows = static_cast<std::size_t>(request->rows);
    const std::size_t bytes =
        whole.dtype == DType::kBytes
            ? *bytes_prefix_size(whole.data.subspan(offset), rows * row_elements)
            : rows * row_bytes;
    if (const std::optional<std::size_t> at = wanted_at(*request, spec, index)) {
      OutputTensor& out = request->response.outputs[*at];
      out.name = expected.name;
      out.tensor = {whole.dtype, with_rows(spec, request->rows, client_row.span()),
                    whole.data.subspan(offset, bytes)};
      out.owner = output.owner;
    }
    offset += bytes;
  }
  return {};
}

}  // namespace

Status gather(const Batch& batch, const ModelSpec& spec, Instance& instance) {
  for (std::size_t input = 0; input < spec.inputs.size(); ++input) {
    if (Status status = gather_input(batch, spec, input, instance); !status) return status;
  }
  return {};
}

Status split(Batch& batch, const ModelSpec& spec, Instance& instance) {
  for (const RequestPtr& request : batch.requests) {
    request->response.outputs.clear();
    request->response.outputs.resize(request->outputs.empty() ? spec.outputs.size()
                                                              : request->outputs.size());
  }
  for (std::size_t output = 0; output < spec.outputs.size(); ++output) {
    for (const RequestPtr& request : batch.requests) {
      if (!wanted_at(*request, spec, output)) continue;
      if (Status status = split_output(batch, spec, output, instance); !status) return status;
      break;
    }
  }
  return {};
}

}  // namespace headrace
