// Per-token quantisation: x (rows, k) of float or Half -> q (rows, k) int8 and one scale a row, with
// x ~ q * scale and |q| <= qmax (reduce.cuh has the arithmetic). One launch, one pass over global
// memory (the second finds the row in the L1 cache).
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/reduce.cuh"

namespace headrace::cuda {

template <typename T>
struct QuantizeRows {
  const T* x;  // row i begins at i * ldx
  std::int64_t ldx;
  std::int8_t* q;  // row i begins at i * ldq; what lies between k and ldq is left alone
  std::int64_t ldq;
  float* scale;
  int rows;
  int k;
  int qmax;
};

inline constexpr int kQuantizeThreads = 128;
// One warp a row up to here: no barrier, four rows a block.
inline constexpr int kOneWarpColumns = 1024;

// kWarpsPerRow: 1, or all of the block's (dynamic shared memory: a word a warp). kPack: 4 where rows are
// aligned for it and k is a multiple of it, else 1.
template <typename T, int kWarpsPerRow, int kPack>
__global__ void __launch_bounds__(kQuantizeThreads) quantize_rows(QuantizeRows<T> p) {
  constexpr int kRowsPerBlock = kQuantizeThreads / 32 / kWarpsPerRow;
  constexpr int kLanes = 32 * kWarpsPerRow;
  const int row =
      static_cast<int>(blockIdx.x) * kRowsPerBlock + static_cast<int>(threadIdx.x) / kLanes;
  const int first = static_cast<int>(threadIdx.x) % kLanes * kPack;
  // Rows past the end take part in the collectives, with nothing.
  const int k = row < p.rows ? p.k : 0;
  if (HEADRACE_MUTANT(kReturnBeforeShuffle, first >= k, false)) return;
  const T* x = p.x + (k > 0 ? row * p.ldx : 0);

  std::uint32_t largest = 0;
  for (int i = first; i < k; i += kLanes * kPack) {
    float value[kPack];
    load_pack(x + i, value);
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      const std::uint32_t here = magnitude(value[j]);
      largest = here > largest ? here : largest;
    }
  }
  if constexpr (kWarpsPerRow == 1) {
    largest = warp_max(largest);
  } else {
    largest = block_max<kWarpsPerRow>(largest, reinterpret_cast<std::uint32_t*>(dynamic_shared()));
  }
  if (k == 0) return;
  const RowScale scale = row_scale(largest, p.qmax);
  std::int8_t* q = p.q + row * p.ldq;
  for (int i = first; i < k; i += kLanes * kPack) {
    float value[kPack];
    int result[kPack];
    load_pack(x + i, value);
#pragma unroll
    for (int j = 0; j < kPack; ++j) result[j] = quantized(value[j], scale.inverse, p.qmax);
    store_pack(q + i, result);
  }
  if (first == 0) p.scale[row] = scale.scale;
}

// Host.
template <typename T, int kPack>
const char* launch_quantize_packs(const QuantizeRows<T>& p, Stream stream) {
  constexpr int kWarps = kQuantizeThreads / 32;
  if (p.k <= kOneWarpColumns) {
    return launch(quantize_rows<T, 1, kPack>,
                  dim3(static_cast<unsigned>((p.rows + kWarps - 1) / kWarps)), kQuantizeThreads, 0,
                  stream, p);
  }
  return launch(quantize_rows<T, kWarps, kPack>, dim3(static_cast<unsigned>(p.rows)),
                kQuantizeThreads, kWarps * sizeof(std::uint32_t), stream, p);
}

template <typename T>
const char* launch_quantize_rows(const QuantizeRows<T>& p, Stream stream) {
  const bool packs = p.k % 4 == 0 && p.ldx % 4 == 0 && p.ldq % 4 == 0 &&
                     reinterpret_cast<std::uintptr_t>(p.x) % (4 * sizeof(T)) == 0 &&
                     reinterpret_cast<std::uintptr_t>(p.q) % 4 == 0;
  return HEADRACE_MUTANT(kPacksUnaligned, true, packs) ? launch_quantize_packs<T, 4>(p, stream)
                                                       : launch_quantize_packs<T, 1>(p, stream);
}

}  // namespace headrace::cuda
