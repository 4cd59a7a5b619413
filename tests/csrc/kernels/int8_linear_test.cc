#include "kernels/int8_linear.h"

#include <doctest/doctest.h>

#include <cstring>
#include <limits>
#include <thread>

#include "kernels/int8_fixture.h"

namespace headrace {
namespace {

constexpr Isa kIsas[] = {Isa::kReference, Isa::kAvx2, Isa::kAvxVnni, Isa::kAvx512Vnni};

// Runs `test` with each instruction set that is there and says which are not.
template <class Test>
void on_each_isa(Test test) {
  for (const Isa isa : kIsas) {
    if (!has_isa(isa)) {
      MESSAGE("skipped: this processor has no " << isa_name(isa));
      continue;
    }
    CAPTURE(isa_name(isa));
    test(isa);
  }
}

struct Size {
  std::size_t inputs, outputs;
};
// Around a group of 4, a vector of 8 or 16 channels, a panel of 24 or 48.
constexpr Size kSizes[] = {{1, 1},   {3, 5},    {4, 8},    {17, 23},  {64, 24},  {65, 25},
                           {66, 47}, {127, 48}, {128, 49}, {200, 97}, {385, 33}, {31, 144}};
constexpr std::size_t kRowCounts[] = {1, 2, 3, 4, 5, 7, 8, 9, 17, 67};

std::vector<float> copy_of(const float* from, std::size_t n) { return {from, from + n}; }

}  // namespace

TEST_CASE("sums equal an int64 reference: every instruction set, shape and kind of weights") {
  on_each_isa([](Isa isa) {
    for (const bool is_static : {false, true}) {
      const int32_t most = isa == Isa::kAvx2 && !is_static ? 127 : 255;
      for (const Size& size : kSizes) {
        for (const Weights kind : kAllWeights) {
          const QuantisedWeights weights = make_weights(kind, size.inputs, size.outputs, 7);
          const StaticActivations activations;
          const PackedLinear layer = value_of(
              PackedLinear::pack(weights, {}, is_static ? &activations : nullptr, {.isa = isa}));
          REQUIRE(layer.activation_max() == most);
          const std::size_t stride = (size.inputs + 63) / 64 * 64;
          const std::size_t rows = kRowCounts[(size.inputs + size.outputs) % 10];
          AlignedBytes values(rows * stride);
          auto* const a = reinterpret_cast<uint8_t*>(values.data());
          std::mt19937 random(3);
          std::vector<Int8Row> made(rows);
          for (std::size_t row = 0; row < rows; ++row) {
            made[row] = {1, static_cast<int32_t>(random() % static_cast<uint32_t>(most + 1))};
            for (std::size_t k = 0; k < stride; ++k) {
              // Rows at random, all largest, all zero.
              const uint32_t any = random() % static_cast<uint32_t>(most + 1);
              a[row * stride + k] = static_cast<uint8_t>(k >= size.inputs ? 0
                                                         : row % 3 == 0   ? any
                                                         : row % 3 == 1   ? most
                                                                          : 0);
            }
          }
          std::vector<int32_t> sums(rows * size.outputs);
          linear_sums(layer, a, stride, made.data(), rows, sums.data());
          const std::vector<int64_t> want = sums_by_hand(weights, a, stride, made);
          CAPTURE(size.inputs);
          CAPTURE(size.outputs);
          CAPTURE(static_cast<int>(kind));
          CHECK(std::equal(sums.begin(), sums.end(), want.begin(), want.end()));
        }
      }
    }
  });
}

TEST_CASE("the longest sums there can be do not wrap") {
  on_each_isa([](Isa isa) {
    const QuantisedWeights weights = make_weights(Weights::kAllMin, PackedLinear::kMaxInputs, 2, 1);
    const StaticActivations activations;
    const PackedLinear layer =
        value_of(PackedLinear::pack(weights, {}, &activations, {.isa = isa}));
    AlignedBytes values(PackedLinear::kMaxInputs);
    std::memset(values.data(), 255, PackedLinear::kMaxInputs);
    const Int8Row made{1, 0};
    int32_t sums[2] = {};
    linear_sums(layer, reinterpret_cast<uint8_t*>(values.data()), PackedLinear::kMaxInputs, &made,
                1, sums);
    CHECK(sums[0] == -128 * 255 * 65536);
    CHECK(sums[1] == sums[0]);
  });
}

TEST_CASE("every number of rows, and outputs not beyond the last one") {
  on_each_isa([](Isa isa) {
    const std::size_t inputs = 70, outputs = 53;
    const std::vector<float> w = gaussian(inputs * outputs, 1, 0.1f), b = gaussian(outputs, 2);
    const PackedLinear layer =
        value_of(PackedLinear::pack(w, inputs, outputs, false, b, {.isa = isa}));
    const std::vector<float> all = gaussian(80 * inputs, 3);
    const std::vector<float> want = run(layer, all);
    for (std::size_t rows = 1; rows < 80; ++rows) {
      const std::vector<float> y = run(layer, copy_of(all.data(), rows * inputs));
      CHECK(std::equal(y.begin(), y.end(), want.begin()));
    }
  });
}

TEST_CASE("float layers come out close, and equal on all instruction sets with 8-bit activations") {
  const std::size_t inputs = 384, outputs = 100, rows = 9;
  const std::vector<float> w = gaussian(inputs * outputs, 1, 0.05f), b = gaussian(outputs, 2);
  const std::vector<float> x = gaussian(rows * inputs, 3);
  std::vector<double> exact;
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t n = 0; n < outputs; ++n) {
      double sum = b[n];
      for (std::size_t k = 0; k < inputs; ++k)
        sum += double{x[row * inputs + k]} * w[k * outputs + n];
      exact.push_back(sum);
    }
  }
  std::vector<float> transposed(w.size());
  for (std::size_t k = 0; k < inputs; ++k) {
    for (std::size_t n = 0; n < outputs; ++n) transposed[n * inputs + k] = w[k * outputs + n];
  }
  std::vector<float> first;
  on_each_isa([&](Isa isa) {
    const PackedLinear layer =
        value_of(PackedLinear::pack(w, inputs, outputs, false, b, {.isa = isa}));
    const std::vector<float> y = run(layer, x);
    CHECK(relative_error(y, exact) < 0.02);
    const PackedLinear other =
        value_of(PackedLinear::pack(transposed, inputs, outputs, true, b, {.isa = isa}));
    CHECK(run(other, x) == y);
    if (isa == Isa::kAvx2) {
      CHECK(layer.paired_share() > 0.95);
      CHECK(layer.weight_bits() == 8);
      return;
    }
    if (first.empty()) first = y;
    CHECK(y == first);
  });
}

