#include "serving/finite.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

using namespace headrace;

namespace {

template <class T>
bool finite(DType dtype, const std::vector<T>& values) {
  TensorView tensor;
  tensor.dtype = dtype;
  tensor.data = std::as_bytes(std::span(values));
  return all_finite(tensor);
}

}  // namespace

TEST_CASE("a NaN or an infinity is found wherever it stands") {
  const float inf = std::numeric_limits<float>::infinity();
  const float largest = std::numeric_limits<float>::max();
  CHECK(finite<float>(DType::kFp32, {}));
  std::vector<float> values(5000, -largest);
  values[17] = std::numeric_limits<float>::denorm_min();
  CHECK(finite(DType::kFp32, values));
  for (const std::size_t at :
       {std::size_t{0}, std::size_t{1023}, std::size_t{1024}, values.size() - 1}) {
    for (const float bad : {inf, -inf, std::nanf(""), -std::nanf("")}) {
      auto spoilt = values;
      spoilt[at] = bad;
      CHECK_FALSE(finite(DType::kFp32, spoilt));
    }
  }
  CHECK(finite<double>(DType::kFp64, {1e308, -0.0}));
  CHECK_FALSE(finite<double>(DType::kFp64, {1, std::nan("")}));
  CHECK(finite<uint16_t>(DType::kFp16, {0x7bff, 0xfbff, 0}));
  CHECK_FALSE(finite<uint16_t>(DType::kFp16, {0x7c00}));
  CHECK_FALSE(finite<uint16_t>(DType::kFp16, {0, 0xfe01}));
  CHECK(finite<uint16_t>(DType::kBf16, {0x7f7f, 0x7c00}));
  CHECK_FALSE(finite<uint16_t>(DType::kBf16, {0xff80}));
}

TEST_CASE("other datatypes have nothing to find") {
  CHECK(finite<uint32_t>(DType::kInt32, {0x7f800000, 0xffffffff}));
  CHECK(finite<uint8_t>(DType::kUint8, {0xff, 0xff, 0xff, 0xff}));
}

TEST_CASE("at any address") {
  const float bad = std::nanf("");
  std::vector<std::byte> bytes(4 * sizeof(float) + 1);
  std::memcpy(bytes.data() + 1 + 2 * sizeof(float), &bad, sizeof(bad));
  TensorView tensor;
  tensor.dtype = DType::kFp32;
  tensor.data = std::span<const std::byte>(bytes).subspan(1);
  CHECK_FALSE(all_finite(tensor));
}
