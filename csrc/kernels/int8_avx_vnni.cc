// 256-bit vpdpbusd (client processors without AVX-512): u8 x s8, four products an int32.
#include "kernels/int8_body.h"
#include "kernels/int8_ymm.h"

namespace headrace {
namespace {

struct Traits : Ymm {
  static constexpr std::size_t kRows = 4;  // x 3 vectors: 12 of the 16 registers are sums

  template <int R, int NV>
  static void products(const Int8Panel& panel, const uint8_t* a, std::size_t stride,
                       Ints (&sums)[R][NV]) {
    // Few rows: several chains each, or every vpdpbusd would wait for the one before.
    constexpr int kChains = R * NV <= 3 ? 4 : R * NV <= 6 ? 2 : 1;
    Ints chain[kChains][R][NV];
    for (int c = 0; c < kChains; ++c) zero<R, NV>(chain[c]);
    const int8_t* w = panel.weights;
    std::size_t e = 0;
    for (; e + kChains <= panel.entries; e += kChains) {
#pragma GCC unroll 4
      for (int c = 0; c < kChains; ++c) {
        step<R, NV>(w, a, stride, chain[c]);
        w += NV * 32;
        a += 4;
      }
    }
    for (; e < panel.entries; ++e) {
      step<R, NV>(w, a, stride, chain[0]);
      w += NV * 32;
      a += 4;
    }
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < NV; ++v) {
        sums[r][v] = chain[0][r][v];
        for (int c = 1; c < kChains; ++c) {
          sums[r][v] = _mm256_add_epi32(sums[r][v], chain[c][r][v]);
        }
      }
    }
  }

  template <int R, int NV>
  static void step(const int8_t* w, const uint8_t* a, std::size_t stride, Ints (&sums)[R][NV]) {
    Ints weights[NV];
#pragma GCC unroll 3
    for (int v = 0; v < NV; ++v) weights[v] = load_ints(w + v * 32);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Ints four = broadcast(a + r * stride);
#pragma GCC unroll 3
      for (int v = 0; v < NV; ++v) {
        sums[r][v] = _mm256_dpbusd_avx_epi32(sums[r][v], four, weights[v]);
      }
    }
  }
};

using Body = Int8Body<Traits>;
constexpr Int8Table kTable = {
    Traits::kLanes, Body::quantise_dynamic, Body::quantise_static, Body::multiply,
    Body::dot,      Body::activate_all,     Body::softmax};

}  // namespace

const Int8Table* int8_avx_vnni_table() { return &kTable; }

}  // namespace headrace
