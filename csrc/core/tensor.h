// Shape and TensorView: a tensor is a dtype, a shape and bytes that somebody else owns. Row-major,
// little-endian; BYTES in the wire's length-prefixed form, so rows of every dtype concatenate as bytes.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>

#include "base/status.h"
#include "core/dtype.h"

namespace headrace {

class Shape {
 public:
  static constexpr std::size_t kMaxRank = 16;

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) {
    for (const int64_t dim : dims) push_back(dim);
  }
  explicit Shape(std::span<const int64_t> dims) {
    for (const int64_t dim : dims) push_back(dim);
  }

  // Copies the dims that are set only.
  Shape(const Shape& other) { *this = other; }
  Shape& operator=(const Shape& other) {
    rank_ = other.rank_;
    std::copy(other.begin(), other.end(), dims_.begin());
    return *this;
  }

  // False, and nothing changes, beyond kMaxRank.
  bool push_back(int64_t dim) {
    if (rank_ == kMaxRank) return false;
    dims_[rank_++] = dim;
    return true;
  }
  void clear() { rank_ = 0; }

  std::size_t size() const { return rank_; }
  bool empty() const { return rank_ == 0; }
  int64_t operator[](std::size_t i) const { return dims_[i]; }
  int64_t& operator[](std::size_t i) { return dims_[i]; }
  const int64_t* begin() const { return dims_.data(); }
  const int64_t* end() const { return dims_.data() + rank_; }
  std::span<const int64_t> span() const { return {dims_.data(), rank_}; }
  // The shape without its first dimension.
  Shape row() const { return Shape(span().subspan(rank_ == 0 ? 0 : 1)); }

  bool operator==(const Shape& other) const;

  // Product of the dims, 1 for rank 0; nullopt for a negative dim or when it exceeds 2^63-1.
  std::optional<uint64_t> element_count() const;
  // "[1,16]"
  std::string to_string() const { return dims_to_string(span()); }
  static std::string dims_to_string(std::span<const int64_t> dims);

 private:
  std::array<int64_t, kMaxRank> dims_;  // the first rank_ are set
  std::size_t rank_ = 0;
};

// Bytes of a dense tensor; nullopt when the count overflows or the dtype has no fixed size.
std::optional<uint64_t> dense_byte_size(DType dtype, const Shape& shape);

struct TensorView {
  DType dtype = DType::kInvalid;
  Shape shape;
  std::span<const std::byte> data;
};

// Walks BYTES elements in wire form: the size in bytes of the first `elements` elements of `data`,
// nullopt when they do not fit.
std::optional<std::size_t> bytes_prefix_size(std::span<const std::byte> data, uint64_t elements);

}  // namespace headrace
