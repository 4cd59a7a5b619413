#include "speech/audio_resampler.h"

#include <doctest/doctest.h>

#include <random>

#include "speech/audio_bytes.h"

using namespace headrace;
using namespace headrace::testing;

namespace {

std::vector<float> resample(const std::vector<float>& samples, uint32_t rate,
                            std::size_t chunk = 1000) {
  Resampler resampler(ResamplerFilter::make(rate));
  std::vector<float> out;
  for (std::size_t at = 0; at < samples.size(); at += chunk) {
    const std::size_t n = std::min(chunk, samples.size() - at);
    resampler.push(std::span(samples).subspan(at, n), out);
  }
  resampler.finish(out);
  return out;
}

// Without the ends, where the tone begins out of silence.
std::span<const float> middle(const std::vector<float>& samples) {
  return std::span(samples).subspan(2000, samples.size() - 4000);
}

}  // namespace

TEST_CASE("tones of every rate come out as they are, as long as they were") {
  for (const uint32_t rate :
       {4000, 8000, 11025, 12000, 22050, 24000, 32000, 44100, 44101, 48000, 96000, 192000}) {
    CAPTURE(rate);
    const double band = std::min(rate, 16000U) * 0.42;
    for (const double hz : {60.0, 440.0, band}) {
      CAPTURE(hz);
      const std::size_t length = rate / 2;
      const std::vector<float> out = resample(tone(hz, rate, length), rate);
      CHECK(out.size() == (length * 16000 + rate - 1) / rate);
      CHECK(snr_db(middle(tone(hz, 16000, out.size())), middle(out)) > 75);
    }
  }
}

TEST_CASE("what 16 kHz cannot carry is gone, not folded") {
  for (const uint32_t rate : {22050, 32000, 44100, 48000, 192000}) {
    CAPTURE(rate);
    for (const double hz : {8500.0, 10000.0}) {
      const std::vector<float> out = resample(tone(hz, rate, rate / 2), rate);
      double loudest = 0;
      for (const float sample : middle(out)) loudest = std::max<double>(loudest, std::abs(sample));
      CHECK(20 * std::log10(loudest / 0.5) < -75);
    }
  }
}

TEST_CASE("where the input is cut makes no difference") {
  std::mt19937 random(3);
  std::vector<float> noise(5000);
  for (float& sample : noise) sample = std::uniform_real_distribution<float>(-1, 1)(random);
  for (const uint32_t rate : {8000, 44100, 44101, 96000}) {
    const std::vector<float> whole = resample(noise, rate, noise.size());
    for (const std::size_t chunk : {1, 7, 160, 999}) CHECK(resample(noise, rate, chunk) == whole);
  }
}

TEST_CASE("nothing in, nothing out; a constant stays one") {
  CHECK(resample({}, 44100).empty());
  CHECK(resample({0.5F}, 48000).size() == 1);
  const std::vector<float> flat(44100, 0.25F);
  const std::vector<float> out = resample(flat, 44100);
  for (const float sample : middle(out)) CHECK(sample == doctest::Approx(0.25).epsilon(1e-4));
}

TEST_CASE("filters are shared, and not kept for ever") {
  ResamplerFilters filters;
  const auto first = filters.get(44100);
  CHECK(filters.get(44100) == first);
  for (uint32_t rate = 8000; rate < 8100; ++rate) filters.get(rate);
  CHECK(filters.get(44100)->from_hz() == 44100);
}
