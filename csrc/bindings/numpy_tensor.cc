#include "bindings/numpy_tensor.h"

#include <pybind11/stl.h>

#include <cstring>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace headrace {
namespace {

// NumPy's array-protocol type string; BYTES are objects.
const char* numpy_type(DType dtype) {
  switch (dtype) {
    case DType::kBool:
      return "|b1";
    case DType::kUint8:
      return "|u1";
    case DType::kUint16:
    case DType::kBf16:
      return "<u2";
    case DType::kUint32:
      return "<u4";
    case DType::kUint64:
      return "<u8";
    case DType::kInt8:
      return "|i1";
    case DType::kInt16:
      return "<i2";
    case DType::kInt32:
      return "<i4";
    case DType::kInt64:
      return "<i8";
    case DType::kFp16:
      return "<f2";
    case DType::kFp32:
      return "<f4";
    case DType::kFp64:
      return "<f8";
    case DType::kBytes:
    case DType::kInvalid:
      break;
  }
  return "|O";
}

py::object bytes_array(const TensorView& tensor, uint64_t count) {
  py::list elements(count);
  std::size_t at = 0;
  for (uint64_t i = 0; i < count; ++i) {
    uint32_t length = 0;
    std::memcpy(&length, tensor.data.data() + at, sizeof(length));
    at += sizeof(length);
    elements[i] = py::bytes(reinterpret_cast<const char*>(tensor.data.data() + at), length);
    at += length;
  }
  // Filled element by element: np.array() would look into the values for its shape.
  const py::module_ numpy = py::module_::import("numpy");
  const py::object flat = numpy.attr("empty")(count, "O");
  flat[py::slice(py::none(), py::none(), py::none())] = elements;
  return flat.attr("reshape")(
      py::cast(std::vector<int64_t>(tensor.shape.begin(), tensor.shape.end())));
}

Result<BackendOutput> bytes_tensor(const py::array& array, Shape shape, const std::string& what) {
  const py::list elements = array.attr("ravel")().attr("tolist")();
  std::string wire;
  for (const py::handle element : elements) {
    py::object item = py::reinterpret_borrow<py::object>(element);
    if (py::isinstance<py::str>(item)) item = item.attr("encode")("utf-8");
    if (!py::isinstance<py::bytes>(item)) {
      return Status::invalid_argument(what + " has an element that is neither bytes nor str");
    }
    const std::string_view bytes = item.cast<std::string_view>();
    const auto length = static_cast<uint32_t>(bytes.size());
    wire.append(reinterpret_cast<const char*>(&length), sizeof(length)).append(bytes);
  }
  BackendOutput output;
  output.owner = BufferRef::allocate(wire.size());
  std::memcpy(output.owner.data(), wire.data(), wire.size());
  output.tensor = {DType::kBytes, shape, std::as_const(output.owner).span()};
  return output;
}

}  // namespace

Result<py::object> array_of(const TensorView& tensor, BufferRef owner, bool writable) {
  const std::optional<uint64_t> count = tensor.shape.element_count();
  if (!count) return Status::invalid_argument("shape " + tensor.shape.to_string());
  if (tensor.dtype == DType::kBytes) {
    const std::optional<std::size_t> size = bytes_prefix_size(tensor.data, *count);
    if (!size || *size != tensor.data.size()) {
      return Status::invalid_argument("BYTES elements do not fill the tensor");
    }
    return bytes_array(tensor, *count);
  }
  const std::vector<py::ssize_t> shape(tensor.shape.begin(), tensor.shape.end());
  // The capsule is the array's base: NumPy drops it with the last view.
  const py::capsule base(new BufferRef(std::move(owner)),
                         [](void* p) { delete static_cast<BufferRef*>(p); });
  py::array array(py::dtype(numpy_type(tensor.dtype)), shape, {}, tensor.data.data(), base);
  if (!writable) array.attr("setflags")(py::arg("write") = false);
  return py::object(std::move(array));
}

Result<BackendOutput> tensor_of(py::handle value, DType dtype, const std::string& what) {
  const py::module_ numpy = py::module_::import("numpy");
  const py::array array = numpy.attr("asarray")(value, py::arg("order") = "C");
  Shape shape;
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    if (!shape.push_back(array.shape(i))) {
      return Status::invalid_argument(what + " has more than " + std::to_string(Shape::kMaxRank) +
                                      " dimensions");
    }
  }
  if (dtype == DType::kBytes) {
    const char kind = array.dtype().kind();
    if (kind != 'O' && kind != 'S' && kind != 'U') {
      return Status::invalid_argument(what + " has dtype " + std::string(py::str(array.dtype())) +
                                      ", expected an object array of bytes (BYTES)");
    }
    return bytes_tensor(array, shape, what);
  }
  const bool bfloat16 = dtype == DType::kBf16 && std::string(py::str(array.dtype())) == "bfloat16";
  if (!bfloat16 && !array.dtype().equal(py::dtype(numpy_type(dtype)))) {
    return Status::invalid_argument(what + " has dtype " + std::string(py::str(array.dtype())) +
                                    ", expected " + std::string(dtype_name(dtype)));
  }
  BackendOutput output;
  const auto bytes = static_cast<std::size_t>(array.nbytes());
  output.owner = BufferRef::allocate(bytes);
  if (bytes != 0) std::memcpy(output.owner.data(), array.data(), bytes);
  output.tensor = {dtype, shape, std::as_const(output.owner).span()};
  return output;
}

}  // namespace headrace
