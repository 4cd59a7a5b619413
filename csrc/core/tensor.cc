#include "core/tensor.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace headrace {

bool Shape::operator==(const Shape& other) const {
  return rank_ == other.rank_ && std::equal(begin(), end(), other.begin());
}

std::optional<uint64_t> Shape::element_count() const {
  // A zero anywhere makes the product zero whatever the other dims are, so look for it first.
  bool zero = false;
  for (const int64_t dim : *this) {
    if (dim < 0) return std::nullopt;
    zero = zero || dim == 0;
  }
  if (zero) return 0;
  uint64_t count = 1;
  for (const int64_t dim : *this) {
    if (__builtin_mul_overflow(count, static_cast<uint64_t>(dim), &count)) return std::nullopt;
  }
  if (count > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
  return count;
}

std::string Shape::dims_to_string(std::span<const int64_t> dims) {
  std::string text = "[";
  for (std::size_t i = 0; i < dims.size(); ++i) {
    if (i != 0) text += ',';
    text += std::to_string(dims[i]);
  }
  text += ']';
  return text;
}

std::optional<uint64_t> dense_byte_size(DType dtype, const Shape& shape) {
  const std::size_t element = dtype_size(dtype);
  const std::optional<uint64_t> count = shape.element_count();
  uint64_t bytes = 0;
  if (element == 0 || !count || __builtin_mul_overflow(*count, element, &bytes) ||
      bytes > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return std::nullopt;
  }
  return bytes;
}

std::optional<std::size_t> bytes_prefix_size(std::span<const std::byte> data, uint64_t elements) {
  std::size_t offset = 0;
  for (uint64_t i = 0; i < elements; ++i) {
    uint32_t length = 0;
    if (data.size() - offset < sizeof(length)) return std::nullopt;
    std::memcpy(&length, data.data() + offset, sizeof(length));
    offset += sizeof(length);
    if (data.size() - offset < length) return std::nullopt;
    offset += length;
  }
  return offset;
}

}  // namespace headrace
