// y = activation((a * w^T) * (row_scale * column_scale) + bias): int8 operands, int32 sums (exact: integer
// addition has no order), tensor cores.
//
// a (m, k) by rows and w (n, k), a row an output channel; rows are aligned to 16 bytes, k is whatever it
// is. A block computes a tile of kBM x kBN. It walks k in steps of kBK bytes through a ring of kStages
// stages of shared memory that cp.async fills ahead. Within a stage the 16-byte chunks of a row are
// permuted (swizzle), so that the eight rows that ldmatrix reads at a time lie in different banks.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/int8_cuda.h"

namespace headrace::cuda {

template <typename Out>
struct Linear {
  const std::int8_t* a;
  std::int64_t lda;
  const float* row_scale;  // m
  const std::int8_t* w;
  std::int64_t ldw;
  const float* column_scale;  // n
  const float* bias;          // n, or nullptr
  Out* y;                     // row i begins at i * ldy
  std::int64_t ldy;
  int m;
  int n;
  int k;
  int activation;  // HeadraceActivation
};

template <int kBlockM, int kBlockN, int kBlockK, int kWarpRows, int kWarpColumns, int kRing>
struct Tile {
  static constexpr int kBM = kBlockM;
  static constexpr int kBN = kBlockN;
  static constexpr int kBK = kBlockK;
  static constexpr int kWarpsM = kWarpRows;
  static constexpr int kWarpsN = kWarpColumns;
  static constexpr int kStages = kRing;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kRowTiles = kBM / kWarpsM / 16;    // of 16 rows, a warp
  static constexpr int kColumnTiles = kBN / kWarpsN / 8;  // of 8 columns, a warp
  static constexpr int kStageA = kBM * kBK;
  static constexpr int kStageB = kBN * kBK;
  static constexpr std::size_t kSharedBytes = std::size_t{kStages} * (kStageA + kStageB);
  static_assert(kBK == 64 || kBK == 128);
  static_assert(kBM % (16 * kWarpsM) == 0 && kBN % (16 * kWarpsN) == 0 && kStages >= 2);
};

// m to 16; n and m moderate; all multiprocessors full.
using SmallTile = Tile<16, 64, 128, 1, 4, 4>;
using MediumTile = Tile<64, 64, 64, 2, 2, 4>;
using LargeTile = Tile<128, 128, 64, 2, 2, 4>;

// Where chunk `chunk` of row `row` lies in its row of kBK bytes.
template <int kBK>
__device__ __forceinline__ int swizzle(int row, int chunk) {
  return kBK == 128 ? chunk ^ (row & 7) : chunk ^ ((row >> 1) & 3);
}

// This thread's share of the copies of a kRows x kBK slice. What lies outside of the matrix is zero.
template <int kRows, int kBK, int kThreads>
class SliceLoader {
 public:
  __device__ __forceinline__ SliceLoader(const std::int8_t* matrix, std::int64_t ld, int first,
                                         int rows, int k)
      : k_(k) {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int row = first + (static_cast<int>(threadIdx.x) + i * kThreads) / kChunks;
      const bool inside = HEADRACE_MUTANT(kLoadRowUnbounded, true, row < rows);
      from_[i] = inside ? matrix + row * ld : nullptr;
    }
    matrix_ = matrix;
  }

  __device__ __forceinline__ void load(std::int8_t* stage, int k0) const {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int index = static_cast<int>(threadIdx.x) + i * kThreads;
      const int row = index / kChunks;
      const int chunk = index % kChunks;
      const int column = k0 + chunk * 16 + HEADRACE_MUTANT(kMisalignedCopy, 4, 0);
      int bytes = k_ - column;
      bytes = bytes > 16 ? 16 : bytes;
      bytes = HEADRACE_MUTANT(kTailUnmasked, (bytes > 0 ? 16 : 0), bytes);
      const bool inside = bytes > 0 && from_[i] != nullptr;
      cp_async_16(stage + row * kBK + swizzle<kBK>(row, chunk) * 16,
                  inside ? from_[i] + column : matrix_, inside ? bytes : 0);
    }
  }

 private:
  static constexpr int kChunks = kBK / 16;
  static constexpr int kCopies = kRows * kChunks / kThreads;
  static_assert(kRows * kChunks % kThreads == 0);

  const std::int8_t* from_[kCopies];
  const std::int8_t* matrix_;  // aligned: a copy of no bytes needs an address too
  int k_;
};

