// Runs CUDA kernels on the CPU, for tests only: include it before a kernel's header, which is then
// compiled as it is, by a plain C++ compiler. It stands in for csrc/kernels/cuda/device.cuh.
//
// Each CUDA thread is a fiber (ucontext) that gives way only where threads meet: __syncthreads,
// __shfl_xor_sync, ldmatrix, mma. Blocks run in random order, one at a time. With an even seed the warps of a
// block stay in step; with an odd one a random warp runs as far ahead as barriers allow. Lanes of a
// warp run in random order. Shared memory is poisoned at the start of a block. cp.async is queued: its
// target is poisoned when it is issued and filled when the thread waits for its group, so that what is
// read too early, or overwritten too early, is seen. Threads that meet in different collectives, meet
// after others have left, or wait for ever end the launch with an error that names block and thread.
//
// Not seen: speed, races that none of the schedules brings out, memory order between blocks, and whatever
// device.cuh's PTX does otherwise than written here.
#pragma once

#include <ucontext.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "core/half.h"
#include "cuda/mutants.h"

#define HEADRACE_CUDA_EMULATION
#define HEADRACE_MUTANT(name, wrong, right)                                                   \
  (::headrace::cuda::emulation::mutant == ::headrace::cuda::emulation::Mutant::name ? (wrong) \
                                                                                    : (right))

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(threads)

// ---- CUDA's types and built-in names ------------------------------------------------------------
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
inline dim3 threadIdx;
inline dim3 blockIdx;
inline dim3 blockDim;
inline dim3 gridDim;

namespace headrace::cuda::emulation {

// A buffer of "device memory": its end touches a page that nobody may read or write, what is left of the
// alignment to 16 holds a pattern that must stay, as does a margin before it. cp.async reads only from
// such buffers.
class Memory {
 public:
  explicit Memory(std::size_t bytes);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  std::byte* data() const { return data_; }
  bool margins_intact() const;

 private:
  std::byte* base_;
  std::size_t mapped_;
  std::byte* data_;
  std::size_t bytes_;
};

struct Statistics {
  std::uint64_t mma = 0;
  std::uint64_t bank_conflicts = 0;  // extra passes over shared memory that ldmatrix took
  std::uint64_t launches = 0;
};
inline Statistics statistics;

enum class Meeting { kNone, kBlock, kShuffle, kLdmatrix, kMma };

// Of the running fiber: joins the others; returns when all have come and the work is done.
void meet(Meeting meeting, void* argument);
// Of the running fiber: ends the launch.
[[noreturn]] void fail(const std::string& what);
void queue_copy(void* shared, const void* global, int bytes);
void commit_copies();
void wait_copies(int pending);
unsigned char* shared_memory();

const char* run(dim3 grid, int threads, std::size_t shared_bytes,
                const std::function<void()>& body);

// Of the launches from here on.
void set_schedule(std::uint64_t seed);

struct Shuffle {
  std::uint32_t value;
  int distance;
};
struct Ldmatrix {
  std::uint32_t* to;
  const unsigned char* from;
};
struct Mma {
  std::int32_t* acc;
  const std::uint32_t* a;
  std::uint32_t b[2];
};

}  // namespace headrace::cuda::emulation

inline void __syncthreads() {
  headrace::cuda::emulation::meet(headrace::cuda::emulation::Meeting::kBlock, nullptr);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
  static_assert(sizeof(T) == 4);
  if (mask != 0xffffffffu) headrace::cuda::emulation::fail("a shuffle of a part of a warp");
  headrace::cuda::emulation::Shuffle shuffle{std::bit_cast<std::uint32_t>(value), distance};
  headrace::cuda::emulation::meet(headrace::cuda::emulation::Meeting::kShuffle, &shuffle);
  return std::bit_cast<T>(shuffle.value);
}

inline std::uint32_t __float_as_uint(float value) { return std::bit_cast<std::uint32_t>(value); }
inline float __uint_as_float(std::uint32_t bits) { return std::bit_cast<float>(bits); }
inline int __float2int_rn(float value) { return static_cast<int>(std::lrint(value)); }

// ---- what device.cuh has -----------------------------------------------------------------------
namespace headrace::cuda {

struct Half {
  std::uint16_t bits;
};
using Stream = void*;

inline float to_float(float value) { return value; }
inline float to_float(Half value) { return half_to_float(value.bits); }
inline float to_float(std::uint8_t value) { return value; }
inline float to_float(std::int16_t value) { return value; }
inline void store(float* to, float value) { *to = value; }
// To nearest, ties to even.
inline Half to_half(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000);
  const float size = std::fabs(value);
  if (!(size == size)) return {static_cast<std::uint16_t>(sign | 0x7fff)};
  if (size >= 65520.0f) return {static_cast<std::uint16_t>(sign | 0x7c00)};
  if (size < 0x1p-14f) {  // subnormal: units of 2^-24
    return {static_cast<std::uint16_t>(sign | static_cast<unsigned>(std::lrint(size * 0x1p24f)))};
  }
  const std::uint32_t magnitude = bits & 0x7fffffff;
  const std::uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return {static_cast<std::uint16_t>(sign | ((rounded >> 13) - ((127 - 15) << 10)))};
}
inline void store(Half* to, float value) { *to = to_half(value); }
inline void store(std::int32_t* to, std::int32_t value) { *to = value; }

template <typename T>
void expect_aligned(const T* pointer, std::size_t elements) {
  if (reinterpret_cast<std::uintptr_t>(pointer) % (elements * sizeof(T)) != 0) {
    emulation::fail("an access of several elements is not aligned");
  }
}
template <typename T, typename Value>
void store_pair(T* to, Value left, Value right) {
  expect_aligned(to, 2);
  store(to, left);
  store(to + 1, right);
}
template <typename T>
void load_pack(const T* from, float (&to)[4]) {
  expect_aligned(from, 4);
  for (int i = 0; i < 4; ++i) to[i] = to_float(from[i]);
}
template <typename T>
void load_pack(const T* from, float (&to)[1]) {
  to[0] = to_float(*from);
}
template <int kPack>
void store_pack(std::int8_t* to, const int (&from)[kPack]) {
  expect_aligned(to, kPack);
  for (int i = 0; i < kPack; ++i) to[i] = static_cast<std::int8_t>(from[i]);
}

inline unsigned char* dynamic_shared() { return emulation::shared_memory(); }
inline void cp_async_16(void* shared, const void* global, int bytes) {
  emulation::queue_copy(shared, global, bytes);
}
inline void cp_async_commit() { emulation::commit_copies(); }
template <int kPending>
void cp_async_wait() {
  emulation::wait_copies(kPending);
}
inline void ldmatrix_x4(std::uint32_t (&to)[4], const void* shared) {
  emulation::Ldmatrix load{to, static_cast<const unsigned char*>(shared)};
  emulation::meet(emulation::Meeting::kLdmatrix, &load);
}
inline void mma_s8(std::int32_t (&acc)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                   std::uint32_t b1) {
  emulation::Mma mma{acc, a, {b0, b1}};
  emulation::meet(emulation::Meeting::kMma, &mma);
}

template <typename... Parameters, typename... Arguments>
const char* launch(void (*kernel)(Parameters...), dim3 grid, int threads, std::size_t shared_bytes,
                   Stream, Arguments... arguments) {
  return emulation::run(grid, threads, shared_bytes, [&] { kernel(arguments...); });
}

inline int multiprocessors() { return 4; }

}  // namespace headrace::cuda
