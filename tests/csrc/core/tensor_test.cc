#include "core/tensor.h"

#include <doctest/doctest.h>

#include <limits>

#include "requests.h"

using namespace headrace;
using headrace::testing::strings;

namespace {

constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

std::span<const std::byte> as_bytes(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

}  // namespace

TEST_CASE("element_count multiplies, and says when it cannot") {
  CHECK(Shape{}.element_count() == 1);
  CHECK(Shape{2, 3, 4}.element_count() == 24);
  CHECK(Shape{kMax}.element_count() == static_cast<uint64_t>(kMax));
  CHECK_FALSE(Shape{kMax, 2}.element_count());
  CHECK_FALSE(Shape{kMax, kMax, kMax}.element_count());
  CHECK_FALSE(Shape{int64_t{1} << 32, int64_t{1} << 32}.element_count());
  CHECK_FALSE(Shape{int64_t{1} << 32, int64_t{1} << 31}.element_count());
  CHECK_FALSE(Shape{2, -1}.element_count());
  CHECK_FALSE(Shape{0, -1}.element_count());
}

TEST_CASE("a zero dim makes the count zero, also beside dims that overflow") {
  CHECK(Shape{0}.element_count() == 0);
  CHECK(Shape{3, 0, 5}.element_count() == 0);
  CHECK(Shape{kMax, kMax, 0}.element_count() == 0);
  CHECK(Shape{0, kMax, kMax}.element_count() == 0);
}

TEST_CASE("dense_byte_size overflows into nullopt, and has none for BYTES") {
  CHECK(dense_byte_size(DType::kFp32, {2, 3}) == 24);
  CHECK(dense_byte_size(DType::kBool, {}) == 1);
  CHECK(dense_byte_size(DType::kFp64, {4, 0}) == 0);
  CHECK_FALSE(dense_byte_size(DType::kFp64, {kMax}));
  CHECK_FALSE(dense_byte_size(DType::kFp16, {int64_t{1} << 62}));
  CHECK_FALSE(dense_byte_size(DType::kBytes, {1}));
  CHECK_FALSE(dense_byte_size(DType::kInvalid, {1}));
}

TEST_CASE("a Shape holds up to kMaxRank dims") {
  Shape shape;
  for (std::size_t i = 0; i < Shape::kMaxRank; ++i) CHECK(shape.push_back(1));
  CHECK_FALSE(shape.push_back(1));
  CHECK(shape.size() == Shape::kMaxRank);
}

TEST_CASE("shapes compare, print and give their row") {
  CHECK(Shape{1, 2} == Shape{1, 2});
  CHECK_FALSE(Shape{1, 2} == Shape{1, 2, 1});
  CHECK_FALSE(Shape{1, 2} == Shape{2, 1});
  CHECK(Shape{-1, 16}.to_string() == "[-1,16]");
  CHECK(Shape{}.to_string() == "[]");
  CHECK(Shape{8, 3, 2}.row() == Shape{3, 2});
  CHECK(Shape{}.row() == Shape{});
}

TEST_CASE("bytes_prefix_size walks elements, and stops at every truncation") {
  const std::string whole = strings({"", "a", std::string(300, 'x'), ""});
  CHECK(bytes_prefix_size(as_bytes(whole), 4) == whole.size());
  CHECK(bytes_prefix_size(as_bytes(whole), 0) == 0);
  CHECK(bytes_prefix_size(as_bytes(whole), 2) == 9);
  CHECK_FALSE(bytes_prefix_size(as_bytes(whole), 5));
  for (std::size_t size = 0; size < whole.size(); ++size) {
    const std::string cut = whole.substr(0, size);
    CHECK_FALSE(bytes_prefix_size(as_bytes(cut), 4));
  }
  CHECK_FALSE(bytes_prefix_size({}, 1));
  CHECK_FALSE(bytes_prefix_size(as_bytes("\xff\xff\xff\xff"
                                         "abc"),
                                1));
  CHECK_FALSE(bytes_prefix_size(as_bytes(whole), std::numeric_limits<uint64_t>::max()));
}
