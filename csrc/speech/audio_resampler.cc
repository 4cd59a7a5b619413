#include "speech/audio_resampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <numeric>
#include <utility>

#include "speech/recognizer.h"

namespace headrace {
namespace {

constexpr double kZeroCrossings = 32;  // on each side
constexpr double kCutoff = 0.95;       // of half the lower rate
constexpr double kBeta = 9.0;          // of the Kaiser window: -90 dB
constexpr uint64_t kMostRows = 1024;   // with lines between them: -118 dB

// The modified Bessel function of the first kind, order zero.
double bessel(double x) {
  double sum = 1;
  double term = 1;
  for (int k = 1; term > sum * 1e-12; ++k) {
    term *= (x / (2 * k)) * (x / (2 * k));
    sum += term;
  }
  return sum;
}

float dot(const float* a, const float* b, std::size_t n) {  // n: a multiple of 8
  std::array<float, 8> sums{};
  for (std::size_t i = 0; i < n; i += 8) {
    for (std::size_t k = 0; k < 8; ++k) sums[k] += a[i + k] * b[i + k];
  }
  return std::accumulate(sums.begin(), sums.end(), 0.0F);
}

}  // namespace

std::shared_ptr<const ResamplerFilter> ResamplerFilter::make(uint32_t from_hz) {
  return std::shared_ptr<const ResamplerFilter>(new ResamplerFilter(from_hz));
}

ResamplerFilter::ResamplerFilter(uint32_t from_hz) : from_(from_hz) {
  const uint32_t divisor = std::gcd(from_hz, kSpeechSampleRate);
  up_ = kSpeechSampleRate / divisor;
  down_ = from_hz / divisor;
  const double ratio = std::max(1.0, static_cast<double>(from_hz) / kSpeechSampleRate);
  half_ = (static_cast<std::size_t>(std::ceil(kZeroCrossings * ratio)) + 3) / 4 * 4;
  rows_ = std::min(up_, kMostRows);
  const std::size_t taps = 2 * half_;
  table_.resize((rows_ + 1) * taps);
  const double cutoff = kCutoff / ratio;  // of half the input's rate
  const double window = 1 / bessel(kBeta);
  for (uint64_t row = 0; row <= rows_; ++row) {
    float* const values = table_.data() + row * taps;
    double sum = 0;
    for (std::size_t i = 0; i < taps; ++i) {
      const double t = static_cast<double>(i) - static_cast<double>(half_ - 1) -
                       static_cast<double>(row) / static_cast<double>(rows_);
      const double x = std::numbers::pi * cutoff * t;
      const double edge = t / static_cast<double>(half_);
      const double inside = 1 - edge * edge;
      const double value = inside <= 0 ? 0
                                       : (std::abs(x) < 1e-9 ? 1 : std::sin(x) / x) * window *
                                             bessel(kBeta * std::sqrt(inside));
      values[i] = static_cast<float>(value);
      sum += value;
    }
    for (std::size_t i = 0; i < taps; ++i) {
      values[i] = static_cast<float>(static_cast<double>(values[i]) / sum);
    }
  }
}

float ResamplerFilter::at(const float* taps, uint64_t phase) const {
  const std::size_t size = 2 * half_;
  if (rows_ == up_) return dot(taps, table_.data() + phase * size, size);
  const uint64_t place = phase * rows_;
  const float* const row = table_.data() + place / up_ * size;
  const float part = static_cast<float>(place % up_) / static_cast<float>(up_);
  const float low = dot(taps, row, size);
  return low + part * (dot(taps, row + size, size) - low);
}

std::shared_ptr<const ResamplerFilter> ResamplerFilters::get(uint32_t from_hz) {
  const auto found = filters_.find(from_hz);
  if (found != filters_.end()) return found->second;
  if (filters_.size() >= kKept) filters_.erase(filters_.begin());
  return filters_[from_hz] = ResamplerFilter::make(from_hz);
}

Resampler::Resampler(std::shared_ptr<const ResamplerFilter> filter) : filter_(std::move(filter)) {
  // The silence before the first sample, so that every output has its inputs.
  held_.assign(filter_->half() - 1, 0.0F);
}

void Resampler::push(std::span<const float> samples, std::vector<float>& out) {
  pushed_ += samples.size();
  held_.insert(held_.end(), samples.begin(), samples.end());
  produce(out, UINT64_MAX);
}

void Resampler::finish(std::vector<float>& out) {
  held_.resize(held_.size() + filter_->half(), 0.0F);
  const uint64_t from = filter_->from_hz();
  produce(out, (pushed_ * kSpeechSampleRate + from - 1) / from);
}

void Resampler::produce(std::vector<float>& out, uint64_t most) {
  const std::size_t taps = 2 * filter_->half();
  const uint64_t up = filter_->up();
  while (produced_ < most && index_ - first_ + taps <= held_.size()) {
    out.push_back(filter_->at(held_.data() + (index_ - first_), phase_));
    ++produced_;
    phase_ += filter_->down();
    index_ += phase_ / up;
    phase_ %= up;
  }
  const auto done = static_cast<std::size_t>(std::min<uint64_t>(index_ - first_, held_.size()));
  held_.erase(held_.begin(), held_.begin() + static_cast<std::ptrdiff_t>(done));
  first_ += done;
}

}  // namespace headrace
