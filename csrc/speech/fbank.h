// Fbank: log-mel features of a stream of 16 kHz audio, a frame every 10 ms from 25 ms of sound.
//
//   kKaldi    what icefall's models hear (kaldi-native-fbank, snip_edges = false, dither 0): a frame's mean is
//             removed, pre-emphasis within the frame, Povey window, HTK mel bands of 20 to 7600 Hz, ln
//   kNemo     what NeMo's hear (FilterbankFeatures without normalisation): pre-emphasis along the signal, Hann
//             window, Slaney mel bands of 0 to 8000 Hz, ln(x + 2^-24)
//   kLibrosa  what sherpa-onnx gives to NeMo's: frames, pre-emphasis and ln as Kaldi's, window and bands of NeMo's
//
// Threads: Fbank is immutable and shared; an FbankStream belongs to one thread at a time.
//
//   FbankStream stream(fbank);
//   stream.push(samples);                                 // f32 in [-1, 1], any amount
//   if (stream.frames() >= 45) use(stream.data());        // [frames, bands]
//   stream.drop(32);                                      // the oldest
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

namespace headrace {

class Fbank {
 public:
  enum class Kind : unsigned char { kKaldi, kNemo, kLibrosa };
  static constexpr std::size_t kWindow = 400;  // samples
  static constexpr std::size_t kHop = 160;
  static constexpr std::size_t kTransform = 512;

  Fbank(Kind kind, std::size_t bands);

  Kind kind() const { return kind_; }
  std::size_t bands() const { return filters_.size(); }
  // Samples that the first frame begins before the signal.
  std::size_t lead() const { return kind_ == Kind::kNemo ? 200 : 120; }
  // One frame from kWindow samples; `before` is the sample before them. `features`: bands() values.
  void compute(const float* samples, float before, float* features) const;

 private:
  // A band's triangle: weights of the transform's bins from `first` on.
  struct Band {
    std::size_t first = 0;
    std::vector<float> weights;
  };
  using Spectrum = std::array<float, kTransform / 2 + 1>;
  void power(const float* signal, Spectrum& power) const;

  Kind kind_;
  std::vector<Band> filters_;
  std::array<float, kWindow> window_{};
  // Of a complex transform of half the length, and of its unfolding.
  std::array<float, kTransform / 2> cosines_{};
  std::array<float, kTransform / 2> sines_{};
  std::array<unsigned char, kTransform / 2> order_{};  // bits reversed
};

class FbankStream {
 public:
  explicit FbankStream(std::shared_ptr<const Fbank> fbank) : fbank_(std::move(fbank)) {}

  void push(std::span<const float> samples);
  std::size_t frames() const { return features_.size() / fbank_->bands() - dropped_; }
  // frames() rows of bands() values.
  const float* data() const { return features_.data() + dropped_ * fbank_->bands(); }
  void drop(std::size_t frames);
  // Samples that lack for so many frames(), 0 when these are there.
  std::size_t lacking(std::size_t frames) const;

 private:
  void begin();

  std::shared_ptr<const Fbank> fbank_;
  bool begun_ = false;
  std::vector<float>
      samples_;  // from a sample before the next frame on; until begun_ from the start
  std::vector<float> features_;
  std::size_t dropped_ = 0;  // frames at the front of features_
};

}  // namespace headrace
