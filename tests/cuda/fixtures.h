// Device buffers that notice what is written beside them, random contents, and exact references.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "cuda/emulation.h"

namespace headrace::cuda::tests {

using Random = std::mt19937;

template <typename T>
class Device {
 public:
  explicit Device(std::size_t count) : memory_(count * sizeof(T)), count_(count) {}
  explicit Device(const std::vector<T>& values) : Device(values.size()) {
    std::copy(values.begin(), values.end(), get());
  }
  T* get() const { return reinterpret_cast<T*>(memory_.data()); }
  T operator[](std::size_t i) const { return get()[i]; }
  std::size_t size() const { return count_; }
  bool intact() const { return memory_.margins_intact(); }

 private:
  emulation::Memory memory_;
  std::size_t count_;
};

inline std::vector<std::int8_t> random_bytes(Random& random, std::size_t count) {
  std::uniform_int_distribution<int> any(-128, 127);
  std::vector<std::int8_t> values(count);
  for (std::int8_t& value : values) value = static_cast<std::int8_t>(any(random));
  return values;
}

inline std::vector<float> random_floats(Random& random, std::size_t count, float low, float high) {
  std::uniform_real_distribution<float> any(low, high);
  std::vector<float> values(count);
  for (float& value : values) value = any(random);
  return values;
}

template <typename T>
std::vector<T> narrowed(const std::vector<float>& values) {
  std::vector<T> result(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) store(&result[i], values[i]);
  return result;
}

// The bits of two floats are the same, or both are NaN.
inline bool same(float left, float right) {
  return std::bit_cast<std::uint32_t>(left) == std::bit_cast<std::uint32_t>(right) ||
         (left != left && right != right);
}

// The documented quantisation of one row (int8_cuda.h), written down anew.
struct QuantizedRow {
  std::vector<int> q;
  float scale;
};
inline QuantizedRow quantized_row(std::span<const float> x, int qmax) {
  float amax = 0;
  bool finite = true;
  for (const float value : x) {
    finite = finite && std::isfinite(value);
    amax = std::max(amax, std::fabs(value));
  }
  std::vector<int> q(x.size(), 0);
  if (!finite) return {q, std::nanf("")};
  if (amax < 0x1p-100f) return {q, 0.0f};
  const float inverse = static_cast<float>(qmax) / amax;
  for (std::size_t i = 0; i < x.size(); ++i) {
    q[i] = std::max(-qmax, std::min(qmax, static_cast<int>(std::nearbyint(x[i] * inverse))));
  }
  return {q, amax / static_cast<float>(qmax)};
}

}  // namespace headrace::cuda::tests
