#include "speech/fbank.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

namespace headrace {
namespace {

constexpr double kRate = 16000;
constexpr float kEmphasis = 0.97F;
constexpr std::size_t kHalf = Fbank::kTransform / 2;

double htk_mel(double hertz) { return 1127 * std::log1p(hertz / 700); }
double slaney_mel(double hertz) {
  return hertz < 1000 ? hertz * 3 / 200 : 15 + std::log(hertz / 1000) * (27 / std::log(6.4));
}
double slaney_hertz(double mel) {
  return mel < 15 ? mel * 200 / 3 : 1000 * std::exp((mel - 15) * (std::log(6.4) / 27));
}

}  // namespace

Fbank::Fbank(Kind kind, std::size_t bands) : kind_(kind) {
  const bool kaldi = kind == Kind::kKaldi;
  for (std::size_t n = 0; n < kWindow; ++n) {
    const std::size_t period = kind == Kind::kLibrosa ? kWindow : kWindow - 1;
    const double turn = 2 * std::numbers::pi * static_cast<double>(n) / static_cast<double>(period);
    const double hann = 0.5 - 0.5 * std::cos(turn);
    window_[n] = static_cast<float>(kaldi ? std::pow(hann, 0.85) : hann);
  }
  for (std::size_t k = 0; k < kHalf; ++k) {
    const double angle = 2 * std::numbers::pi * static_cast<double>(k) / kTransform;
    cosines_[k] = static_cast<float>(std::cos(angle));
    sines_[k] = static_cast<float>(-std::sin(angle));
    std::size_t reversed = 0;
    for (std::size_t bit = 1; bit < kHalf; bit <<= 1) reversed = reversed << 1 | (k & bit ? 1 : 0);
    order_[k] = static_cast<unsigned char>(reversed);
  }

  const double low = kaldi ? htk_mel(20) : 0;
  const double high = kaldi ? htk_mel(7600) : slaney_mel(8000);
  const double step = (high - low) / static_cast<double>(bands + 1);
  const std::size_t bins = kaldi ? kHalf : kHalf + 1;
  for (std::size_t band = 0; band < bands; ++band) {
    // Kaldi's triangles are straight over mels, Slaney's over hertz, with an area of one.
    std::array<double, 3> edges{};
    for (std::size_t i = 0; i < 3; ++i) {
      edges[i] = low + step * static_cast<double>(band + i);
      if (!kaldi) edges[i] = slaney_hertz(edges[i]);
    }
    Band filter;
    for (std::size_t bin = 0; bin < bins; ++bin) {
      const double hertz = kRate * static_cast<double>(bin) / kTransform;
      const double at = kaldi ? htk_mel(hertz) : hertz;
      double height = std::min((at - edges[0]) / (edges[1] - edges[0]),
                               (edges[2] - at) / (edges[2] - edges[1]));
      if (height <= 0) continue;
      if (!kaldi) height *= 2 / (edges[2] - edges[0]);
      if (filter.weights.empty()) filter.first = bin;
      filter.weights.resize(bin - filter.first + 1);
      filter.weights.back() = static_cast<float>(height);
    }
    filters_.push_back(std::move(filter));
  }
}

// The real transform as a complex one of half the length: even samples are the real parts.
void Fbank::power(const float* signal, Spectrum& power) const {
  std::array<float, kHalf> real;
  std::array<float, kHalf> imaginary;
  for (std::size_t i = 0; i < kHalf; ++i) {
    real[i] = signal[std::size_t{2} * order_[i]];
    imaginary[i] = signal[std::size_t{2} * order_[i] + 1];
  }
  for (std::size_t half = 1; half < kHalf; half <<= 1) {
    const std::size_t stride = kHalf / half;  // of the twiddles, which are those of kTransform
    for (std::size_t start = 0; start < kHalf; start += 2 * half) {
      for (std::size_t k = 0; k < half; ++k) {
        const float c = cosines_[k * stride];
        const float s = sines_[k * stride];
        const std::size_t a = start + k;
        const std::size_t b = a + half;
        const float re = real[b] * c - imaginary[b] * s;
        const float im = real[b] * s + imaginary[b] * c;
        real[b] = real[a] - re;
        imaginary[b] = imaginary[a] - im;
        real[a] += re;
        imaginary[a] += im;
      }
    }
  }
  for (std::size_t k = 0; k <= kHalf; ++k) {
    const std::size_t a = k % kHalf;
    const std::size_t b = (kHalf - k) % kHalf;
    const float even_re = (real[a] + real[b]) / 2;
    const float even_im = (imaginary[a] - imaginary[b]) / 2;
    const float odd_re = (imaginary[a] + imaginary[b]) / 2;
    const float odd_im = (real[b] - real[a]) / 2;
    const float c = k == kHalf ? -1 : cosines_[k];
    const float s = k == kHalf ? 0 : sines_[k];
    const float re = even_re + odd_re * c - odd_im * s;
    const float im = even_im + odd_re * s + odd_im * c;
    power[k] = re * re + im * im;
  }
}

void Fbank::compute(const float* samples, float before, float* features) const {
  std::array<float, kTransform> frame{};
  float mean = 0;
  if (kind_ == Kind::kKaldi) {
    for (std::size_t i = 0; i < kWindow; ++i) mean += samples[i];
    mean /= static_cast<float>(kWindow);
  }
  const bool alone = kind_ != Kind::kNemo;  // each frame for itself
  if (alone) before = samples[0];
  float last = before - mean;
  for (std::size_t i = 0; i < kWindow; ++i) {
    const float sample = samples[i] - mean;
    frame[i] = (sample - kEmphasis * last) * window_[i];
    last = sample;
  }
  Spectrum spectrum;
  power(frame.data(), spectrum);
  for (std::size_t band = 0; band < filters_.size(); ++band) {
    const Band& filter = filters_[band];
    float energy = 0;
    for (std::size_t i = 0; i < filter.weights.size(); ++i) {
      energy += filter.weights[i] * spectrum[filter.first + i];
    }
    features[band] = alone ? std::log(std::max(energy, std::numeric_limits<float>::epsilon()))
                           : std::log(energy + 0x1p-24F);
  }
}

// What the first frame hears before the signal: its mirror image, or nothing (NeMo).
void FbankStream::begin() {
  const std::size_t lead = fbank_->lead();
  std::vector<float> samples(lead + 1);
  if (fbank_->kind() != Fbank::Kind::kNemo) {
    for (std::size_t i = 0; i < lead; ++i) samples[lead - i] = samples_[i];
  }
  samples.insert(samples.end(), samples_.begin(), samples_.end());
  samples_ = std::move(samples);
  begun_ = true;
}

void FbankStream::push(std::span<const float> samples) {
  samples_.insert(samples_.end(), samples.begin(), samples.end());
  if (!begun_) {
    if (samples_.size() < Fbank::kWindow) return;
    begin();
  }
  const std::size_t bands = fbank_->bands();
  std::size_t at = 1;
  for (; at + Fbank::kWindow <= samples_.size(); at += Fbank::kHop) {
    features_.resize(features_.size() + bands);
    fbank_->compute(samples_.data() + at, samples_[at - 1],
                    features_.data() + features_.size() - bands);
  }
  samples_.erase(samples_.begin(), samples_.begin() + static_cast<std::ptrdiff_t>(at - 1));
}

void FbankStream::drop(std::size_t frames) {
  dropped_ += frames;
  const std::size_t bands = fbank_->bands();
  // Seldom, for it moves what is kept.
  if (dropped_ * bands * 2 >= features_.size()) {
    features_.erase(features_.begin(),
                    features_.begin() + static_cast<std::ptrdiff_t>(dropped_ * bands));
    dropped_ = 0;
  }
}

std::size_t FbankStream::lacking(std::size_t frames) const {
  if (frames <= this->frames()) return 0;
  std::size_t wanted = (frames - this->frames() - 1) * Fbank::kHop + Fbank::kWindow;
  std::size_t held = samples_.size();
  if (begun_) {
    --held;
  } else {
    wanted = std::max(wanted - fbank_->lead(), Fbank::kWindow);
  }
  return wanted - std::min(wanted, held);
}

}  // namespace headrace
