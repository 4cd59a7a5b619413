// What the CUDA kernels need of the device beyond C++: PTX that has no intrinsic, conversions, the
// launch. The kernels hold no asm of their own, so that tests/cuda/emulation.h can stand in for this
// file and run them unmodified on a CPU. sm_80 and later (cp.async, mma.m16n8k32).
//
// HEADRACE_MUTANT(name, wrong, right) is `right`. The tests compile `wrong` in beside it and choose at
// run time: they must notice every defect that is named in a kernel.
#pragma once

#ifndef HEADRACE_CUDA_EMULATION

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#define HEADRACE_MUTANT(name, wrong, right) right

namespace headrace::cuda {

using Half = __half;
using Stream = cudaStream_t;

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(Half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(std::uint8_t value) { return value; }
__device__ __forceinline__ float to_float(std::int16_t value) { return value; }
__device__ __forceinline__ void store(float* to, float value) { *to = value; }
__device__ __forceinline__ void store(Half* to, float value) { *to = __float2half_rn(value); }
__device__ __forceinline__ void store(std::int32_t* to, std::int32_t value) { *to = value; }
// `to` is aligned to two elements.
__device__ __forceinline__ void store_pair(float* to, float left, float right) {
  *reinterpret_cast<float2*>(to) = make_float2(left, right);
}
__device__ __forceinline__ void store_pair(Half* to, float left, float right) {
  *reinterpret_cast<__half2*>(to) = __floats2half2_rn(left, right);
}
__device__ __forceinline__ void store_pair(std::int32_t* to, std::int32_t left,
                                           std::int32_t right) {
  *reinterpret_cast<int2*>(to) = make_int2(left, right);
}

// Four values at once, aligned to their size together.
__device__ __forceinline__ void load_pack(const float* from, float (&to)[4]) {
  const float4 four = *reinterpret_cast<const float4*>(from);
  to[0] = four.x;
  to[1] = four.y;
  to[2] = four.z;
  to[3] = four.w;
}
__device__ __forceinline__ void load_pack(const Half* from, float (&to)[4]) {
  const uint2 four = *reinterpret_cast<const uint2*>(from);
  const float2 low = __half22float2(reinterpret_cast<const __half2&>(four.x));
  const float2 high = __half22float2(reinterpret_cast<const __half2&>(four.y));
  to[0] = low.x;
  to[1] = low.y;
  to[2] = high.x;
  to[3] = high.y;
}
template <typename T>
__device__ __forceinline__ void load_pack(const T* from, float (&to)[1]) {
  to[0] = to_float(*from);
}
__device__ __forceinline__ void store_pack(std::int8_t* to, const int (&from)[4]) {
  *reinterpret_cast<char4*>(to) =
      make_char4(static_cast<signed char>(from[0]), static_cast<signed char>(from[1]),
                 static_cast<signed char>(from[2]), static_cast<signed char>(from[3]));
}
__device__ __forceinline__ void store_pack(std::int8_t* to, const int (&from)[1]) {
  *to = static_cast<std::int8_t>(from[0]);
}

// The block's dynamic shared memory, aligned to 128 bytes.
__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

// Starts a copy of 16 bytes, both addresses aligned to 16; of them `bytes` (0..16) come from `global`,
// the rest become zero. Nothing is read for bytes = 0.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, int bytes) {
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(global), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// Waits until at most kPending of this thread's latest groups are under way.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Four 8x8 matrices of 16-bit elements. Lane i gives the address (aligned to 16) of row i % 8 of matrix
// i / 8; register j of lane i becomes the four bytes from 4 * (i % 4) on of row i / 4 of matrix j.
__device__ __forceinline__ void ldmatrix_x4(std::uint32_t (&to)[4], const void* shared) {
  const auto from = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

// acc (16x8, int32) += a (16x32, int8, by rows) * b (32x8, int8, by columns), in the fragment layout of
// the PTX ISA, "Matrix Fragments for mma.m16n8k32".
__device__ __forceinline__ void mma_s8(std::int32_t (&acc)[4], const std::uint32_t (&a)[4],
                                       std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+r"(acc[0]), "+r"(acc[1]), "+r"(acc[2]), "+r"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Host: queues the kernel on `stream`; nullptr or what CUDA has against it.
template <typename... Parameters, typename... Arguments>
const char* launch(void (*kernel)(Parameters...), dim3 grid, int threads, std::size_t shared_bytes,
                   Stream stream, Arguments... arguments) {
  if (shared_bytes > 48 * 1024) {  // more must be asked for
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  kernel<<<grid, static_cast<unsigned>(threads), shared_bytes, stream>>>(arguments...);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Host: multiprocessors of the current device, 1 where there is none.
inline int multiprocessors() {
  int device = 0;
  int count = 1;
  if (cudaGetDevice(&device) != cudaSuccess) return 1;
  if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
    return 1;
  }
  return count;
}

}  // namespace headrace::cuda

#endif  // HEADRACE_CUDA_EMULATION