template <typename T>
using Accumulators = std::int32_t[T::kRowTiles][T::kColumnTiles][4];

// acc += the product of two stages.
template <typename T>
__device__ __forceinline__ void multiply(Accumulators<T>& acc, const std::int8_t* stage_a,
                                         const std::int8_t* stage_b) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int first_row = warp / T::kWarpsN * (T::kRowTiles * 16);
  const int first_column = warp % T::kWarpsN * (T::kColumnTiles * 8);
#pragma unroll
  for (int k = 0; k < T::kBK / 16; k += 2) {  // in chunks; an mma takes two
    std::uint32_t a[T::kRowTiles][4];
#pragma unroll
    for (int i = 0; i < T::kRowTiles; ++i) {
      // Registers: rows 0-7, rows 8-15, each for the first chunk, then for the second.
      const int row = first_row + i * 16 + lane % 16;
      ldmatrix_x4(a[i], stage_a + row * T::kBK + swizzle<T::kBK>(row, k + lane / 16) * 16);
    }
#pragma unroll
    for (int j = 0; j < T::kColumnTiles; j += 2) {
      // Registers: columns 0-7 with both chunks, then columns 8-15.
      std::uint32_t b[4];
      const int row = first_column + j * 8 + lane % 8 + lane / 16 * 8;
      const int chunk = HEADRACE_MUTANT(kFragmentOrder, (lane / 8 % 2 ^ 1), lane / 8 % 2);
      const int place =
          HEADRACE_MUTANT(kUnswizzledRead, k + chunk, swizzle<T::kBK>(row, k + chunk));
      ldmatrix_x4(b, stage_b + row * T::kBK + place * 16);
#pragma unroll
      for (int i = 0; i < T::kRowTiles; ++i) {
        mma_s8(acc[i][j], a[i], b[0], b[1]);
        mma_s8(acc[i][j + 1], a[i], b[2], HEADRACE_MUTANT(kFragmentRegister, b[1], b[3]));
      }
    }
  }
}

__device__ __forceinline__ float activate(float x, int activation) {
  switch (activation) {
    case HEADRACE_RELU:
      return x < 0.0f ? 0.0f : x;  // NaN stays
    case HEADRACE_GELU:
      return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case HEADRACE_SILU:
      return x / (1.0f + expf(-x));
    default:
      return x;
  }
}

// Whether the sums themselves are asked for.
template <typename Out>
inline constexpr bool kRaw = false;
template <>
inline constexpr bool kRaw<std::int32_t> = true;

// The order of the operations is that of kernels/int8_linear.h, so that every device gives the same bits
// where the activation does.
template <typename Out>
__device__ __forceinline__ auto finished(std::int32_t acc, float row, float column, float bias,
                                         int activation) {
  if constexpr (kRaw<Out>) {
    return acc;
  } else {
    return activate(fmaf(static_cast<float>(acc), row * column, bias), activation);
  }
}

// `row_scale` is by the row within the matrix, less `scale_first` (the fused kernel has its tile's only).
template <typename T, typename Out>
__device__ __forceinline__ void store_tile(const Accumulators<T>& acc, const Linear<Out>& p,
                                           int block_row, int block_column, const float* row_scale,
                                           int scale_first) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int first_row = block_row + warp / T::kWarpsN * (T::kRowTiles * 16) + lane / 4;
  const int first_column = block_column + warp % T::kWarpsN * (T::kColumnTiles * 8) + lane % 4 * 2;
  const bool pairs =
      p.ldy % 2 == 0 && reinterpret_cast<std::uintptr_t>(p.y) % (2 * sizeof(Out)) == 0;
