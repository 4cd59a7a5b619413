#include "speech/log_mel.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

namespace headrace {
namespace {

// A transform of 400 real samples, folded twice: cos(2 pi k n / 400) is the same at n and 400 - n, and at
// n and 200 - n but for the sign of odd k. So a bin is a dot product of 101 values.
constexpr std::size_t kQuarter = LogMel::kWindow / 4;
constexpr std::size_t kFolded = kQuarter + 1;

// Slaney's mel scale: linear below 1 kHz, logarithmic above.
double mel_of(double hertz) {
  return hertz < 1000 ? hertz * 3 / 200 : 15 + std::log(hertz / 1000) * (27 / std::log(6.4));
}
double hertz_of(double mel) {
  return mel < 15 ? mel * 200 / 3 : 1000 * std::exp((mel - 15) * (std::log(6.4) / 27));
}

float dot(const float* a, const float* b) {
  // Several sums, so that the compiler may use vectors without reordering a single one.
  std::array<float, 8> sums{};
  std::size_t i = 0;
  for (; i + 8 <= kFolded; i += 8) {
    for (std::size_t j = 0; j < 8; ++j) sums[j] += a[i + j] * b[i + j];
  }
  float sum = 0;
  for (; i < kFolded; ++i) sum += a[i] * b[i];
  for (const float part : sums) sum += part;
  return sum;
}

}  // namespace

LogMel::LogMel(std::size_t bands) : bands_(bands) {
  constexpr double kTurn = 2 * std::numbers::pi / kWindow;
  for (std::size_t n = 0; n < kWindow; ++n) {
    window_.push_back(static_cast<float>(0.5 - 0.5 * std::cos(kTurn * static_cast<double>(n))));
  }
  for (std::size_t k = 0; k < kBins; ++k) {
    std::vector<float>& cosines = k % 2 == 0 ? cos_even_ : cos_odd_;
    std::vector<float>& sines = k % 2 == 0 ? sin_even_ : sin_odd_;
    for (std::size_t n = 0; n < kFolded; ++n) {
      const double angle = kTurn * static_cast<double>(k * n % kWindow);
      cosines.push_back(static_cast<float>(std::cos(angle)));
      sines.push_back(static_cast<float>(std::sin(angle)));
    }
  }

  constexpr double kTop = 8000;
  std::vector<double> edges;
  for (std::size_t i = 0; i < bands + 2; ++i) {
    edges.push_back(
        hertz_of(mel_of(kTop) * static_cast<double>(i) / static_cast<double>(bands + 1)));
  }
  for (std::size_t band = 0; band < bands; ++band) {
    const double low = edges[band];
    const double middle = edges[band + 1];
    const double high = edges[band + 2];
    Band filter;
    for (std::size_t bin = 0; bin < kBins; ++bin) {
      const double hertz = kTop * static_cast<double>(bin) / (kBins - 1);
      const double height =
          std::min((hertz - low) / (middle - low), (high - hertz) / (high - middle));
      if (height <= 0) continue;
      if (filter.weights.empty()) filter.first = bin;
      filter.weights.resize(bin - filter.first + 1);
      filter.weights.back() = static_cast<float>(height * 2 / (high - low));
    }
    filters_.push_back(std::move(filter));
  }
}

void LogMel::power(const float* frame, float* power) const {
  // Sums for the cosines and differences for the sines; then again around 100.
  std::array<float, 2 * kQuarter + 1> sum;
  std::array<float, 2 * kQuarter + 1> difference;
  sum[0] = frame[0] * window_[0];
  difference[0] = 0;
  for (std::size_t n = 1; n < 2 * kQuarter; ++n) {
    const float left = frame[n] * window_[n];
    const float right = frame[kWindow - n] * window_[kWindow - n];
    sum[n] = left + right;
    difference[n] = left - right;
  }
  sum[2 * kQuarter] = frame[2 * kQuarter] * window_[2 * kQuarter];
  difference[2 * kQuarter] = 0;

  std::array<float, kFolded> cos_even;
  std::array<float, kFolded> cos_odd;
  std::array<float, kFolded> sin_even;
  std::array<float, kFolded> sin_odd;
  for (std::size_t n = 0; n < kQuarter; ++n) {
    const std::size_t mirror = 2 * kQuarter - n;
    cos_even[n] = sum[n] + sum[mirror];
    cos_odd[n] = sum[n] - sum[mirror];
    sin_even[n] = difference[n] - difference[mirror];
    sin_odd[n] = difference[n] + difference[mirror];
  }
  cos_even[kQuarter] = cos_odd[kQuarter] = sum[kQuarter];
  sin_even[kQuarter] = sin_odd[kQuarter] = difference[kQuarter];

  for (std::size_t bin = 0; bin < kBins; ++bin) {
    const bool even = bin % 2 == 0;
    const std::size_t row = bin / 2 * kFolded;
    const float real = even ? dot(cos_even.data(), cos_even_.data() + row)
                            : dot(cos_odd.data(), cos_odd_.data() + row);
    const float imaginary = even ? dot(sin_even.data(), sin_even_.data() + row)
                                 : dot(sin_odd.data(), sin_odd_.data() + row);
    power[bin] = real * real + imaginary * imaginary;
  }
}

std::vector<float> LogMel::compute(std::span<const float> samples, std::size_t frames) const {
  // What a frame sees: silence after the samples, everything mirrored at both ends.
  const std::size_t length = std::max<std::size_t>(frames * kHop, kWindow);
  constexpr std::size_t kPad = kWindow / 2;
  std::vector<float> padded(length + 2 * kPad);
  const std::size_t count = std::min(samples.size(), length);
  std::copy_n(samples.begin(), count, padded.begin() + kPad);
  for (std::size_t i = 1; i <= kPad; ++i) {
    padded[kPad - i] = padded[kPad + i];
    padded[kPad + length - 1 + i] = padded[kPad + length - 1 - i];
  }

  std::vector<float> features(bands_ * frames);
  std::array<float, kBins> spectrum;
  float loudest = -10;
  for (std::size_t frame = 0; frame < frames; ++frame) {
    power(padded.data() + frame * kHop, spectrum.data());
    for (std::size_t band = 0; band < bands_; ++band) {
      const Band& filter = filters_[band];
      float energy = 0;
      for (std::size_t i = 0; i < filter.weights.size(); ++i) {
        energy += filter.weights[i] * spectrum[filter.first + i];
      }
      const float value = std::log10(std::max(energy, 1e-10F));
      features[band * frames + frame] = value;
      loudest = std::max(loudest, value);
    }
  }
  for (float& value : features) value = (std::max(value, loudest - 8) + 4) / 4;
  return features;
}

}  // namespace headrace
