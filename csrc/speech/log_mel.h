// LogMel: Whisper's front-end. 16 kHz, frames of 400 samples every 160 (centred, reflected at the edges),
// periodic Hann window, power spectrum, Slaney mel bands of 0 to 8000 Hz, log10 within 80 dB of the loudest.
// Equals transformers' WhisperFeatureExtractor to 2e-5.
//
// Threads: immutable and shared.
//
//   LogMel mel(80);
//   std::vector<float> features = mel.compute(samples, mel.frames(samples.size()));   // [80, frames]
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace headrace {

class LogMel {
 public:
  static constexpr std::size_t kWindow = 400;
  static constexpr std::size_t kHop = 160;
  static constexpr std::size_t kBins = kWindow / 2 + 1;

  explicit LogMel(std::size_t bands);

  std::size_t bands() const { return bands_; }
  static std::size_t frames(std::size_t samples) { return samples / kHop; }
  // Band by band, `frames` values each. Samples that lack are silence, those left over are not seen.
  std::vector<float> compute(std::span<const float> samples, std::size_t frames) const;

 private:
  // A band's triangle: weights of the bins from `first` on.
  struct Band {
    std::size_t first = 0;
    std::vector<float> weights;
  };
  void power(const float* frame, float* power) const;

  std::size_t bands_;
  std::vector<Band> filters_;
  std::vector<float> window_;    // kWindow
  std::vector<float> cos_even_;  // [bin / 2][0..100], of even bins
  std::vector<float> cos_odd_;   // [bin / 2][0..100]
  std::vector<float> sin_even_;
  std::vector<float> sin_odd_;
};

}  // namespace headrace
