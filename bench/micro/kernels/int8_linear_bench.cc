// GOP/s of INT8 linear layers, an instruction set and a shape a line, one thread. What other libraries
// reach on the same shapes in the same minute: bench/micro/kernels/int8_layers.py, which calls this.
//
//   int8_linear_bench [INPUTS OUTPUTS ROWS [isa]]
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

// The best of several slices: what the machine does when nobody else is on it.
void measure(Isa isa, std::size_t inputs, std::size_t outputs, std::size_t rows) {
  const std::vector<float> bias = gaussian(outputs, 2), x = gaussian(rows * inputs, 3);
  auto layer = headrace::PackedLinear::pack(gaussian(inputs * outputs, 1), inputs, outputs, false,
                                            bias, {.isa = isa});
  if (!layer) {
    std::fprintf(stderr, "%s\n", layer.error().message().c_str());
    std::exit(1);
  }
  std::vector<float> y(rows * outputs);
  headrace::AlignedBytes scratch(headrace::linear_scratch_bytes(*layer, rows));
  const double work = 2.0 * static_cast<double>(inputs * outputs * rows);
  const int runs = static_cast<int>(1 + 2e8 / work);
  double best = 1e9;
  const double until = seconds() + 0.15;
  do {
    const double start = seconds();
    for (int i = 0; i < runs; ++i) {
      headrace::linear(*layer, x.data(), rows, y.data(), scratch.data());
    }
    best = std::min(best, (seconds() - start) / runs);
  } while (seconds() < until);
  std::printf("%-12s K %4zu N %4zu M %4zu  %8.2f us %7.1f GOP/s  paired %.3f weights %d bits\n",
              headrace::isa_name(isa), inputs, outputs, rows, best * 1e6, work / best / 1e9,
              layer->paired_share(), layer->weight_bits());
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
