#include "core/dtype.h"

#include <doctest/doctest.h>

#include <map>
#include <string>

using namespace headrace;

TEST_CASE("names and sizes are the protocol's, and names read back") {
  const std::map<std::string, std::size_t> sizes = {
      {"BOOL", 1}, {"UINT8", 1}, {"UINT16", 2}, {"UINT32", 4}, {"UINT64", 8},
      {"INT8", 1}, {"INT16", 2}, {"INT32", 4},  {"INT64", 8},  {"FP16", 2},
      {"FP32", 4}, {"FP64", 8},  {"BF16", 2},   {"BYTES", 0}};
  for (const auto& [name, size] : sizes) {
    const DType dtype = dtype_from_name(name);
    CHECK(dtype != DType::kInvalid);
    CHECK(dtype_name(dtype) == name);
    CHECK(dtype_size(dtype) == size);
  }
}

TEST_CASE("an unknown name is no datatype") {
  for (const char* name : {"", "FP8", "fp32", "FP32 ", "<invalid>", "STRING"}) {
    CHECK(dtype_from_name(name) == DType::kInvalid);
  }
  CHECK(dtype_name(DType::kInvalid) == "<invalid>");
  CHECK(dtype_size(DType::kInvalid) == 0);
}