TEST_CASE("static activations are a model's own, rounded half to even") {
  const QuantisedWeights weights = make_weights(Weights::kUniform, 10, 3, 5);
  const StaticActivations activations{0.5f, 128, 1, 255};
  const std::vector<float> x = {0, 0.25f, 0.75f, -0.25f, 1e9f, -1e9f, 31, -31, 0.24f, -0.76f};
  const uint8_t want[] = {128, 128, 130, 128, 255, 1, 190, 66, 128, 126};
  on_each_isa([&](Isa isa) {
    const PackedLinear layer =
        value_of(PackedLinear::pack(weights, {}, &activations, {.isa = isa}));
    AlignedBytes values(64);
    Int8Row made{};
    linear_quantise(layer, x.data(), 1, reinterpret_cast<uint8_t*>(values.data()), 64, &made);
    CHECK(made.scale == 0.5f);
    CHECK(made.zero_point == 128);
    CHECK(std::memcmp(values.data(), want, sizeof(want)) == 0);
    const std::vector<float> y = run(layer, x);
    for (std::size_t n = 0; n < 3; ++n) {
      int32_t sum = 0;
      for (std::size_t k = 0; k < 10; ++k) sum += (want[k] - 128) * weights.values[n * 10 + k];
      CHECK(y[n] == static_cast<float>(sum) * (0.5f * weights.scales[n]));
    }
  });
}

TEST_CASE("activation functions") {
  // One input with weight 1: what comes in goes through the function.
  const QuantisedWeights weights{1, 1, {127}, {1.0f / 127}};
  const StaticActivations fine{1.0f / 16, 128, 0, 255};
  on_each_isa([&](Isa isa) {
    for (const LinearActivation activation :
         {LinearActivation::kNone, LinearActivation::kRelu, LinearActivation::kGeluErf,
          LinearActivation::kGeluTanh, LinearActivation::kSilu, LinearActivation::kSigmoid,
          LinearActivation::kTanh}) {
      const PackedLinear layer =
          value_of(PackedLinear::pack(weights, {}, &fine, {.activation = activation, .isa = isa}));
      std::vector<float> x;
      for (int i = -128; i < 128; ++i) x.push_back(static_cast<float>(i) / 16);
      const std::vector<float> y = run(layer, x);
      for (std::size_t i = 0; i < x.size(); ++i) {
        const double v = x[i];
        double want = v;
        if (activation == LinearActivation::kRelu) want = std::max(v, 0.0);
        if (activation == LinearActivation::kGeluErf)
          want = v / 2 * (1 + std::erf(v / std::sqrt(2)));
        if (activation == LinearActivation::kGeluTanh) {
          want = v / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
        }
        if (activation == LinearActivation::kSilu) want = v / (1 + std::exp(-v));
        if (activation == LinearActivation::kSigmoid) want = 1 / (1 + std::exp(-v));
        if (activation == LinearActivation::kTanh) want = std::tanh(v);
        CAPTURE(v);
        CHECK(y[i] == doctest::Approx(want).epsilon(3e-6).scale(1));
      }
    }
  });
}

