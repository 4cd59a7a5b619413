// linear_w8a8 in one launch for few rows (m <= 16 a block): each block quantises its 16 rows itself, into
// shared memory, while the first weights are under way, then multiplies as gemm_s8.cuh does. Small
// models are bound by launches; the rows are read n / 64 times, from the L2 cache.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemm_s8.cuh"
#include "kernels/cuda/reduce.cuh"

namespace headrace::cuda {

template <typename In, typename Out>
struct FusedLinear {
  const In* x;  // row i begins at i * ldx
  std::int64_t ldx;
  int qmax;
  Linear<Out> linear;  // without a and row_scale
};

using FusedTile = SmallTile;
// The rows of 4096 columns and the stages fit into the 99 KiB that every architecture since sm_80 has.
inline constexpr int kFusedColumns = 4096;

inline constexpr std::size_t fused_shared_bytes(int k) {
  const int steps = (k + FusedTile::kBK - 1) / FusedTile::kBK;
  return std::size_t{FusedTile::kStages} * FusedTile::kStageB +
         static_cast<std::size_t>(steps) * FusedTile::kStageA + FusedTile::kBM * sizeof(float);
}
static_assert(fused_shared_bytes(kFusedColumns) <= 99 * 1024);

// Quantises rows [first, first + 16) into the panel: a stage (gemm_s8.cuh) a step. Columns past k are left as
// they are: the weights' are zero. Rows past m are: they are not stored.
template <typename In, typename Out>
__device__ __forceinline__ void quantize_panel(const FusedLinear<In, Out>& p, int first,
                                               std::int8_t* panel, float* scales) {
  constexpr int kBK = FusedTile::kBK;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  for (int row = warp; row < FusedTile::kBM; row += FusedTile::kThreads / 32) {
    const int k = first + row < p.linear.m ? p.linear.k : 0;
    const In* x = p.x + (k > 0 ? (first + row) * p.ldx : 0);
    std::uint32_t largest = 0;
    for (int i = lane; i < k; i += 32) {
      const std::uint32_t here = magnitude(to_float(x[i]));
      largest = here > largest ? here : largest;
    }
    const RowScale scale = row_scale(warp_max(largest), p.qmax);
    if (lane == 0) scales[row] = scale.scale;
    for (int i = lane; i < k; i += 32) {
      const int q = quantized(to_float(x[i]), scale.inverse, p.qmax);
      const int chunk = i % kBK / 16;
      panel[i / kBK * FusedTile::kStageA + row * kBK + swizzle<kBK>(row, chunk) * 16 + i % 16] =
          static_cast<std::int8_t>(q);
    }
  }
}

template <typename In, typename Out>
__global__ void __launch_bounds__(FusedTile::kThreads) fused_linear(FusedLinear<In, Out> p) {
  using T = FusedTile;
  auto* stages = reinterpret_cast<std::int8_t*>(dynamic_shared());
  std::int8_t* panel = stages + T::kStages * T::kStageB;
  const int row = static_cast<int>(blockIdx.x) * T::kBM;
  const int column = static_cast<int>(blockIdx.y) * T::kBN;
  const int steps = (p.linear.k + T::kBK - 1) / T::kBK;
  auto* scales = reinterpret_cast<float*>(panel + steps * T::kStageA);
  const SliceLoader<T::kBN, T::kBK, T::kThreads> b(p.linear.w, p.linear.ldw, column, p.linear.n,
                                                   p.linear.k);
  Accumulators<T> acc = {};
#pragma unroll
  for (int step = 0; step < T::kStages - 1; ++step) {
    if (step < steps) b.load(stages + step * T::kStageB, step * T::kBK);
    cp_async_commit();
  }
  quantize_panel(p, row, panel, scales);
  // The loop's first barrier also shows the panel to all.
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<T::kStages - 2>();
    HEADRACE_MUTANT(kPanelUnseen, (step == 0 ? (void)0 : __syncthreads()), __syncthreads());
    const int next = step + T::kStages - 1;
    if (next < steps) b.load(stages + next % T::kStages * T::kStageB, next * T::kBK);
    cp_async_commit();
    multiply<T>(acc, panel + step * T::kStageA, stages + step % T::kStages * T::kStageB);
  }
  store_tile<T>(acc, p.linear, row, column, scales, row);
}

// Host. k <= kFusedColumns.
template <typename In, typename Out>
const char* launch_fused_linear(const FusedLinear<In, Out>& p, Stream stream) {
  using T = FusedTile;
  const dim3 grid(static_cast<unsigned>((p.linear.m + T::kBM - 1) / T::kBM),
                  static_cast<unsigned>((p.linear.n + T::kBN - 1) / T::kBN));
  return launch(fused_linear<In, Out>, grid, T::kThreads, fused_shared_bytes(p.linear.k), stream,
                p);
}

}  // namespace headrace::cuda
