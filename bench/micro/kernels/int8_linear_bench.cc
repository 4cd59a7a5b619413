// INT8 linear layers, one thread: GOP/s and the share of what the processor's instructions allow, an
// instruction set and a shape a line. That peak is a loop over registers of the same mix of instructions,
// without loads, measured in turn with the layer: what no kernel of that instruction set can exceed. What
// other libraries reach on the same shapes in the same minute: bench/micro/kernels/int8_layers.py, which
// calls this.
//
//   int8_linear_bench [INPUTS OUTPUTS ROWS [isa]]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "kernels/int8_linear.h"

namespace {

using headrace::Isa;

std::vector<float> gaussian(std::size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> value(0, 1);
  std::vector<float> values(n);
  for (float& v : values) v = value(random);
  return values;
}

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Multiplications in `rounds` of the mix; the compiler must not see through it.
double peak_products(Isa isa, int rounds);

#if defined(__x86_64__)
// Two groups of four inputs, added in int16, then widened: int8_avx2.cc's inner loop.
#define ACC2(SUM)                                                          \
  "vpmaddubsw %%ymm0,%%ymm1,%%ymm2\n\tvpmaddubsw %%ymm0,%%ymm1,%%ymm3\n\t" \
  "vpaddw %%ymm2,%%ymm3,%%ymm2\n\tvpmaddwd %%ymm2,%%ymm1,%%ymm2\n\t"       \
  "vpaddd %%ymm2,%%ymm" #SUM ",%%ymm" #SUM "\n\t"
#define DP256(SUM) "%{vex%} vpdpbusd %%ymm0,%%ymm1,%%ymm" #SUM "\n\t"
#define DP512(SUM) "vpdpbusd %%zmm0,%%zmm1,%%zmm" #SUM "\n\t"
#define TWELVE(X) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define CLOBBERED                                                                          \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
      "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

double peak_products(Isa isa, int rounds) {
  for (int i = 0; i < rounds; ++i) {
    switch (isa) {
      case Isa::kAvx2:
        asm volatile(TWELVE(ACC2)::: CLOBBERED);
        break;
      case Isa::kAvxVnni:
        asm volatile(TWELVE(DP256)::: CLOBBERED);
        break;
      case Isa::kAvx512Vnni:
        asm volatile(TWELVE(DP512)::: CLOBBERED);
        break;
      case Isa::kReference:
        return 0;
    }
  }
  asm volatile("vzeroupper" ::: CLOBBERED);
  return 12.0 * rounds * (isa == Isa::kAvxVnni ? 32 : 64);
}
#else
double peak_products(Isa, int) { return 0; }
#endif

// The best of several slices each: what the machine does when nobody else is on it.
void measure(Isa isa, std::size_t inputs, std::size_t outputs, std::size_t rows) {
  const std::vector<float> bias = gaussian(outputs, 2), x = gaussian(rows * inputs, 3);
  auto layer = headrace::PackedLinear::pack(gaussian(inputs * outputs, 1), inputs, outputs, false,
                                            bias, {.isa = isa});
  if (!layer) {
    std::fprintf(stderr, "%s\n", layer.error().message().c_str());
    std::exit(1);
  }
  headrace::AlignedBytes answers(rows * outputs * sizeof(float));  // as runtimes align tensors
  auto* const y = reinterpret_cast<float*>(answers.data());
  headrace::AlignedBytes scratch(headrace::linear_scratch_bytes(*layer, rows));
  const double work = 2.0 * static_cast<double>(inputs * outputs * rows);
  const int runs = static_cast<int>(1 + 4e7 / work);
  double best = 1e9, peak = 0;
  const double until = seconds() + 0.15;
  do {
    double start = seconds();
    for (int i = 0; i < runs; ++i) {
      headrace::linear(*layer, x.data(), rows, y, scratch.data());
    }
    best = std::min(best, (seconds() - start) / runs);
    start = seconds();
    const double products = peak_products(isa, 10000);
    peak = std::max(peak, 2 * products / (seconds() - start));
  } while (seconds() < until);
  std::printf(
      "%-12s K %4zu N %4zu M %4zu  %8.2f us %7.1f GOP/s  %3.0f %% of %.0f  paired %.3f weights "
      "%d bits\n",
      headrace::isa_name(isa), inputs, outputs, rows, best * 1e6, work / best / 1e9,
      peak == 0 ? 0 : 100 * work / best / peak, peak / 1e9, layer->paired_share(),
      layer->weight_bits());
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<Isa> isas = headrace::available_isas();
  std::erase(isas, Isa::kReference);
  if (argc > 3) {
    for (const Isa isa : isas) {
      if (argc > 4 && std::string(argv[4]) != headrace::isa_name(isa)) continue;
      measure(isa, std::strtoul(argv[1], nullptr, 10), std::strtoul(argv[2], nullptr, 10),
              std::strtoul(argv[3], nullptr, 10));
    }
    return 0;
  }
  constexpr std::size_t kShapes[][2] = {
      {128, 512}, {384, 384}, {384, 1536}, {1536, 384}, {768, 3072}};
  for (const Isa isa : isas) {
    for (const auto& [inputs, outputs] : kShapes) {
      for (const std::size_t rows : {1, 8, 32, 64, 512}) measure(isa, inputs, outputs, rows);
    }
  }
}
