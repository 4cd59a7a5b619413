// Random and hostile layers, and the integer sums by hand.
#pragma once

#include "kernels/int8_linear.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace headrace {

enum class Weights { kGaussian, kUniform, kAllMax, kAllMin, kAlternating };
inline constexpr Weights kAllWeights[] = {Weights::kGaussian, Weights::kUniform, Weights::kAllMax,
                                          Weights::kAllMin, Weights::kAlternating};

inline QuantisedWeights make_weights(Weights kind, std::size_t inputs, std::size_t outputs,
                                     uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> gauss(0, 32);
  std::uniform_int_distribution<int> uniform(-127, 127);
  QuantisedWeights made{inputs, outputs, {}, {}};
  for (std::size_t i = 0; i < inputs * outputs; ++i) {
    int value = 0;
    switch (kind) {
      case Weights::kGaussian:
        value = static_cast<int>(std::lround(std::clamp(gauss(random), -127.f, 127.f)));
        break;
      case Weights::kUniform:
        value = uniform(random);
        break;
      case Weights::kAllMax:
        value = 127;
        break;
      case Weights::kAllMin:
        value = -128;
        break;
      case Weights::kAlternating:
        value = i % 2 == 0 ? 127 : -128;
        break;
    }
    made.values.push_back(static_cast<int8_t>(value));
  }
  std::uniform_real_distribution<float> scale(0.001f, 0.1f);
  for (std::size_t n = 0; n < outputs; ++n) made.scales.push_back(scale(random));
  return made;
}

inline std::vector<float> gaussian(std::size_t n, uint32_t seed, float size = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> value(0, size);
  std::vector<float> values(n);
  for (float& v : values) v = value(random);
  return values;
}

// (u8 - zero point) * weight summed in int64.
inline std::vector<int64_t> sums_by_hand(const QuantisedWeights& weights, const uint8_t* values,
                                         std::size_t stride, const std::vector<Int8Row>& rows) {
  std::vector<int64_t> sums;
  for (std::size_t row = 0; row < rows.size(); ++row) {
    for (std::size_t n = 0; n < weights.outputs; ++n) {
      int64_t sum = 0;
      for (std::size_t k = 0; k < weights.inputs; ++k) {
        sum += (int64_t{values[row * stride + k]} - rows[row].zero_point) *
               weights.values[n * weights.inputs + k];
      }
      sums.push_back(sum);
    }
  }
  return sums;
}

template <class T>
T value_of(Result<T> result) {
  if (!result) FAIL(result.error().message());
  return *std::move(result);
}

inline std::vector<float> run(const PackedLinear& layer, const std::vector<float>& x,
                              const LinearParallel& parallel = {}) {
  const std::size_t rows = x.size() / layer.inputs();
  std::vector<float> y(rows * layer.outputs(), -12345.f);
  AlignedBytes scratch(linear_scratch_bytes(layer, rows));
  linear(layer, x.data(), rows, y.data(), scratch.data(), parallel);
  return y;
}

// ||a - b|| / ||b||
inline double relative_error(const std::vector<float>& a, const std::vector<double>& b) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    size += b[i] * b[i];
  }
  return std::sqrt(difference / size);
}

}  // namespace headrace
