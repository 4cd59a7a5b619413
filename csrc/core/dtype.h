// DType: KServe v2's tensor datatypes and their sizes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace headrace {

// Numbers are ours and appear in no protocol.
enum class DType : uint8_t {
  kInvalid = 0,
  kBool,
  kUint8,
  kUint16,
  kUint32,
  kUint64,
  kInt8,
  kInt16,
  kInt32,
  kInt64,
  kFp16,
  kFp32,
  kFp64,
  kBf16,
  kBytes,  // variable size; wire form: per element a uint32 LE length, then the bytes
};

// Bytes of one element; 0 for kBytes and kInvalid.
constexpr std::size_t dtype_size(DType dtype) {
  switch (dtype) {
    case DType::kBool:
    case DType::kUint8:
    case DType::kInt8:
      return 1;
    case DType::kUint16:
    case DType::kInt16:
    case DType::kFp16:
    case DType::kBf16:
      return 2;
    case DType::kUint32:
    case DType::kInt32:
    case DType::kFp32:
      return 4;
    case DType::kUint64:
    case DType::kInt64:
    case DType::kFp64:
      return 8;
    case DType::kInvalid:
    case DType::kBytes:
      return 0;
  }
  return 0;
}

// The protocol's name ("FP32"); "<invalid>" for kInvalid, as Triton prints it.
std::string_view dtype_name(DType dtype);
// kInvalid for an unknown name.
DType dtype_from_name(std::string_view name);

}  // namespace headrace
