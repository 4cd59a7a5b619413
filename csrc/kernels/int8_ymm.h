// What the two 256-bit files share: everything but the product. In an unnamed namespace on purpose: each
// file that includes it, compiled with its own flags, gets its own.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/int8_body.h"

namespace headrace {
namespace {

struct Ymm {
  using Floats = __m256;
  using Ints = __m256i;
  static constexpr std::size_t kLanes = 8;
  static constexpr std::size_t kChunk = 32;

  static Floats set(float x) { return _mm256_set1_ps(x); }
  static Ints set_int(int32_t x) { return _mm256_set1_epi32(x); }
  static Ints mask(std::size_t n) {
    return _mm256_cmpgt_epi32(set_int(static_cast<int32_t>(n)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Floats load(const float* x) { return _mm256_loadu_ps(x); }
  static Floats load_some(const float* x, std::size_t n) { return _mm256_maskload_ps(x, mask(n)); }
  static Ints load_ints(const void* x) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(x));
  }
  static void store(float* to, Floats v) { _mm256_storeu_ps(to, v); }
  static void store_some(float* to, Floats v, std::size_t n) {
    _mm256_maskstore_ps(to, mask(n), v);
  }
  static void store_ints(int32_t* to, Ints v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), v);
  }
  static Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
  static Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
  static Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats div(Floats a, Floats b) { return _mm256_div_ps(a, b); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static Ints max_int(Ints a, Ints b) { return _mm256_max_epi32(a, b); }
  static Ints sub_int(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
  static Ints mul_int(Ints a, Ints b) { return _mm256_mullo_epi32(a, b); }
  static Ints magnitude(Floats v) {
    return _mm256_and_si256(_mm256_castps_si256(v), set_int(0x7fffffff));
  }
  static bool any_beyond(Ints v, int32_t limit) {
    return _mm256_movemask_epi8(_mm256_cmpgt_epi32(v, set_int(limit))) != 0;
  }
  static float reduce_min(Floats v) {
    __m128 x = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_min_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_min_ss(x, _mm_shuffle_ps(x, x, 1)));
  }
  static float reduce_max(Floats v) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
  }
  static int32_t round(float x) { return _mm_cvtss_si32(_mm_set_ss(x)); }
  static Ints to_int(Floats v) { return _mm256_cvtps_epi32(v); }
  static Floats to_float(Ints v) { return _mm256_cvtepi32_ps(v); }
  static Floats exponent(Ints n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, set_int(127)), 23));
  }

  static Ints quantise_one(const float* x, Floats factor, Floats least, Floats most, Ints offset) {
    const Floats scaled = min(max(mul(load(x), factor), least), most);  // NaN: least
    return _mm256_add_epi32(to_int(scaled), offset);
  }
  static void quantise_chunk(const float* x, Floats factor, Floats least, Floats most, Ints offset,
                             uint8_t* to) {
    const Ints a = _mm256_packs_epi32(quantise_one(x, factor, least, most, offset),
                                      quantise_one(x + 8, factor, least, most, offset));
    const Ints b = _mm256_packs_epi32(quantise_one(x + 16, factor, least, most, offset),
                                      quantise_one(x + 24, factor, least, most, offset));
    // Packing works within 128-bit halves: dwords come out as 0 4 1 5 ...
    const Ints bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(a, b),
                                                   _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bytes);
  }

  static Ints broadcast(const uint8_t* a) {
    int32_t four = 0;
    std::memcpy(&four, a, sizeof(four));
    return set_int(four);
  }

  template <int R, int NV>
  [[gnu::always_inline]] static void zero(Ints (&sums)[R][NV]) {
    each<R>([&]<int Q>() __attribute__((always_inline)) {
      each<NV>([&]<int V>()
                   __attribute__((always_inline)) { sums[Q][V] = _mm256_setzero_si256(); });
    });
  }
};

}  // namespace
}  // namespace headrace
