#include "kernels/int8_pack.h"

#include <doctest/doctest.h>

#include <limits>

#include "kernels/int8_fixture.h"

namespace headrace {

TEST_CASE("weights are symmetric, a scale an output") {
  const std::vector<float> w = {1, -2, 0, 0.5f, 4, 0, -0.25f, 0.02f, 0};
  const QuantisedWeights made = value_of(quantise_weights(w, 3, 3, false));
  CHECK(made.values == std::vector<int8_t>{127, 64, -32, -64, 127, 1, 0, 0, 0});
  CHECK(made.scales[0] == doctest::Approx(1 / 127.0));
  CHECK(made.scales[1] == doctest::Approx(4 / 127.0));
  CHECK(made.scales[2] == 0);
}

TEST_CASE("weights that are no numbers, and sizes that make no sense, are refused") {
  std::vector<float> w(12, 1.0f);
  w[7] = std::numeric_limits<float>::quiet_NaN();
  CHECK(PackedLinear::pack(w, 3, 4, false, {}).error().code() == StatusCode::kInvalidArgument);
  w[7] = std::numeric_limits<float>::infinity();
  CHECK(PackedLinear::pack(w, 3, 4, true, {}).error().message() ==
        "a weight of output 2 is not finite");
  w[7] = 0;
  CHECK_FALSE(PackedLinear::pack(w, 4, 4, false, {}).has_value());
  CHECK_FALSE(PackedLinear::pack(w, 0, 4, false, {}).has_value());
  CHECK_FALSE(PackedLinear::pack(w, 3, 4, false, std::vector<float>(3)).has_value());
  CHECK_FALSE(PackedLinear::pack(std::vector<float>(65537), 65537, 1, false, {}).has_value());
  const QuantisedWeights good = make_weights(Weights::kUniform, 3, 4, 1);
  for (const StaticActivations& bad :
       {StaticActivations{0, 128, 0, 255}, StaticActivations{-1, 128, 0, 255},
        StaticActivations{std::numeric_limits<float>::quiet_NaN(), 128, 0, 255},
        StaticActivations{1, 256, 0, 255}, StaticActivations{1, 0, 0, 256},
        StaticActivations{1, 0, 9, 9}}) {
    CHECK(PackedLinear::pack(good, {}, &bad).error().code() == StatusCode::kInvalidArgument);
  }
}

TEST_CASE("AVX2: Gaussian weights pair as they are, uniform ones with 7 bits") {
  if (!has_isa(Isa::kAvx2)) {
    MESSAGE("skipped: this processor has no AVX2");
    return;
  }
  const PackOptions options{.isa = Isa::kAvx2};
  const PackedLinear plain =
      value_of(PackedLinear::pack(gaussian(384 * 96, 1), 384, 96, false, {}, options));
  CHECK(plain.weight_bits() == 8);
  CHECK(plain.paired_share() > 0.95);
  std::mt19937 random(1);
  std::uniform_real_distribution<float> value(-1, 1);
  std::vector<float> uniform(std::size_t{384} * 96);
  for (float& weight : uniform) weight = value(random);
  const PackedLinear narrow = value_of(PackedLinear::pack(uniform, 384, 96, false, {}, options));
  CHECK(narrow.weight_bits() == 7);
  CHECK(narrow.paired_share() == 1);
  // 8-bit activations: large weights are split, so there is more to do, but nothing saturates.
  const StaticActivations activations;
  const PackedLinear split = value_of(
      PackedLinear::pack(make_weights(Weights::kAllMax, 384, 96, 1), {}, &activations, options));
  CHECK(split.memory_bytes() > std::size_t{2} * 384 * 96);
}

TEST_CASE("equal layers have equal hashes, others do not") {
  const std::vector<float> w = gaussian(12 * 8, 1), b = gaussian(8, 2);
  const auto hash = [&](std::span<const float> bias, const PackOptions& options = {}) {
    return value_of(PackedLinear::pack(w, 12, 8, false, bias, options)).content_hash();
  };
  CHECK(hash(b) == hash(b));
  CHECK(hash(b).size() == 32);
  CHECK(hash(b) != hash({}));
  CHECK(hash(b) != hash(b, {.activation = LinearActivation::kRelu}));
  const PackedLinear other = value_of(PackedLinear::pack(gaussian(12 * 8, 3), 12, 8, false, b));
  CHECK(hash(b) != other.content_hash());
}

}  // namespace headrace
