// 512-bit vpdpbusd: u8 x s8, four products an int32, nothing saturates.
#include <immintrin.h>

#include "kernels/int8_body.h"

namespace headrace {
namespace {

struct Traits {
  using Floats = __m512;
  using Ints = __m512i;
  static constexpr std::size_t kLanes = 16;
  static constexpr std::size_t kRows = 8;  // x 3 vectors: 24 of the 32 registers are sums
  static constexpr std::size_t kChunk = 16;

  static Floats set(float x) { return _mm512_set1_ps(x); }
  static Ints set_int(int32_t x) { return _mm512_set1_epi32(x); }
  static __mmask16 mask(std::size_t n) { return static_cast<__mmask16>((1U << n) - 1); }
  static Floats load(const float* x) { return _mm512_loadu_ps(x); }
  static Floats load_some(const float* x, std::size_t n) {
    return _mm512_maskz_loadu_ps(mask(n), x);
  }
  static Ints load_ints(const void* x) { return _mm512_loadu_si512(x); }
  static void store(float* to, Floats v) { _mm512_storeu_ps(to, v); }
  static void store_some(float* to, Floats v, std::size_t n) {
    _mm512_mask_storeu_ps(to, mask(n), v);
  }
  static void store_ints(int32_t* to, Ints v) { _mm512_storeu_si512(to, v); }
  static Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
  static Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
  static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Ints max_int(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
  static Ints sub_int(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
  static Ints mul_int(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
  static Ints magnitude(Floats v) {
    return _mm512_and_si512(_mm512_castps_si512(v), set_int(0x7fffffff));
  }
  static bool any_beyond(Ints v, int32_t limit) {
    return _mm512_cmpgt_epi32_mask(v, set_int(limit)) != 0;
  }
  static float reduce_min(Floats v) { return _mm512_reduce_min_ps(v); }
  static float reduce_max(Floats v) { return _mm512_reduce_max_ps(v); }
  static int32_t round(float x) { return _mm_cvtss_si32(_mm_set_ss(x)); }
  static Ints to_int(Floats v) { return _mm512_cvtps_epi32(v); }
  static Floats to_float(Ints v) { return _mm512_cvtepi32_ps(v); }
  static Floats exponent(Ints n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, set_int(127)), 23));
  }

  static void quantise_chunk(const float* x, Floats factor, Floats least, Floats most, Ints offset,
                             uint8_t* to) {
    const Floats scaled = min(max(mul(load(x), factor), least), most);  // NaN: least
    const Ints q = _mm512_add_epi32(to_int(scaled), offset);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(q));
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
                   __attribute__((always_inline)) { sums[Q][V] = _mm512_setzero_si512(); });
    });
  }

  template <int R, int NV>
  [[gnu::always_inline]] static void products(const Int8Panel& panel, const uint8_t* a,
                                              std::size_t stride, Ints (&sums)[R][NV]) {
    // Few rows: several chains each, or every vpdpbusd would wait for the one before.
    constexpr int kChains = R * NV <= 3 ? 4 : R * NV <= 6 ? 2 : 1;
    Ints chain[kChains][R][NV];
    each<kChains>([&]<int C>() __attribute__((always_inline)) { zero<R, NV>(chain[C]); });
    const int8_t* w = panel.weights;
    std::size_t e = 0;
    for (; e + kChains <= panel.entries; e += kChains) {
      each<kChains>([&]<int C>() __attribute__((always_inline)) {
        step<R, NV>(w + C * NV * 64, a + C * 4, stride, chain[C]);
      });
      w += kChains * NV * 64;
      a += kChains * 4;
    }
    for (; e < panel.entries; ++e) {
      step<R, NV>(w, a, stride, chain[0]);
      w += NV * 64;
      a += 4;
    }
    each<R>([&]<int Q>() __attribute__((always_inline)) {
      each<NV>([&]<int V>() __attribute__((always_inline)) {
        sums[Q][V] = chain[0][Q][V];
        each<kChains - 1>([&]<int C>() __attribute__((always_inline)) {
          sums[Q][V] = _mm512_add_epi32(sums[Q][V], chain[C + 1][Q][V]);
        });
      });
    });
  }

  template <int R, int NV>
  [[gnu::always_inline]] static void step(const int8_t* w, const uint8_t* a, std::size_t stride,
                                          Ints (&sums)[R][NV]) {
    Ints weights[NV];
    each<NV>([&]<int V>() __attribute__((always_inline)) { weights[V] = load_ints(w + V * 64); });
    each<R>([&]<int Q>() __attribute__((always_inline)) {
      const Ints four = broadcast(a + Q * stride);
      each<NV>([&]<int V>() __attribute__((always_inline)) {
        sums[Q][V] = _mm512_dpbusd_epi32(sums[Q][V], four, weights[V]);
      });
    });
  }
};

using Body = Int8Body<Traits>;
constexpr Int8Table kTable = {
    Traits::kLanes, Body::quantise_dynamic, Body::quantise_static, Body::multiply,
    Body::dot,      Body::activate_all,     Body::softmax};

}  // namespace

const Int8Table* int8_avx512_vnni_table() { return &kTable; }

}  // namespace headrace
