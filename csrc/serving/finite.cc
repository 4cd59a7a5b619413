#include "serving/finite.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace headrace {
namespace {

// Not finite (IEEE 754): all bits of the exponent are set. Without a branch within a block, so that
// the compiler vectorises it; tensors may lie at any address.
template <class Bits>
bool finite(std::span<const std::byte> data, Bits exponent) {
  constexpr std::size_t kBlock = 1024;
  const std::size_t count = data.size() / sizeof(Bits);
  for (std::size_t begin = 0; begin < count; begin += kBlock) {
    const std::size_t end = std::min(count, begin + kBlock);
    unsigned found = 0;
    for (std::size_t i = begin; i < end; ++i) {
      Bits bits;
      std::memcpy(&bits, data.data() + i * sizeof(Bits), sizeof(Bits));
      found |= static_cast<unsigned>((bits & exponent) == exponent);
    }
    if (found != 0) return false;
  }
  return true;
}

}  // namespace

bool all_finite(const TensorView& tensor) {
  switch (tensor.dtype) {
    case DType::kFp16:
      return finite<uint16_t>(tensor.data, 0x7c00);
    case DType::kBf16:
      return finite<uint16_t>(tensor.data, 0x7f80);
    case DType::kFp32:
      return finite<uint32_t>(tensor.data, 0x7f800000);
    case DType::kFp64:
      return finite<uint64_t>(tensor.data, 0x7ff0000000000000);
    default:
      return true;
  }
}

}  // namespace headrace
