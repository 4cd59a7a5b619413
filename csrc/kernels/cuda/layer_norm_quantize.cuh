// Residual + LayerNorm + per-token quantisation in one launch, a block a row, the row in registers:
//   s = x + residual;  y = (s - mean(s)) / sqrt(var(s) + eps) * gamma + beta;  q, scale = quantise(y)
// Variance in a second pass over the registers: no cancellation.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/reduce.cuh"

namespace headrace::cuda {

// Matrices are (rows, k) without gaps but q. Pointers that are marked so may be nullptr.
template <typename T>
struct LayerNormQuantize {
  const T* x;
  const T* residual;   // may be nullptr
  const float* gamma;  // k
  const float* beta;   // k, may be nullptr
  float epsilon;
  T* sum;          // s, for the next residual; may be nullptr
  T* y;            // may be nullptr
  std::int8_t* q;  // row i begins at i * ldq
  std::int64_t ldq;
  float* scale;  // rows
  int rows;
  int k;
  int qmax;
};

inline constexpr int kNormThreads = 256;
inline constexpr int kNormColumns = kNormThreads * 16;

// k <= kNormThreads * kItems.
template <typename T, int kItems>
__global__ void __launch_bounds__(kNormThreads) layer_norm_quantize(LayerNormQuantize<T> p) {
  constexpr int kWarps = kNormThreads / 32;
  auto* partial = reinterpret_cast<float*>(dynamic_shared());
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t row = blockIdx.x;
  const std::int64_t offset = row * p.k;

  float value[kItems];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int column = thread + i * kNormThreads;
    value[i] = 0;
    if (column < p.k) {
      value[i] = to_float(p.x[offset + column]);
      if (p.residual != nullptr) value[i] += to_float(p.residual[offset + column]);
      if (p.sum != nullptr) store(p.sum + offset + column, value[i]);
      sum += value[i];
    }
  }
  const float count = static_cast<float>(p.k);
  const float mean = block_sum<kWarps>(sum, partial) / count;

  float squares = 0;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const bool inside = HEADRACE_MUTANT(kVarianceOfPadding, true, thread + i * kNormThreads < p.k);
    value[i] -= mean;
    if (inside) squares += value[i] * value[i];
  }
  // Memory of its own: a warp may still be reading the first sum's.
  float* second = partial + HEADRACE_MUTANT(kPartialsShared, 0, kWarps);
  const float variance = block_sum<kWarps>(squares, second) / count;
  const float factor = 1.0f / sqrtf(variance + HEADRACE_MUTANT(kNoEpsilon, 0.0f, p.epsilon));

  std::uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int column = thread + i * kNormThreads;
    if (column < p.k) {
      value[i] =
          fmaf(value[i] * factor, p.gamma[column], p.beta == nullptr ? 0.0f : p.beta[column]);
      if (p.y != nullptr) store(p.y + offset + column, value[i]);
      const std::uint32_t here = magnitude(value[i]);
      largest = here > largest ? here : largest;
    }
  }
  const RowScale scale = row_scale(
      block_max<kWarps>(largest, reinterpret_cast<std::uint32_t*>(partial + 2 * kWarps)), p.qmax);
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int column = thread + i * kNormThreads;
    if (column < p.k) {
      p.q[row * p.ldq + column] =
          static_cast<std::int8_t>(quantized(value[i], scale.inverse, p.qmax));
    }
  }
  if (thread == 0) p.scale[row] = scale.scale;
}

// Host. k <= kNormColumns.
template <typename T>
const char* launch_layer_norm_quantize(const LayerNormQuantize<T>& p, Stream stream) {
  const auto go = [&](void (*kernel)(LayerNormQuantize<T>)) {
    return launch(kernel, dim3(static_cast<unsigned>(p.rows)), kNormThreads,
                  3 * (kNormThreads / 32) * sizeof(float), stream, p);
  };
  if (p.k <= kNormThreads * 2) return go(layer_norm_quantize<T, 2>);
  if (p.k <= kNormThreads * 4) return go(layer_norm_quantize<T, 4>);
  return go(layer_norm_quantize<T, 16>);
}

}  // namespace headrace::cuda
