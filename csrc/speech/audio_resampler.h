// Resampler: any sample rate (kMinSampleRate to kMaxSampleRate) to kSpeechSampleRate, by a windowed sinc in
// polyphase form. Pass band to 0.43 of the lower rate, stop band (from 0.52 on) and images below -80 dB.
//
// Threads: ResamplerFilter is immutable and shared; a Resampler belongs to one thread, and is one channel's.
// Delay: 32 samples of the lower rate (2 ms), which finish() makes up for: the output is as long as
// the input, and begins with it.
//
//   Resampler resampler(ResamplerFilter::make(44100));
//   resampler.push(samples, out);    // appends
//   resampler.finish(out);
// ---------------------------------------------------------------------------------------------
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

namespace headrace {

class ResamplerFilter {
 public:
  static std::shared_ptr<const ResamplerFilter> make(uint32_t from_hz);

  uint32_t from_hz() const { return from_; }
  // The next output is `down / up` input samples after the last.
  uint64_t up() const { return up_; }
  uint64_t down() const { return down_; }
  // Input samples on each side of an output.
  std::size_t half() const { return half_; }
  // The output at `phase / up` of a sample after taps[half - 1]; `taps` are 2 * half inputs.
  float at(const float* taps, uint64_t phase) const;

 private:
  explicit ResamplerFilter(uint32_t from_hz);

  uint32_t from_;
  uint64_t up_;
  uint64_t down_;
  std::size_t half_;
  uint64_t rows_;  // phases that are tabled: all of them, or so many that lines between them do
  std::vector<float> table_;  // [rows + 1][2 * half]
};

// Filters by rate, as long as they are kept: a table takes milliseconds to make.
class ResamplerFilters {
 public:
  std::shared_ptr<const ResamplerFilter> get(uint32_t from_hz);

 private:
  static constexpr std::size_t kKept = 16;
  std::map<uint32_t, std::shared_ptr<const ResamplerFilter>> filters_;
};

class Resampler {
 public:
  explicit Resampler(std::shared_ptr<const ResamplerFilter> filter);

  void push(std::span<const float> samples, std::vector<float>& out);
  void finish(std::vector<float>& out);

 private:
  void produce(std::vector<float>& out, uint64_t most);

  std::shared_ptr<const ResamplerFilter> filter_;
  std::vector<float> held_;  // inputs that outputs to come need
  uint64_t first_ = 0;       // which input held_[0] is, counted with the silence before the first
  uint64_t pushed_ = 0;
  uint64_t produced_ = 0;
  uint64_t index_ = 0;  // of the input that the next output follows
  uint64_t phase_ = 0;  // and by how many / up
};

}  // namespace headrace
