#include "speech/log_mel.h"

#include <doctest/doctest.h>

#include <array>
#include <cstdint>

using namespace headrace;

TEST_CASE("features are those of transformers' WhisperFeatureExtractor") {
  std::vector<float> samples;
  for (int64_t i = 0; i < 4800; ++i) {
    const auto noise = static_cast<float>((i * i * 7 + i * 13) % 2000 - 1000) / 4000;
    samples.push_back(noise * (0.2F + static_cast<float>(i / 480 % 5) * 0.2F));
  }
  const LogMel mel(80);
  const std::vector<float> features = mel.compute(samples, LogMel::frames(samples.size()));
  REQUIRE(features.size() == 80 * 30);
  // transformers 5's answers for these samples.
  constexpr std::array<std::size_t, 5> kFrames = {0, 1, 5, 14, 29};
  struct {
    std::size_t band;
    std::array<double, 5> values;
  } const expected[] = {{0, {0.607683, 0.342115, 0.477047, 0.733987, 0.261235}},
                        {1, {0.548730, 0.338126, 0.580685, 0.803492, 0.374421}},
                        {7, {0.437351, 0.445516, 0.566345, 0.797610, 0.577129}},
                        {20, {0.303804, 0.145024, 0.481737, 0.644524, 0.857814}},
                        {40, {0.211734, 0.406219, 0.430537, 0.700575, 0.748190}},
                        {63, {0.316533, 0.443963, 0.459497, 0.723390, 0.734886}},
                        {79, {0.433753, 0.420390, 0.435244, 0.728100, 0.718324}}};
  for (const auto& [band, values] : expected) {
    for (std::size_t i = 0; i < kFrames.size(); ++i) {
      CAPTURE(band);
      CAPTURE(kFrames[i]);
      CHECK(features[band * 30 + kFrames[i]] == doctest::Approx(values[i]).epsilon(2e-5));
    }
  }
}

TEST_CASE("silence is the floor, and what lacks is silence") {
  const LogMel mel(128);
  CHECK(mel.bands() == 128);
  const std::vector<float> features = mel.compute({}, 10);
  REQUIRE(features.size() == 1280);
  for (const float value : features) CHECK(value == doctest::Approx(-1.5));
  const std::vector<float> tone(160, 0.5F);
  const std::vector<float> padded = mel.compute(tone, 4);
  std::vector<float> longer(tone);
  longer.resize(640);
  CHECK(mel.compute(longer, 4) == padded);
  CHECK(mel.compute(tone, 0).empty());
}
