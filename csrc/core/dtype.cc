#include "core/dtype.h"

#include <array>

namespace headrace {
namespace {

constexpr std::array<std::string_view, 15> kNames = {
    "<invalid>", "BOOL",  "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16",
    "INT32",     "INT64", "FP16",  "FP32",   "FP64",   "BF16",   "BYTES"};

}  // namespace

std::string_view dtype_name(DType dtype) { return kNames[static_cast<std::size_t>(dtype)]; }

DType dtype_from_name(std::string_view name) {
  for (std::size_t i = 1; i < kNames.size(); ++i) {
    if (kNames[i] == name) return static_cast<DType>(i);
  }
  return DType::kInvalid;
}

}  // namespace headrace
