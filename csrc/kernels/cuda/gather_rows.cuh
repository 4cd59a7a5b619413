// N requests' rows -> one batch tensor in one launch: read from where each request has them (device memory,
// or pinned memory that the device sees), widen, normalise by channel, pad, and store as float, Half or int8.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/int8_cuda.h"
#include "kernels/cuda/reduce.cuh"

namespace headrace::cuda {

// y[row][i] = x * multiplier[c] + offset[c] for i < length, else `padding` (already in y's units), where
// c = i / inner % channels. With `interleaved` the source has its channels innermost (HWC) and y outermost
// (CHW). For int8, y is divided by the tensor's scale and rounded to nearest even, held to +-127.
template <typename In, typename Out>
struct GatherRows {
  const HeadraceRowSource* sources;  // rows of them, in device-visible memory
  Out* y;                            // (rows, width)
  int rows;
  int width;
  int channels;
  int inner;
  int interleaved;
  const float* multiplier;  // channels, or nullptr: 1
  const float* offset;      // channels, or nullptr: 0
  float padding;
  float inverse_scale;  // of int8 outputs
};

inline constexpr int kGatherThreads = 256;
inline constexpr int kGatherItems = 4;

__device__ __forceinline__ void store_scaled(float* to, float value, float) { store(to, value); }
__device__ __forceinline__ void store_scaled(Half* to, float value, float) { store(to, value); }
__device__ __forceinline__ void store_scaled(std::int8_t* to, float value, float inverse) {
  *to = static_cast<std::int8_t>(quantized(value, inverse, 127));
}

// Grid: x over rows, y over the pieces of a row.
template <typename In, typename Out>
__global__ void __launch_bounds__(kGatherThreads) gather_rows(GatherRows<In, Out> p) {
  const int row = static_cast<int>(blockIdx.x);
  const auto* x = static_cast<const In*>(p.sources[row].data);
  const int length =
      HEADRACE_MUTANT(kSourceUnbounded, (x == nullptr ? 0 : p.width), p.sources[row].length);
  const int first = static_cast<int>(blockIdx.y) * kGatherThreads * kGatherItems;
#pragma unroll
  for (int item = 0; item < kGatherItems; ++item) {
    const int i = first + item * kGatherThreads + static_cast<int>(threadIdx.x);
    if (HEADRACE_MUTANT(kWidthUnbounded, i > p.width, i >= p.width)) return;
    float value = p.padding;
    if (i < length) {
      const int plane = i / p.inner;
      const int channel = HEADRACE_MUTANT(kChannelOfPlane, i, plane) % p.channels;
      const int from = p.interleaved != 0
                           ? (plane / p.channels * p.inner + i % p.inner) * p.channels + channel
                           : i;
      value = fmaf(to_float(x[from]), p.multiplier == nullptr ? 1.0f : p.multiplier[channel],
                   p.offset == nullptr ? 0.0f : p.offset[channel]);
    }
    store_scaled(p.y + static_cast<std::int64_t>(row) * p.width + i, value, p.inverse_scale);
  }
}

// Host.
template <typename In, typename Out>
const char* launch_gather_rows(const GatherRows<In, Out>& p, Stream stream) {
  constexpr int kPiece = kGatherThreads * kGatherItems;
  const dim3 grid(static_cast<unsigned>(p.rows),
                  static_cast<unsigned>((p.width + kPiece - 1) / kPiece));
  return launch(gather_rows<In, Out>, grid, kGatherThreads, 0, stream, p);
}

}  // namespace headrace::cuda
