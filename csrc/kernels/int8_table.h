// What a file an ISA offers to int8_linear.cc: three functions over raw memory. Only plain types here:
// the files are compiled with their own flags, and an inline function of the standard library compiled
// so might be the copy that the whole program uses.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/int8_isa.h"

namespace headrace {

enum class LinearActivation : uint8_t { kNone, kRelu, kGeluErf, kGeluTanh, kSilu, kSigmoid, kTanh };

// How a row became u8: x = (u8 - zero_point) * scale. scale NaN: the row had a NaN or (dynamic) an
// infinity.
struct Int8Row {
  float scale;
  int32_t zero_point;
};

// Up to `vectors` * lanes output channels. The weights are `groups` entries; an entry holds, for each
// channel, the four weights of one group of four inputs. Entries 2i and 2i+1, i < pairs, may be added in
// int16; the rest may not (AVX2 only, elsewhere pairs is 0).
struct Int8Panel {
  const int8_t* weights;  // 64-byte aligned
  const uint32_t*
      order;  // AVX2: an entry's first input (a multiple of 4); else null: entry i has 4i
  uint32_t entries;
  uint32_t pairs;
  uint32_t vectors;   // 1 to 3
  uint32_t channel;   // the first
  uint32_t channels;  // that exist; the rest of the last vector is padding
};

struct Int8Matrix {
  const Int8Panel* panels;
  // A float or int an output channel, padded to whole vectors.
  const float* scales;
  const float* bias;
  const int32_t* sums;  // of the channel's weights
  std::size_t channels;
  LinearActivation activation;
};

struct Int8Rows {
  const uint8_t* values;  // 64-byte aligned
  std::size_t stride;     // a multiple of 64; zero beyond the inputs
  const Int8Row* rows;
  std::size_t count;
};

struct Int8Table {
  std::size_t lanes;  // channels a vector
  // A row of `n` floats to u8 of 0 to `max`, zero-padded to a multiple of 64. Dynamic: its own range.
  Int8Row (*quantise_dynamic)(const float* x, std::size_t n, int32_t max, uint8_t* to);
  // With a given scale and zero point, clamped to [low, high].
  Int8Row (*quantise_static)(const float* x, std::size_t n, float scale, int32_t zero_point,
                             int32_t low, int32_t high, uint8_t* to);
  // Panels [first, last) of all rows. `y` is [rows][channels]; or, with `raw`, the int32 sums without
  // the zero points go there instead.
  void (*multiply)(const Int8Matrix& matrix, std::size_t first, std::size_t last,
                   const Int8Rows& rows, float* y, int32_t* raw);
  // What the small layers between INT8 ones take (linear_chain.h). `a` need not be aligned.
  float (*dot)(const float* a, const float* b, std::size_t n);
  void (*activate)(LinearActivation activation, float* y, std::size_t n);
  // exp(y - max) / sum of them, `n` values in place. A NaN among them makes all NaN.
  void (*softmax)(float* y, std::size_t n);
};

// Null: not in this build.
const Int8Table* int8_table(Isa isa);

const Int8Table* int8_reference_table();
const Int8Table* int8_avx2_table();
const Int8Table* int8_avx_vnni_table();
const Int8Table* int8_avx512_vnni_table();

}  // namespace headrace
