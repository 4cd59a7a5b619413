// 256-bit vpdpbusd (client processors without AVX-512): u8 x s8, four products an int32.
#include "kernels/int8_body.h"
#include "kernels/int8_ymm.h"

namespace headrace {
namespace {

struct Traits : Ymm {
  static constexpr std::size_t kRows = 4;  // x 3 vectors: 12 of the 16 registers are sums

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
        step<R, NV>(w + C * NV * 32, a + C * 4, stride, chain[C]);
      });
      w += kChains * NV * 32;
      a += kChains * 4;
    }
    for (; e < panel.entries; ++e) {
      step<R, NV>(w, a, stride, chain[0]);
      w += NV * 32;
      a += 4;
    }
    each<R>([&]<int Q>() __attribute__((always_inline)) {
      each<NV>([&]<int V>() __attribute__((always_inline)) {
        sums[Q][V] = chain[0][Q][V];
        each<kChains - 1>([&]<int C>() __attribute__((always_inline)) {
          sums[Q][V] = _mm256_add_epi32(sums[Q][V], chain[C + 1][Q][V]);
        });
      });
    });
  }

  template <int R, int NV>
  [[gnu::always_inline]] static void step(const int8_t* w, const uint8_t* a, std::size_t stride,
                                          Ints (&sums)[R][NV]) {
    Ints weights[NV];
    each<NV>([&]<int V>() __attribute__((always_inline)) { weights[V] = load_ints(w + V * 32); });
    each<R>([&]<int Q>() __attribute__((always_inline)) {
      const Ints four = broadcast(a + Q * stride);
      each<NV>([&]<int V>() __attribute__((always_inline)) {
        sums[Q][V] = _mm256_dpbusd_avx_epi32(sums[Q][V], four, weights[V]);
      });
    });
  }
};

using Body = Int8Body<Traits>;
constexpr Int8Table kTable = {
    Traits::kLanes, Body::quantise_dynamic, Body::quantise_static, Body::multiply,
    Body::dot,      Body::activate_all,     Body::softmax};

}  // namespace

const Int8Table* int8_avx_vnni_table() { return &kTable; }

}  // namespace headrace
