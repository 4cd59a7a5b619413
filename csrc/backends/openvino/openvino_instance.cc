#include "backends/openvino/openvino_instance.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <utility>

#include "backends/openvino/openvino_error.h"

namespace headrace {
namespace {

struct TypePair {
  DType dtype;
  ov::element::Type_t type;
};

constexpr std::array<TypePair, 14> kTypes = {{
    {DType::kBool, ov::element::Type_t::boolean},
    {DType::kUint8, ov::element::Type_t::u8},
    {DType::kUint16, ov::element::Type_t::u16},
    {DType::kUint32, ov::element::Type_t::u32},
    {DType::kUint64, ov::element::Type_t::u64},
    {DType::kInt8, ov::element::Type_t::i8},
    {DType::kInt16, ov::element::Type_t::i16},
    {DType::kInt32, ov::element::Type_t::i32},
    {DType::kInt64, ov::element::Type_t::i64},
    {DType::kFp16, ov::element::Type_t::f16},
    {DType::kFp32, ov::element::Type_t::f32},
    {DType::kFp64, ov::element::Type_t::f64},
    {DType::kBf16, ov::element::Type_t::bf16},
    {DType::kBytes, ov::element::Type_t::string},
}};

bool accepts(const std::vector<int64_t>& dims, const Shape& shape) {
  if (dims.size() != shape.size()) return false;
  for (std::size_t i = 0; i < dims.size(); ++i) {
    if (shape[i] < 0 || (dims[i] >= 0 && dims[i] != shape[i])) return false;
  }
  return true;
}

ov::Shape to_openvino(const Shape& shape) { return {shape.begin(), shape.end()}; }

// Whether `bytes` bytes of `shape` may be input `spec`; `known`: the shape has been found to fit.
Status check_fit(const TensorSpec& spec, const Shape& shape, std::size_t bytes, bool known) {
  if (!known && !accepts(spec.dims, shape)) {
    return Status::invalid_argument("unexpected shape for input '" + spec.name + "'. Expected " +
                                    Shape::dims_to_string(spec.dims) + ", got " +
                                    shape.to_string());
  }
  if (spec.dtype != DType::kBytes) {
    const std::optional<uint64_t> expected = dense_byte_size(spec.dtype, shape);
    if (expected != bytes) {
      return Status::invalid_argument(
          "input byte size mismatch for input '" + spec.name + "'. Expected " +
          (expected ? std::to_string(*expected) : "a size that overflows") + ", got " +
          std::to_string(bytes));
    }
  }
  return {};
}

}  // namespace

DType dtype_from_openvino(const ov::element::Type& type) {
  for (const TypePair& pair : kTypes) {
    if (type == pair.type) return pair.dtype;
  }
  return DType::kInvalid;
}

ov::element::Type dtype_to_openvino(DType dtype) {
  for (const TypePair& pair : kTypes) {
    if (pair.dtype == dtype) return pair.type;
  }
  return ov::element::Type_t::dynamic;
}

OpenVinoInstance::OpenVinoInstance(std::shared_ptr<const OpenVinoSignature> signature,
                                   std::shared_ptr<ShapeCheck> shape_check,
                                   ov::CompiledModel compiled, std::shared_ptr<void> lease)
    : lease_(std::move(lease)),
      signature_(std::move(signature)),
      compiled_(std::move(compiled)),
      request_(compiled_.create_infer_request()),
      shape_check_(std::move(shape_check)),
      inputs_(signature_->inputs.size()),
      shapes_(signature_->inputs.size()),
      outputs_(signature_->outputs.size()) {}

Result<std::span<std::byte>> OpenVinoInstance::input(std::size_t index, const Shape& shape,
                                                     std::size_t bytes) try {
  if (index >= inputs_.size()) return Status::internal("no input " + std::to_string(index));
  Input& input = inputs_[index];
  const TensorSpec& spec = signature_->inputs[index];
  ran_ = false;

  const bool same_shape = input.bound && shapes_[index] == shape;
  if (Status status = check_fit(spec, shape, bytes, same_shape); !status.ok()) return status;

  const bool mine = input.lent == nullptr;
  input.lent = nullptr;
  const bool fits = mine && input.memory && input.memory.size() >= bytes;
  if (!fits) {
    input.bound = false;
    if (!input.memory || input.memory.size() < bytes) {
      input.memory = {};  // the old block is not needed while the new one is made
      // Doubling, so that batches that grow row by row settle; never empty: a tensor needs an
      // address.
      input.memory = BufferRef::allocate(std::max<std::size_t>({bytes, 2 * input.bytes, 64}));
    }
  }
  if (!fits || !same_shape) {
    if (spec.dtype == DType::kBytes) {
      if (!same_shape) {
        input.bound = false;
        input.strings = ov::Tensor(ov::element::string, to_openvino(shape));
        request_.set_input_tensor(index, input.strings);
      }
    } else {
      input.bound = false;
      request_.set_input_tensor(index, ov::Tensor(dtype_to_openvino(spec.dtype), to_openvino(shape),
                                                  input.memory.data()));
    }
    input.bound = true;
    shapes_[index] = shape;
    shapes_checked_ = shapes_checked_ && same_shape;
  }
  input.bytes = bytes;
  input.given = true;
  return input.memory.span().first(bytes);
} catch (...) {
  return caught_openvino_status(StatusCode::kInternal,
                                "cannot prepare input '" + signature_->inputs[index].name + "'");
}

Status OpenVinoInstance::lend(std::size_t index, const TensorView& tensor) try {
  if (index >= inputs_.size()) return Status::internal("no input " + std::to_string(index));
  Input& input = inputs_[index];
  const TensorSpec& spec = signature_->inputs[index];
  // A tensor needs an address, and strings are parsed.
  if (spec.dtype == DType::kBytes || tensor.data.empty()) return Instance::lend(index, tensor);
  ran_ = false;
  const bool same_shape = input.bound && shapes_[index] == tensor.shape;
  Status status = check_fit(spec, tensor.shape, tensor.data.size(), same_shape);
  if (!status.ok()) return status;
  if (!same_shape || input.lent != tensor.data.data()) {
    input.bound = false;
    // OpenVINO reads inputs only, but has no word for that.
    request_.set_input_tensor(index,
                              ov::Tensor(dtype_to_openvino(spec.dtype), to_openvino(tensor.shape),
                                         const_cast<std::byte*>(tensor.data.data())));
    input.lent = tensor.data.data();
    input.bound = true;
    shapes_[index] = tensor.shape;
    shapes_checked_ = shapes_checked_ && same_shape;
  }
  input.given = true;
  return {};
} catch (...) {
  return caught_openvino_status(StatusCode::kInternal,
                                "cannot prepare input '" + signature_->inputs[index].name + "'");
}

Status OpenVinoInstance::omit(std::size_t index) {
  if (index >= inputs_.size()) return Status::internal("no input " + std::to_string(index));
  return Status::unimplemented("input '" + signature_->inputs[index].name +
                               "' cannot be left out: OpenVINO has no optional inputs");
}

Status OpenVinoInstance::parse_strings(Input& input, const TensorSpec& spec) {
  std::span<const std::byte> wire = input.memory.span().first(input.bytes);
  auto* const strings = input.strings.data<std::string>();
  const std::size_t count = input.strings.get_size();
  for (std::size_t i = 0; i < count; ++i) {
    uint32_t length = 0;
    if (wire.size() < sizeof(length)) {
      return Status::invalid_argument("expected " + std::to_string(count) +
                                      " string elements for inference input '" + spec.name +
                                      "' got " + std::to_string(i));
    }
    std::memcpy(&length, wire.data(), sizeof(length));
    wire = wire.subspan(sizeof(length));
    if (wire.size() < length) {
      return Status::invalid_argument("incomplete string data for inference input '" + spec.name +
                                      "': element " + std::to_string(i) + " claims " +
                                      std::to_string(length) + " bytes, " +
                                      std::to_string(wire.size()) + " are left");
    }
    strings[i].assign(reinterpret_cast<const char*>(wire.data()), length);
    wire = wire.subspan(length);
  }
  if (!wire.empty()) {
    return Status::invalid_argument("unexpected number of string elements for inference input '" +
                                    spec.name + "', expecting " + std::to_string(count) + ": " +
                                    std::to_string(wire.size()) + " bytes are left over");
  }
  return {};
}

Status OpenVinoInstance::run() try {
  // An input left from the run before would answer one client with another's data.
  for (std::size_t i = 0; i < inputs_.size(); ++i) {
    const TensorSpec& spec = signature_->inputs[i];
    if (!std::exchange(inputs_[i].given, false)) {
      return Status::internal("input '" + spec.name + "' was not given");
    }
    if (spec.dtype == DType::kBytes) {
      if (Status status = parse_strings(inputs_[i], spec); !status.ok()) return status;
    }
  }
  if (!shapes_checked_ && shape_check_ != nullptr) {
    if (Status status = shape_check_->check(shapes_); !status.ok()) return status;
    shapes_checked_ = true;
  }
  request_.infer();
  ran_ = true;
  return {};
} catch (...) {
  return caught_openvino_status(StatusCode::kInternal, "OpenVINO failed to run the model");
}

Result<std::span<const std::byte>> OpenVinoInstance::serialise_strings(Output& output) {
  const auto* const strings = std::as_const(output.tensor).data<std::string>();
  const std::size_t count = output.tensor.get_size();
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (strings[i].size() > std::numeric_limits<uint32_t>::max()) {
      return Status::internal("a string of the output is longer than 4 GiB");
    }
    bytes += sizeof(uint32_t) + strings[i].size();
  }
  if (!output.wire || output.wire.size() < bytes) {
    output.wire = BufferRef::allocate(std::max<std::size_t>({bytes, 2 * output.wire.size(), 64}));
  }
  std::byte* to = output.wire.data();
  for (std::size_t i = 0; i < count; ++i) {
    const auto length = static_cast<uint32_t>(strings[i].size());
    std::memcpy(to, &length, sizeof(length));
    std::memcpy(to + sizeof(length), strings[i].data(), length);
    to += sizeof(length) + length;
  }
  return std::as_const(output.wire).span().first(bytes);
}

