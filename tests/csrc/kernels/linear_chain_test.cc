#include "kernels/linear_chain.h"

#include <doctest/doctest.h>

#include <limits>

#include "kernels/int8_fixture.h"

namespace headrace {
namespace {

std::shared_ptr<const PackedLinear> packed(std::size_t inputs, std::size_t outputs, uint32_t seed,
                                           LinearActivation activation) {
  return std::make_shared<const PackedLinear>(
      value_of(PackedLinear::pack(gaussian(inputs * outputs, seed, 0.1f), inputs, outputs, false,
                                  gaussian(outputs, seed + 1), {.activation = activation})));
}

std::vector<float> run(const LinearChain& chain, const std::vector<float>& x) {
  const std::size_t rows = x.size() / chain.inputs();
  std::vector<float> y(rows * chain.outputs());
  AlignedBytes scratch(chain.scratch_bytes());
  chain.run(x.data(), rows, y.data(), scratch.data());
  return y;
}

std::vector<double> by_hand(const FloatLinear& layer, const std::vector<float>& x) {
  std::vector<double> y;
  for (std::size_t row = 0; row < x.size() / layer.inputs; ++row) {
    for (std::size_t n = 0; n < layer.outputs; ++n) {
      double sum = layer.bias.empty() ? 0 : layer.bias[n];
      for (std::size_t k = 0; k < layer.inputs; ++k) {
        sum += double{x[row * layer.inputs + k]} * layer.weights[n * layer.inputs + k];
      }
      y.push_back(sum);
    }
  }
  return y;
}

}  // namespace

TEST_CASE("a chain answers what its layers answer one by one, for any number of rows") {
  const auto a = packed(33, 70, 1, LinearActivation::kRelu);
  const auto b = packed(70, 200, 3, LinearActivation::kGeluErf);
  const auto c = packed(200, 9, 5, LinearActivation::kTanh);
  LinearChain chain;
  for (const auto& layer : {a, b, c}) CHECK(chain.append(layer).ok());
  CHECK(chain.int8_layers() == 3);
  CHECK(chain.inputs() == 33);
  CHECK(chain.outputs() == 9);
  for (const std::size_t rows : {1, 2, 31, 32, 33, 100}) {
    std::vector<float> x = gaussian(rows * 33, 7);
    const std::vector<float> y = run(chain, x);
    for (const auto& layer : {a, b, c}) {
      std::vector<float> next(rows * layer->outputs());
      AlignedBytes scratch(linear_scratch_bytes(*layer, rows));
      linear(*layer, x.data(), rows, next.data(), scratch.data());
      x = std::move(next);
    }
    CHECK(y == x);
  }
}

TEST_CASE("float layers and softmax") {
  for (const std::size_t inputs : {1, 7, 16, 33, 100}) {
    for (const std::size_t outputs : {1, 3, 17, 40}) {
      const FloatLinear layer{inputs, outputs, gaussian(inputs * outputs, 1),
                              outputs == 3 ? std::vector<float>() : gaussian(outputs, 2)};
      LinearChain chain, shares;
      CHECK(chain.append(layer).ok());
      CHECK(shares.append(layer).ok());
      shares.end_with_softmax();
      const std::vector<float> x = gaussian(5 * inputs, 3);
      const std::vector<double> want = by_hand(layer, x);
      const std::vector<float> y = run(chain, x), share = run(shares, x);
      for (std::size_t row = 0; row < 5; ++row) {
        double high = -1e30, sum = 0;
        for (std::size_t n = 0; n < outputs; ++n) high = std::max(high, want[row * outputs + n]);
        for (std::size_t n = 0; n < outputs; ++n) sum += std::exp(want[row * outputs + n] - high);
        for (std::size_t n = 0; n < outputs; ++n) {
          const std::size_t at = row * outputs + n;
          CHECK(y[at] == doctest::Approx(want[at]).epsilon(1e-5).scale(1));
          CHECK(share[at] ==
                doctest::Approx(std::exp(want[at] - high) / sum).epsilon(1e-5).scale(1));
        }
      }
    }
  }
}

TEST_CASE("softmax of what is huge, and of what is no number") {
  LinearChain chain;
  CHECK(chain.append(FloatLinear{1, 3, {1, 2, -1}, {}}).ok());
  chain.end_with_softmax();
  const std::vector<float> y = run(chain, {1000});
  CHECK(y[1] == 1);
  CHECK(y[0] < 1e-30f);
  CHECK(y[2] < 1e-30f);
  for (const float share : run(chain, {std::numeric_limits<float>::quiet_NaN()})) {
    CHECK(std::isnan(share));
  }
}

TEST_CASE("what cannot follow is refused") {
  LinearChain chain;
  CHECK(chain.empty());
  CHECK(chain.append(packed(8, 5, 1, LinearActivation::kNone)).ok());
  CHECK(chain.append(packed(8, 5, 1, LinearActivation::kNone)).message().find("8 inputs") !=
        std::string::npos);
  CHECK_FALSE(chain.append(FloatLinear{5, 2, gaussian(9, 1), {}}).ok());
  CHECK_FALSE(chain.append(FloatLinear{5, 2, gaussian(10, 1), gaussian(3, 1)}).ok());
  CHECK(chain.append(FloatLinear{5, 2, gaussian(10, 1), gaussian(2, 1)}).ok());
  chain.end_with_softmax();
  CHECK_FALSE(chain.append(FloatLinear{2, 2, gaussian(4, 1), {}}).ok());
}

}  // namespace headrace
