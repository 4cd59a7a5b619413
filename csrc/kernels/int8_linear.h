// INT8 linear layers on the CPU: y = activation(x W + b) with x and W as int8 and sums that are exact.
// The door of this room for who computes.
//
//   Result<PackedLinear> layer = PackedLinear::pack(weights, 384, 1536, false, bias, {.activation = ...});
//   AlignedBytes scratch(linear_scratch_bytes(*layer, rows));
//   linear(*layer, x, rows, y, scratch.data());
//
// Sums are int32 and never saturate or wrap, so they are the same on every instruction set for equal u8
// activations. Then y = fma(sum, row scale * channel scale, bias), and the activation function: GELU with
// erf, sigmoid and tanh are within 1e-6 of the exact ones, GELU with tanh and SiLU within 1e-6 relative.
//
// Odd values. A row with a NaN or (dynamic) an infinity answers NaN everywhere: never a plausible number.
// Static activations clamp an infinity like any other value. A dynamic row whose largest value is below
// 3e-36 counts as zeros: y is activation(b), exactly. Denormal outputs are whatever the thread's mode says.
//
// Threads: any, as long as scratch and y are not shared.
// ---------------------------------------------------------------------------------------------
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <span>

#include "kernels/int8_pack.h"

namespace headrace {

// Runs task(context, 0 .. tasks - 1), in any order, on up to `threads` threads, and returns when all are
// done. The default runs nothing else beside.
struct LinearParallel {
  std::size_t threads = 1;
  void (*run)(std::size_t tasks, void (*task)(void* context, std::size_t index),
              void* context) = nullptr;
};

// Several layers may read one x (query, key, value): it is quantised once. All have the same inputs(),
// isa() and activations.
struct LinearOutput {
  const PackedLinear* layer;
  float* y;  // [rows][outputs], dense
};

// Whether `b` can take part in a call with `a`.
bool reads_alike(const PackedLinear& a, const PackedLinear& b);

std::size_t linear_scratch_bytes(const PackedLinear& layer, std::size_t rows);

// `x`: [rows][inputs], dense, need not be aligned. `scratch`: linear_scratch_bytes(), aligned to 64.
void linear(std::span<const LinearOutput> outputs, const float* x, std::size_t rows,
            std::byte* scratch, const LinearParallel& parallel = {});
inline void linear(const PackedLinear& layer, const float* x, std::size_t rows, float* y,
                   std::byte* scratch, const LinearParallel& parallel = {}) {
  const LinearOutput output{&layer, y};
  linear({&output, 1}, x, rows, scratch, parallel);
}

// What tests and other devices compare: the u8 of x (`stride` bytes a row, a multiple of 64) and what
// they mean; and sums[rows][outputs] of (u8 - zero point) * weight.
void linear_quantise(const PackedLinear& layer, const float* x, std::size_t rows, uint8_t* values,
                     std::size_t stride, Int8Row* made);
void linear_sums(const PackedLinear& layer, const uint8_t* values, std::size_t stride,
                 const Int8Row* made, std::size_t rows, int32_t* sums);

// Memory aligned to 64 bytes that grows and keeps what it has.
class AlignedBytes {
 public:
  explicit AlignedBytes(std::size_t bytes = 0) { reserve(bytes); }
  std::byte* reserve(std::size_t bytes) {
    if (bytes > size_) {
      bytes = (bytes + 63) / 64 * 64;
      memory_.reset(static_cast<std::byte*>(std::aligned_alloc(64, bytes)));
      size_ = memory_ ? bytes : 0;
      if (!memory_) throw std::bad_alloc();
    }
    return memory_.get();
  }
  std::byte* data() { return memory_.get(); }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  std::size_t size_ = 0;
};

}  // namespace headrace
