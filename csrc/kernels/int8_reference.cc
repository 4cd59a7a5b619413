// The kernels in portable C++, as plain as they can be.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/int8_table.h"

namespace headrace {
namespace {

constexpr std::size_t kLanes = 4;

std::size_t padded(std::size_t n) { return (n + 63) / 64 * 64; }

void quantise(const float* x, std::size_t n, float inverse, int32_t zero_point, int32_t low,
              int32_t high, uint8_t* to) {
  for (std::size_t i = 0; i < n; ++i) {
    const auto least = static_cast<float>(low - zero_point);
    const auto most = static_cast<float>(high - zero_point);
    const float scaled = x[i] * inverse;
    const float clamped = scaled > least ? std::min(scaled, most) : least;  // NaN: least
    to[i] = static_cast<uint8_t>(static_cast<int32_t>(std::nearbyint(clamped)) + zero_point);
  }
  std::memset(to + n, 0, padded(n) - n);
}

Int8Row quantise_dynamic(const float* x, std::size_t n, int32_t max, uint8_t* to) {
  float least = 0, most = 0;
  bool finite = true;
  for (std::size_t i = 0; i < n; ++i) {
    finite = finite && std::isfinite(x[i]);
    least = std::min(least, x[i]);
    most = std::max(most, x[i]);
  }
  if (!finite) {
    std::memset(to, 0, padded(n));
    return {std::numeric_limits<float>::quiet_NaN(), 0};
  }
  const float scale = most / static_cast<float>(max) - least / static_cast<float>(max);
  if (scale < std::numeric_limits<float>::min()) {
    std::memset(to, 0, padded(n));
    return {0, 0};
  }
  const float inverse = 1.0f / scale;
  const auto zero_point = static_cast<int32_t>(std::nearbyint(-least * inverse));
  quantise(x, n, inverse, zero_point, 0, max, to);
  return {scale, zero_point};
}

Int8Row quantise_static(const float* x, std::size_t n, float scale, int32_t zero_point, int32_t low,
                        int32_t high, uint8_t* to) {
  quantise(x, n, 1.0f / scale, zero_point, low, high, to);
  const bool nan = std::any_of(x, x + n, [](float value) { return std::isnan(value); });
  return {nan ? std::numeric_limits<float>::quiet_NaN() : scale, zero_point};
}

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

float activate(LinearActivation activation, float x) {
  switch (activation) {
    case LinearActivation::kNone:
      return x;
    case LinearActivation::kRelu:
      return x < 0 ? 0 : x;
    case LinearActivation::kGeluErf:
      return 0.5f * x * (1.0f + std::erf(x * 0.70710678f));
    case LinearActivation::kGeluTanh:
      return x * sigmoid(1.5957691f * (x + 0.044715f * x * x * x));
    case LinearActivation::kSilu:
      return x * sigmoid(x);
    case LinearActivation::kSigmoid:
      return sigmoid(x);
    case LinearActivation::kTanh:
      return std::tanh(x);
  }
  return x;
}

void multiply(const Int8Matrix& matrix, std::size_t first, std::size_t last, const Int8Rows& rows,
              float* y, int32_t* raw) {
  for (std::size_t p = first; p < last; ++p) {
    const Int8Panel& panel = matrix.panels[p];
    const std::size_t width = panel.vectors * kLanes;
    for (std::size_t row = 0; row < rows.count; ++row) {
      const uint8_t* const a = rows.values + row * rows.stride;
      for (std::size_t j = 0; j < panel.channels; ++j) {
        const std::size_t channel = panel.channel + j;
        int32_t sum = 0;
        for (std::size_t e = 0; e < panel.entries; ++e) {
          for (std::size_t i = 0; i < 4; ++i) {
            sum += a[4 * e + i] * panel.weights[(e * width + j) * 4 + i];
          }
        }
        // Modulo 2^32: the difference fits even where the product alone does not.
        sum = static_cast<int32_t>(static_cast<uint32_t>(sum) -
                                   static_cast<uint32_t>(rows.rows[row].zero_point) *
                                       static_cast<uint32_t>(matrix.sums[channel]));
        const std::size_t at = row * matrix.channels + channel;
        if (raw != nullptr) {
          raw[at] = sum;
        } else {
          y[at] =
              activate(matrix.activation, std::fma(static_cast<float>(sum),
                                                   rows.rows[row].scale * matrix.scales[channel],
                                                   matrix.bias[channel]));
        }
      }
    }
  }
}

float dot(const float* a, const float* b, std::size_t n) {
  float sum = 0;
  for (std::size_t i = 0; i < n; ++i) {
    float x = 0;
    std::memcpy(&x, a + i, sizeof(x));
    sum += x * b[i];
  }
  return sum;
}

void activate_all(LinearActivation activation, float* y, std::size_t n) {
  std::transform(y, y + n, y, [=](float x) { return activate(activation, x); });
}

void softmax(float* y, std::size_t n) {
  const float high = *std::max_element(y, y + n);
  float sum = 0;
  for (std::size_t i = 0; i < n; ++i) sum += y[i] = std::exp(y[i] - high);
  for (std::size_t i = 0; i < n; ++i) y[i] /= sum;
}

constexpr Int8Table kTable = {kLanes, quantise_dynamic, quantise_static, multiply,
                              dot,    activate_all,     softmax};

}  // namespace

const Int8Table* int8_reference_table() { return &kTable; }

}  // namespace headrace
