// CostModel: how long a batch of n rows takes on an instance, learned from the batches that were
// executed. What it knows of a size is a mean that forgets; sizes it has not seen lately follow from
// a line through the others.
//
// Threads: record() from any (of two at once, one is left out: a sample more or less is nothing); the
// rest from any, never waiting. Answers may mix two moments; they are estimates.
// Cost: record() some 50 ns, mean() a few loads.
//
//   cost.record(batch.rows, took);
//   if (cost.learned()) plan_for(cost.mean(8), cost.p95(8));
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "base/clock.h"

namespace headrace {

class CostModel {
 public:
  // Batches until it is believed: the first ones of a model allocate, compile and fault pages in.
  static constexpr uint64_t kLearned = 16;

  void record(int64_t rows, Nanoseconds took);

  uint64_t batches() const { return batches_.load(std::memory_order_relaxed); }
  bool learned() const { return batches() >= kLearned; }

  // Before a first batch: 0.
  Nanoseconds mean(int64_t rows) const;
  // Of 20 batches of so many rows, 19 take no longer.
  Nanoseconds p95(int64_t rows) const;

  // Rows of the batches lately, on average; at least 1.
  int64_t typical_rows() const;

  // The line: a batch costs fixed() + rows * per_row(). What a larger batch shares is fixed().
  Nanoseconds fixed() const;
  Nanoseconds per_row() const;

  // The most rows, up to `most`, whose p95 is within the budget; but at least as many as cost hardly
  // more than one row does, for a budget that not even one keeps. At least 1.
  int64_t largest_within(Nanoseconds budget, int64_t most) const;
  // The fewest rows that are executed about as fast, in rows a second, as `most` at a time: what
  // larger batches add is latency. At least 1.
  int64_t efficient(int64_t most) const;
  // Whether batches of this size were seen lately.
  bool fresh(int64_t rows) const {
    const Bucket& bucket = buckets_[bucket_of(rows)];
    return bucket.count.load(std::memory_order_relaxed) != 0 &&
           batches() - bucket.last.load(std::memory_order_relaxed) < kFresh;
  }

 private:
  // Sizes to 16 have a bucket each, then there are eight an octave.
  static constexpr std::size_t kExact = 16;
  static constexpr std::size_t kOctaves = 16;  // up to 2^20 rows
  static constexpr std::size_t kBuckets = kExact + 1 + kOctaves * 8;
  // A size that was not seen for so many batches is told by the line.
  static constexpr uint64_t kFresh = 512;

  struct Bucket {
    std::atomic<double> mean_ns{0};
    std::atomic<uint64_t> count{0};
    std::atomic<uint64_t> last{0};  // batches_ when it was seen
  };

  static std::size_t bucket_of(int64_t rows) {
    const auto n = static_cast<uint64_t>(rows < 1 ? 1 : rows);
    if (n <= kExact) return n;
    const auto octave = static_cast<std::size_t>(std::bit_width(n)) - 1;  // >= 4
    const std::size_t index = kExact + 1 + (octave - 4) * 8 + ((n >> (octave - 3)) & 7);
    return index < kBuckets ? index : kBuckets - 1;
  }
  double mean_ns(int64_t rows) const;
  void fit(double rows, double ns);

  std::atomic_flag recording_ = ATOMIC_FLAG_INIT;
  std::atomic<uint64_t> batches_{0};
  std::array<Bucket, kBuckets> buckets_;
  std::atomic<double> spread_{1};  // p95 / mean
  // The line: fixed + row * max(rows, pivot). Of one size only, nothing is known of its slope: larger
  // ones cost in proportion, smaller ones the same. Too much is assumed, never too little.
  std::atomic<double> fixed_ns_{0};
  std::atomic<double> row_ns_{0};
  std::atomic<double> pivot_{0};
  std::atomic<double> typical_{1};

  // Of who records: sums over the last batches, each counting a little less than the next.
  double weight_ = 0;
  double sum_rows_ = 0;
  double sum_rows2_ = 0;
  double sum_ns_ = 0;
  double sum_rows_ns_ = 0;
};

}  // namespace headrace