Result<BackendOutput> OpenVinoInstance::output(std::size_t index) try {
  if (index >= outputs_.size()) return Status::internal("no output " + std::to_string(index));
  if (!ran_) return Status::internal("no output before a run");
  Output& output = outputs_[index];
  const TensorSpec& spec = signature_->outputs[index];
  output.tensor = request_.get_output_tensor(index);
  if (!output.tensor.is_continuous()) {
    ov::Tensor dense(output.tensor.get_element_type(), output.tensor.get_shape());
    output.tensor.copy_to(dense);
    output.tensor = dense;
  }
  BackendOutput result;
  result.tensor.dtype = spec.dtype;
  for (const std::size_t dim : output.tensor.get_shape()) {
    if (!result.tensor.shape.push_back(static_cast<int64_t>(dim))) {
      return Status::unimplemented("output '" + spec.name + "' has more than " +
                                   std::to_string(Shape::kMaxRank) + " dimensions");
    }
  }
  if (spec.dtype == DType::kBytes) {
    Result<std::span<const std::byte>> wire = serialise_strings(output);
    if (!wire) return wire.error();
    result.tensor.data = *wire;
  } else {
    result.tensor.data = {static_cast<const std::byte*>(std::as_const(output.tensor).data()),
                          output.tensor.get_byte_size()};
  }
  return result;
} catch (...) {
  return caught_openvino_status(StatusCode::kInternal,
                                "cannot read output '" + signature_->outputs[index].name + "'");
}

}  // namespace headrace