TEST_CASE("NaN, infinity, zeros and denormals have the answers that the header says") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  const std::size_t inputs = 37, outputs = 19;
  const std::vector<float> w = gaussian(inputs * outputs, 1), b = gaussian(outputs, 2);
  on_each_isa([&](Isa isa) {
    for (const LinearActivation activation :
         {LinearActivation::kNone, LinearActivation::kRelu, LinearActivation::kGeluErf,
          LinearActivation::kGeluTanh, LinearActivation::kSilu, LinearActivation::kSigmoid,
          LinearActivation::kTanh}) {
      const PackedLinear layer = value_of(
          PackedLinear::pack(w, inputs, outputs, false, b, {.activation = activation, .isa = isa}));
      const std::vector<float> good = gaussian(inputs, 9);
      const std::vector<float> fine = run(layer, good);
      for (const float odd : {nan, -nan, infinity, -infinity}) {
        for (const std::size_t at : {std::size_t{0}, std::size_t{20}, inputs - 1}) {
          std::vector<float> x = good;
          x.insert(x.end(), good.begin(), good.end());
          x[inputs + at] = odd;
          const std::vector<float> y = run(layer, x);
          CHECK(std::equal(fine.begin(), fine.end(), y.begin()));  // its neighbour
          for (std::size_t n = 0; n < outputs; ++n) CHECK(std::isnan(y[outputs + n]));
        }
      }
      const std::vector<float> zeros(inputs, 0.0f);
      const std::vector<float> bias_only = run(layer, zeros);
      for (const float small : {1e-44f, -1e-40f, 1e-37f}) {
        CHECK(run(layer, std::vector<float>(inputs, small)) == bias_only);
      }
      std::vector<float> huge(inputs, 3e38f);
      huge[0] = -3e38f;
      run(layer, huge);  // may overflow as floats do, but must not trap
    }
    const StaticActivations activations{0.1f, 128, 0, 255};
    const QuantisedWeights weights = make_weights(Weights::kUniform, inputs, outputs, 5);
    const PackedLinear layer =
        value_of(PackedLinear::pack(weights, {}, &activations, {.isa = isa}));
    std::vector<float> x(inputs, 1.0f), clamped(inputs, 1.0f);
    x[5] = infinity;
    clamped[5] = 1000;
    CHECK(run(layer, x) == run(layer, clamped));
    x[5] = -infinity;
    clamped[5] = -1000;
    CHECK(run(layer, x) == run(layer, clamped));
    x[5] = nan;
    for (const float value : run(layer, x)) CHECK(std::isnan(value));
  });
}

TEST_CASE("threads and siblings change nothing") {
  LinearParallel parallel;
  parallel.threads = 3;
  parallel.run = [](std::size_t tasks, void (*task)(void*, std::size_t), void* context) {
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < tasks; ++i) threads.emplace_back(task, context, i);
    for (std::thread& thread : threads) thread.join();
  };
  on_each_isa([&](Isa isa) {
    const std::size_t inputs = 600;
    for (const std::size_t rows : {std::size_t{5}, std::size_t{100}, std::size_t{141}}) {
      std::vector<PackedLinear> layers;
      for (const std::size_t outputs : {500, 501, 130}) {
        layers.push_back(value_of(PackedLinear::pack(gaussian(inputs * outputs, 4), inputs, outputs,
                                                     false, gaussian(outputs, 5), {.isa = isa})));
      }
      const std::vector<float> x = gaussian(rows * inputs, 6);
      std::vector<std::vector<float>> y;
      std::vector<LinearOutput> outputs;
      for (const PackedLinear& layer : layers) y.emplace_back(rows * layer.outputs());
      for (std::size_t i = 0; i < 3; ++i) {
        CHECK(reads_alike(layers[0], layers[i]));
        outputs.push_back({&layers[i], y[i].data()});
      }
      AlignedBytes scratch(linear_scratch_bytes(layers[0], rows));
      linear(outputs, x.data(), rows, scratch.data(), parallel);
      for (std::size_t i = 0; i < 3; ++i) CHECK(y[i] == run(layers[i], x));
    }
  });
}

}  // namespace headrace
