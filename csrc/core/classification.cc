#include "core/classification.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "core/half.h"

namespace headrace {
namespace {

struct Half {
  uint16_t bits;
  float value() const { return half_to_float(bits); }
};
struct BFloat16 {
  uint16_t bits;
  float value() const { return bfloat16_to_float(bits); }
};

template <class T>
auto value_of(T stored) {
  if constexpr (std::is_class_v<T>) {
    return stored.value();
  } else if constexpr (std::is_floating_point_v<T>) {
    return stored;
  } else {
    return +stored;  // int8 as a number, not a character
  }
}

template <class Value>
bool ranks_before(Value a, Value b) {
  if constexpr (std::is_floating_point_v<Value>) {
    if (std::isnan(a) || std::isnan(b)) return !std::isnan(a) && std::isnan(b);
  }
  return a > b;
}

void append_element(std::string& elements, const std::string& text) {
  const auto length = static_cast<uint32_t>(text.size());
  elements.append(reinterpret_cast<const char*>(&length), sizeof(length));
  elements += text;
}

template <class T>
void append_top(std::span<const std::byte> row, std::size_t n, std::size_t k,
                const std::vector<std::string>& labels, std::vector<std::size_t>& order,
                std::string& elements) {
  const auto at = [&](std::size_t index) {
    T stored;
    std::memcpy(&stored, row.data() + index * sizeof(T), sizeof(T));  // views are not aligned
    return value_of(stored);
  };
  order.resize(n);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(k), order.end(),
                    [&](std::size_t a, std::size_t b) {
                      if (ranks_before(at(a), at(b))) return true;
                      return !ranks_before(at(b), at(a)) && a < b;
                    });
  for (std::size_t i = 0; i < k; ++i) {
    std::string text = std::to_string(at(order[i])) + ":" + std::to_string(order[i]);
    if (order[i] < labels.size() && !labels[order[i]].empty()) text += ":" + labels[order[i]];
    append_element(elements, text);
  }
}

auto appender(DType dtype) -> decltype(&append_top<float>) {
  switch (dtype) {
    case DType::kUint8:
      return &append_top<uint8_t>;
    case DType::kUint16:
      return &append_top<uint16_t>;
    case DType::kUint32:
      return &append_top<uint32_t>;
    case DType::kUint64:
      return &append_top<uint64_t>;
    case DType::kInt8:
      return &append_top<int8_t>;
    case DType::kInt16:
      return &append_top<int16_t>;
    case DType::kInt32:
      return &append_top<int32_t>;
    case DType::kInt64:
      return &append_top<int64_t>;
    case DType::kFp16:
      return &append_top<Half>;
    case DType::kBf16:
      return &append_top<BFloat16>;
    case DType::kFp32:
      return &append_top<float>;
    case DType::kFp64:
      return &append_top<double>;
    case DType::kBool:
    case DType::kBytes:
    case DType::kInvalid:
      return nullptr;
  }
  return nullptr;
}

}  // namespace

Status classify(const TensorSpec& spec, bool batching, int64_t k, OutputTensor& output) {
  const TensorView& tensor = output.tensor;
  const auto append = appender(tensor.dtype);
  if (append == nullptr) {
    return Status::invalid_argument("class result not available for output '" + spec.name +
                                    "' due to unsupported type '" +
                                    std::string(dtype_name(tensor.dtype)) + "'");
  }
  const std::size_t rows = batching ? static_cast<std::size_t>(tensor.shape[0]) : 1;
  const std::size_t n =
      tensor.data.size() / dtype_size(tensor.dtype) / std::max<std::size_t>(rows, 1);
  const std::size_t top = std::min<uint64_t>(static_cast<uint64_t>(k), n);

  std::string elements;
  std::vector<std::size_t> order;
  const std::size_t row_bytes = n * dtype_size(tensor.dtype);
  for (std::size_t row = 0; row < rows; ++row) {
    append(tensor.data.subspan(row * row_bytes, row_bytes), n, top, spec.labels, order, elements);
  }

  BufferRef memory = BufferRef::allocate(elements.size());
  std::memcpy(memory.data(), elements.data(), elements.size());
  Shape shape;
  if (batching) shape.push_back(static_cast<int64_t>(rows));
  shape.push_back(static_cast<int64_t>(top));
  output.tensor = {DType::kBytes, shape, std::as_const(memory).span()};
  output.owner = std::move(memory);
  return {};
}

}  // namespace headrace
