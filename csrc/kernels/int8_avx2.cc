// AVX2 has no u8 x s8 product that cannot saturate: vpmaddubsw adds two products in an int16. The plan
// made at pack time (int8_pack.h) proves that it does not, and pairs entries whose int16 may even be
// added before they are widened: 5 instructions for 64 products.
#include "kernels/int8_body.h"
#include "kernels/int8_ymm.h"

namespace headrace {
namespace {

struct Traits : Ymm {
  static constexpr std::size_t kRows = 3;  // x 3 vectors: what GCC keeps in 16 registers

  template <int R, int NV>
  [[gnu::always_inline]] static void products(const Int8Panel& panel, const uint8_t* a,
                                              std::size_t stride, Ints (&sums)[R][NV]) {
    const Ints ones = _mm256_set1_epi16(1);
    zero<R, NV>(sums);
    const int8_t* w = panel.weights;
    const uint32_t* order = panel.order;
    for (uint32_t p = 0; p < panel.pairs; ++p) {
      const uint8_t* const a0 = a + order[0];
      const uint8_t* const a1 = a + order[1];
      each<R>([&]<int Q>() __attribute__((always_inline)) {
        const Ints four0 = broadcast(a0 + Q * stride);
        const Ints four1 = broadcast(a1 + Q * stride);
        each<NV>([&]<int V>() __attribute__((always_inline)) {
          const Ints both =
              _mm256_add_epi16(_mm256_maddubs_epi16(four0, load_ints(w + V * 32)),
                               _mm256_maddubs_epi16(four1, load_ints(w + (NV + V) * 32)));
          sums[Q][V] = _mm256_add_epi32(sums[Q][V], _mm256_madd_epi16(both, ones));
        });
      });
      w += 2 * NV * 32;
      order += 2;
    }
    for (uint32_t e = 2 * panel.pairs; e < panel.entries; ++e) {
      each<R>([&]<int Q>() __attribute__((always_inline)) {
        const Ints four = broadcast(a + *order + Q * stride);
        each<NV>([&]<int V>() __attribute__((always_inline)) {
          const Ints one = _mm256_maddubs_epi16(four, load_ints(w + V * 32));
          sums[Q][V] = _mm256_add_epi32(sums[Q][V], _mm256_madd_epi16(one, ones));
        });
      });
      w += NV * 32;
      ++order;
    }
  }
};

using Body = Int8Body<Traits>;
constexpr Int8Table kTable = {
    Traits::kLanes, Body::quantise_dynamic, Body::quantise_static, Body::multiply,
    Body::dot,      Body::activate_all,     Body::softmax};

}  // namespace

const Int8Table* int8_avx2_table() { return &kTable; }

}  // namespace headrace
