// Reductions over a warp and over a block, and the arithmetic of per-row quantisation.
#pragma once

#include "kernels/cuda/device.cuh"

namespace headrace::cuda {

// Every lane gets the result; all 32 must call.
__device__ __forceinline__ std::uint32_t warp_max(std::uint32_t value) {
#pragma unroll
  for (int distance = HEADRACE_MUTANT(kHalfShuffleTree, 8, 16); distance > 0; distance /= 2) {
    const std::uint32_t other = __shfl_xor_sync(0xffffffffu, value, distance);
    value = other > value ? other : value;
  }
  return value;
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

// Over kWarps warps; `partial` is kWarps values of shared memory of their own, used by no later call.
template <int kWarps>
__device__ __forceinline__ std::uint32_t block_max(std::uint32_t value, std::uint32_t* partial) {
  value = warp_max(value);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  HEADRACE_MUTANT(kNoBarrierInReduction, (void)0, __syncthreads());
#pragma unroll
  for (int i = 0; i < kWarps; ++i) value = partial[i] > value ? partial[i] : value;
  return value;
}

template <int kWarps>
__device__ __forceinline__ float block_sum(float value, float* partial) {
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) sum += partial[i];
  return sum;
}

// |value| as bits: these order like the numbers, infinities and NaN above all of them. A maximum of
// floats would lose NaN.
__device__ __forceinline__ std::uint32_t magnitude(float value) {
  return HEADRACE_MUTANT(kNanLost, (value != value ? 0u : __float_as_uint(fabsf(value))),
                         __float_as_uint(fabsf(value)));
}

// How the values of one row become int8: q = round_to_even(x * inverse), x ~ q * scale, |q| <= qmax.
// A row of magnitudes below 2^-100 is zeros (scale 0); one with an infinity or a NaN has the scale NaN, so
// that what is computed from it is NaN too.
struct RowScale {
  float scale;
  float inverse;
};

__device__ __forceinline__ RowScale row_scale(std::uint32_t largest, int qmax) {
  constexpr std::uint32_t kInfinity = 0x7f800000u;
  constexpr std::uint32_t kTiny = 0x0d800000u;  // 2^-100
  if (largest >= kInfinity) return {__uint_as_float(0x7fc00000u), 0.0f};
  if (largest < kTiny) return {0.0f, 0.0f};
  const float amax = __uint_as_float(largest);
  return {amax / static_cast<float>(qmax), static_cast<float>(qmax) / amax};
}

// To nearest, ties to even, held to +-limit; NaN gives 0.
__device__ __forceinline__ int quantized(float value, float inverse, int limit) {
  const float scaled = value * inverse;
  if (!(scaled == scaled)) return 0;
  const float bound = static_cast<float>(limit);
  const float held = HEADRACE_MUTANT(kNoClamp, scaled, fminf(fmaxf(scaled, -bound), bound));
  return HEADRACE_MUTANT(kTruncates, static_cast<int>(held), __float2int_rn(held));
}

}  // namespace headrace::cuda
