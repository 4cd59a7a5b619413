// Histogram: durations in nanoseconds, four buckets an octave (a bound is at most 25 % above any
// value in its bucket), recorded with one relaxed atomic add. Mergeable: buckets of two histograms add.
//
// Threads: record() from any thread; read() sees each counter at some recent moment.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace headrace {

class Histogram {
 public:
  static constexpr std::size_t kOctaves = 40;  // up to 2^41 ns, 36 minutes
  static constexpr std::size_t kBuckets = kOctaves * 4;

  struct Values {
    std::array<uint64_t, kBuckets> buckets{};
    uint64_t count = 0;
    uint64_t sum_ns = 0;
  };

  // `times` equal values at once: the requests of one batch share their compute times.
  void record(uint64_t ns, uint64_t times = 1) {
    buckets_[bucket_of(ns)].fetch_add(times, std::memory_order_relaxed);
    sum_ns_.fetch_add(ns * times, std::memory_order_relaxed);
  }

  Values read() const {
    Values values;
    for (std::size_t i = 0; i < kBuckets; ++i) {
      values.buckets[i] = buckets_[i].load(std::memory_order_relaxed);
      values.count += values.buckets[i];
    }
    values.sum_ns = sum_ns_.load(std::memory_order_relaxed);
    return values;
  }

  // Bucket i holds values v with upper_bound(i - 1) <= v < upper_bound(i), in ns.
  static constexpr uint64_t upper_bound(std::size_t bucket) {
    if (bucket < 4) return bucket + 1;
    const std::size_t octave = bucket / 4 + 1;
    return (uint64_t{1} << octave) + ((bucket % 4 + 1) << (octave - 2));
  }

  static constexpr std::size_t bucket_of(uint64_t ns) {
    if (ns < 4) return static_cast<std::size_t>(ns);
    const auto octave = static_cast<std::size_t>(std::bit_width(ns)) - 1;  // >= 2
    const std::size_t bucket = (octave - 1) * 4 + ((ns >> (octave - 2)) & 3);
    return bucket < kBuckets ? bucket : kBuckets - 1;
  }

 private:
  std::array<std::atomic<uint64_t>, kBuckets> buckets_{};
  std::atomic<uint64_t> sum_ns_{0};
};

}  // namespace headrace
