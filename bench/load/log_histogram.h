// LogHistogram: durations in nanoseconds, 64 buckets an octave, so a reported value is within 0.8 %
// of a recorded one (half a bucket). Kept apart from the server's own histogram on purpose: the
// measuring tool shares no code with what it measures.
//
// Threads: one.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace loadgen {

class LogHistogram {
 public:
  void record(int64_t ns) {
    const uint64_t value = ns > 0 ? static_cast<uint64_t>(ns) : 0;
    ++buckets_[bucket_of(value)];
    ++count_;
    sum_ += static_cast<double>(value);
    max_ = std::max(max_, value);
  }

  uint64_t count() const { return count_; }
  double mean_ns() const { return count_ == 0 ? 0 : sum_ / static_cast<double>(count_); }
  double max_ns() const { return static_cast<double>(max_); }

  // The middle of the bucket that holds the ceil(q * count)-th smallest value; 0 when empty.
  double quantile_ns(double q) const {
    const auto wanted = static_cast<uint64_t>(std::ceil(q * static_cast<double>(count_)));
    uint64_t seen = 0;
    for (std::size_t i = 0; i < buckets_.size(); ++i) {
      seen += buckets_[i];
      if (seen >= wanted && seen > 0) return std::min(middle_of(i), max_ns());
    }
    return 0;
  }

 private:
  static constexpr unsigned kSubBits = 6;
  static constexpr uint64_t kSub = 1u << kSubBits;  // values below it have a bucket each

  static std::size_t bucket_of(uint64_t value) {
    if (value < kSub) return value;
    const unsigned exponent = std::bit_width(value) - 1;
    const uint64_t sub = (value >> (exponent - kSubBits)) & (kSub - 1);
    return (exponent - kSubBits + 1) * kSub + sub;
  }

  static double middle_of(std::size_t bucket) {
    if (bucket < kSub) return static_cast<double>(bucket);
    const uint64_t shift = bucket / kSub - 1;
    const double low =
        std::ldexp(static_cast<double>(kSub + bucket % kSub), static_cast<int>(shift));
    return low + std::ldexp(0.5, static_cast<int>(shift));
  }

  std::array<uint64_t, (64 - kSubBits + 1) * kSub> buckets_{};
  uint64_t count_ = 0;
  double sum_ = 0;
  uint64_t max_ = 0;
};

}  // namespace loadgen
