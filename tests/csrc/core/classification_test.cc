#include "core/classification.h"

#include <doctest/doctest.h>

#include <limits>

#include "requests.h"

using namespace headrace;
using namespace headrace::testing;

namespace {

template <class T>
OutputTensor output(DType dtype, Shape shape, const std::vector<T>& values) {
  OutputTensor tensor;
  tensor.owner = BufferRef::allocate(values.size() * sizeof(T));
  if (!values.empty()) std::memcpy(tensor.owner.data(), values.data(), values.size() * sizeof(T));
  tensor.tensor = {dtype, shape, std::as_const(tensor.owner).span()};
  return tensor;
}

template <class T>
std::string top2(DType dtype, const std::vector<T>& values) {
  OutputTensor tensor = output(dtype, {static_cast<int64_t>(values.size())}, values);
  REQUIRE(classify(tensor_spec("Y", dtype, {-1}), false, 2, tensor));
  CHECK(tensor.tensor.dtype == DType::kBytes);
  return text_of(tensor.tensor.data);
}

}  // namespace

TEST_CASE("the top classes of every numeric datatype, as std::to_string prints them") {
  CHECK(top2<uint8_t>(DType::kUint8, {1, 200, 7}) == strings({"200:1", "7:2"}));
  CHECK(top2<int8_t>(DType::kInt8, {-1, 100, -128}) == strings({"100:1", "-1:0"}));
  CHECK(top2<uint16_t>(DType::kUint16, {65535, 2}) == strings({"65535:0", "2:1"}));
  CHECK(top2<int16_t>(DType::kInt16, {-5, -4}) == strings({"-4:1", "-5:0"}));
  CHECK(top2<uint32_t>(DType::kUint32, {4000000000, 2}) == strings({"4000000000:0", "2:1"}));
  CHECK(top2<int32_t>(DType::kInt32, {-5, 4}) == strings({"4:1", "-5:0"}));
  CHECK(top2<uint64_t>(DType::kUint64, {UINT64_MAX, 1}) ==
        strings({"18446744073709551615:0", "1:1"}));
  CHECK(top2<int64_t>(DType::kInt64, {INT64_MIN, 1}) == strings({"1:1", "-9223372036854775808:0"}));
  CHECK(top2<float>(DType::kFp32, {0.25F, 0.5F, -1}) == strings({"0.500000:1", "0.250000:0"}));
  CHECK(top2<double>(DType::kFp64, {0.25, 1e-7}) == strings({"0.250000:0", "0.000000:1"}));
  // 1.0, 65504, -2, smallest subnormal (2^-24), 0.5
  CHECK(top2<uint16_t>(DType::kFp16, {0x3c00, 0x7bff, 0xc000}) ==
        strings({"65504.000000:1", "1.000000:0"}));
  CHECK(top2<uint16_t>(DType::kFp16, {0x0001, 0x8001, 0xfc00}) ==
        strings({"0.000000:0", "-0.000000:1"}));
  CHECK(top2<uint16_t>(DType::kFp16, {0x3800, 0x7c00}) == strings({"inf:1", "0.500000:0"}));
  CHECK(top2<uint16_t>(DType::kBf16, {0x3f80, 0x4000}) == strings({"2.000000:1", "1.000000:0"}));
}

TEST_CASE("each row of a batch by itself, over all its dims, with labels") {
  TensorSpec spec = tensor_spec("Y", DType::kFp32, {2, 2});
  spec.labels = {"zero", "one", "", "three"};
  OutputTensor tensor = output<float>(DType::kFp32, {2, 2, 2}, {4, 3, 2, 1, 1, 2, 3, 4});
  REQUIRE(classify(spec, true, 2, tensor));
  CHECK(tensor.tensor.shape == Shape{2, 2});
  CHECK(text_of(tensor.tensor.data) ==
        strings({"4.000000:0:zero", "3.000000:1:one", "4.000000:3:three", "3.000000:2"}));
}

TEST_CASE("k larger than the classes gives all; equal values by index, NaN last") {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  OutputTensor tensor = output<float>(DType::kFp32, {5}, {kNan, 1, 1, kNan, 2});
  REQUIRE(classify(tensor_spec("Y", DType::kFp32, {5}), false, 1000, tensor));
  CHECK(tensor.tensor.shape == Shape{5});
  const std::string text = text_of(tensor.tensor.data);
  CHECK(text.starts_with(strings({"2.000000:4", "1.000000:1", "1.000000:2"})));
  CHECK(text.ends_with("nan:3"));
}

TEST_CASE("no classes, no elements") {
  OutputTensor tensor = output<float>(DType::kFp32, {3, 0}, {});
  REQUIRE(classify(tensor_spec("Y", DType::kFp32, {0}), true, 4, tensor));
  CHECK(tensor.tensor.shape == Shape{3, 0});
  CHECK(tensor.tensor.data.empty());
}

TEST_CASE("BOOL and BYTES have no classes") {
  for (const DType dtype : {DType::kBool, DType::kBytes}) {
    OutputTensor tensor = output<uint8_t>(dtype, {1}, {0});
    CHECK(classify(tensor_spec("Y", dtype, {1}), false, 1, tensor).code() ==
          StatusCode::kInvalidArgument);
  }
}