#pragma unroll
  for (int j = 0; j < T::kColumnTiles; ++j) {
    const int column = first_column + j * 8;
    if (HEADRACE_MUTANT(kStoreColumnUnbounded, column > p.n, column >= p.n)) continue;
    const bool two = column + 1 < p.n;
    float scale[2] = {};
    float bias[2] = {};
    if constexpr (!kRaw<Out>) {
      scale[0] = p.column_scale[column];
      if (two) scale[1] = p.column_scale[column + 1];
      if (p.bias != nullptr) {
        bias[0] = p.bias[column];
        if (two) bias[1] = p.bias[column + 1];
      }
    }
#pragma unroll
    for (int i = 0; i < T::kRowTiles; ++i) {
#pragma unroll
      for (int upper = 0; upper < 2; ++upper) {
        const int row = first_row + i * 16 + upper * 8;
        if (HEADRACE_MUTANT(kStoreRowUnbounded, row > p.m, row >= p.m)) continue;
        float by_row = 0.0f;
        if constexpr (!kRaw<Out>) {
          by_row = row_scale[HEADRACE_MUTANT(kScalesMixed, (column % p.m), row) - scale_first];
        }
        const auto left =
            finished<Out>(acc[i][j][upper * 2], by_row, scale[0], bias[0], p.activation);
        const auto right =
            finished<Out>(acc[i][j][upper * 2 + 1], by_row, scale[1], bias[1], p.activation);
        Out* y = p.y + row * p.ldy + column;
        if (two && HEADRACE_MUTANT(kPairsUnaligned, true, pairs)) {
          store_pair(y, left, right);
        } else {
          store(y, left);
          if (two) store(y + 1, right);
        }
      }
    }
  }
}

// Grid: x over the tiles of m (neighbours share their weights in the L2 cache), y over those of n.
template <typename T, typename Out>
__global__ void __launch_bounds__(T::kThreads) gemm_s8(Linear<Out> p) {
  auto* stages_a = reinterpret_cast<std::int8_t*>(dynamic_shared());
  std::int8_t* stages_b = stages_a + T::kStages * T::kStageA;
  const int row = static_cast<int>(blockIdx.x) * T::kBM;
  const int column = static_cast<int>(blockIdx.y) * T::kBN;
  const SliceLoader<T::kBM, T::kBK, T::kThreads> a(p.a, p.lda, row, p.m, p.k);
  const SliceLoader<T::kBN, T::kBK, T::kThreads> b(p.w, p.ldw, column, p.n, p.k);
  const int steps = (p.k + T::kBK - 1) / T::kBK;

  Accumulators<T> acc = {};
#pragma unroll
  for (int step = 0; step < T::kStages - 1; ++step) {
    if (step < steps) {
      a.load(stages_a + step * T::kStageA, step * T::kBK);
      b.load(stages_b + step * T::kStageB, step * T::kBK);
    }
    cp_async_commit();  // an empty group too: the count of groups tells the stage
  }
  for (int step = 0; step < steps; ++step) {
    const int next = step + T::kStages - 1;
    const auto refill = [&] {
      const int stage = HEADRACE_MUTANT(kWrongStage, next + 1, next) % T::kStages;
      a.load(stages_a + stage * T::kStageA, next * T::kBK);
      b.load(stages_b + stage * T::kStageB, next * T::kBK);
    };
    if (HEADRACE_MUTANT(kRefillBeforeBarrier, next < steps, false)) refill();
    HEADRACE_MUTANT(kWaitTooFew, cp_async_wait<T::kStages - 1>(), cp_async_wait<T::kStages - 2>());
    // This step's stage is there for all, and all are done with the one before, which is refilled now.
    HEADRACE_MUTANT(kNoBarrierInLoop, (void)0, __syncthreads());
    if (HEADRACE_MUTANT(kRefillBeforeBarrier, false, next < steps)) refill();
    cp_async_commit();
    const int stage = step % T::kStages;
    multiply<T>(acc, stages_a + stage * T::kStageA, stages_b + stage * T::kStageB);
  }
  store_tile<T>(acc, p, row, column, p.row_scale, 0);
}

// Host.
template <typename T, typename Out>
const char* launch_gemm(const Linear<Out>& p, Stream stream) {
  const dim3 grid(static_cast<unsigned>((p.m + T::kBM - 1) / T::kBM),
                  static_cast<unsigned>((p.n + T::kBN - 1) / T::kBN));
  return launch(gemm_s8<T, Out>, grid, T::kThreads, T::kSharedBytes, stream, p);
}

// The large tile has the most arithmetic a byte and pays once every multiprocessor has one.
template <typename Out>
const char* launch_linear(const Linear<Out>& p, Stream stream) {
  if (p.m <= SmallTile::kBM) return launch_gemm<SmallTile>(p, stream);
  const std::int64_t large = std::int64_t{(p.m + LargeTile::kBM - 1) / LargeTile::kBM} *
                             ((p.n + LargeTile::kBN - 1) / LargeTile::kBN);
  if (large >= multiprocessors()) return launch_gemm<LargeTile>(p, stream);
  return launch_gemm<MediumTile>(p, stream);
}

}  // namespace headrace::cuda
