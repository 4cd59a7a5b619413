#include "batching/cost_model.h"

#include <algorithm>

namespace headrace {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;
// A size's mean follows a change within some ten batches.
constexpr double kGain = 0.1;
// A batch counts as at most this many times what was expected, so that one that met a page fault, or
// was not scheduled, does not look like a slow model. One that has become slow shows soon enough.
constexpr double kOutlier = 4;
constexpr uint64_t kFirst = 4;  // the first batches of a size
// The line remembers some fifty batches.
constexpr double kForget = 0.98;
// Sizes must differ so much (standard deviation / mean) for a line through them.
constexpr double kEnoughSpread = 0.1;
// Steps of the p95 tracker: 19 small ones down balance one up.
constexpr double kUp = 1 + 0.04 * 0.95;
constexpr double kDown = 1 - 0.04 * 0.05;
constexpr double kMostSpread = 4;
// A batch that costs no more than this many times one row is as good as one row.
constexpr double kHardlyMore = 1.25;
// Rows a second that are as good as the most there are.
constexpr double kAsFast = 0.95;

}  // namespace

double CostModel::mean_ns(int64_t rows) const {
  if (fresh(rows)) return buckets_[bucket_of(rows)].mean_ns.load(kRelaxed);
  return fixed_ns_.load(kRelaxed) +
         row_ns_.load(kRelaxed) * std::max(static_cast<double>(rows), pivot_.load(kRelaxed));
}

void CostModel::record(int64_t rows, Nanoseconds took) {
  if (recording_.test_and_set(std::memory_order_acquire)) return;
  const uint64_t seen = batches_.load(kRelaxed);
  auto ns = static_cast<double>(std::max<Nanoseconds::rep>(took.count(), 1));
  Bucket& bucket = buckets_[bucket_of(rows)];
  const uint64_t count = bucket.count.load(kRelaxed);
  const double mean = bucket.mean_ns.load(kRelaxed);
  if (seen >= kLearned) {
    const double expected = mean_ns(rows);
    const double spread = spread_.load(kRelaxed);
    const double next = spread * (ns > expected * spread ? kUp : kDown);
    spread_.store(std::clamp(next, 1.0, kMostSpread), kRelaxed);
    ns = std::min(ns, expected * kOutlier);
  }
  double next = ns;
  if (count >= kFirst || (count > 0 && ns > mean / 2)) {
    // Of the first few, one twice as fast shows what the slow ones before it were: warming up.
    next = mean + (ns - mean) * std::max(kGain, 1.0 / static_cast<double>(count + 1));
  }
  bucket.mean_ns.store(next, kRelaxed);
  bucket.count.store(count + 1, kRelaxed);
  bucket.last.store(seen + 1, kRelaxed);
  if (seen == kFirst) weight_ = sum_rows_ = sum_rows2_ = sum_ns_ = sum_rows_ns_ = 0;
  fit(static_cast<double>(std::max<int64_t>(rows, 1)), ns);
  batches_.store(seen + 1, kRelaxed);
  recording_.clear(std::memory_order_release);
}

void CostModel::fit(double rows, double ns) {
  weight_ = weight_ * kForget + 1;
  sum_rows_ = sum_rows_ * kForget + rows;
  sum_rows2_ = sum_rows2_ * kForget + rows * rows;
  sum_ns_ = sum_ns_ * kForget + ns;
  sum_rows_ns_ = sum_rows_ns_ * kForget + rows * ns;
  const double mean_rows = sum_rows_ / weight_;
  const double mean_ns = sum_ns_ / weight_;
  typical_.store(mean_rows, kRelaxed);
  const double variance = sum_rows2_ / weight_ - mean_rows * mean_rows;
  if (variance < kEnoughSpread * kEnoughSpread * mean_rows * mean_rows) {
    fixed_ns_.store(0, kRelaxed);
    row_ns_.store(mean_ns / mean_rows, kRelaxed);
    pivot_.store(mean_rows, kRelaxed);
    return;
  }
  double row = (sum_rows_ns_ / weight_ - mean_rows * mean_ns) / variance;
  row = std::clamp(row, 0.0, mean_ns / mean_rows);
  fixed_ns_.store(mean_ns - row * mean_rows, kRelaxed);
  row_ns_.store(row, kRelaxed);
  pivot_.store(0, kRelaxed);
}

Nanoseconds CostModel::mean(int64_t rows) const {
  return Nanoseconds(static_cast<Nanoseconds::rep>(mean_ns(rows)));
}

Nanoseconds CostModel::p95(int64_t rows) const {
  return Nanoseconds(static_cast<Nanoseconds::rep>(mean_ns(rows) * spread_.load(kRelaxed)));
}

int64_t CostModel::typical_rows() const {
  return static_cast<int64_t>(typical_.load(kRelaxed) + 0.5);
}

Nanoseconds CostModel::fixed() const {
  return Nanoseconds(static_cast<Nanoseconds::rep>(fixed_ns_.load(kRelaxed)));
}

Nanoseconds CostModel::per_row() const {
  return Nanoseconds(static_cast<Nanoseconds::rep>(row_ns_.load(kRelaxed)));
}

int64_t CostModel::largest_within(Nanoseconds budget, int64_t most) const {
  const double one = mean_ns(1);
  const double allowed =
      std::max(static_cast<double>(budget.count()) / spread_.load(kRelaxed), one * kHardlyMore);
  int64_t good = 1;
  int64_t bad = std::max<int64_t>(most, 1) + 1;
  if (mean_ns(bad - 1) <= allowed) return bad - 1;
  while (bad - good > 1) {
    const int64_t middle = good + (bad - good) / 2;
    (mean_ns(middle) <= allowed ? good : bad) = middle;
  }
  return good;
}

int64_t CostModel::efficient(int64_t most) const {
  const double enough = kAsFast * static_cast<double>(most) / mean_ns(most);
  // 1, 2, 3, 4, 6, 8, 12, 16, ...
  for (int64_t power = 1; power < most; power *= 2) {
    for (const int64_t rows : {power, power + power / 2}) {
      if (rows < most && static_cast<double>(rows) >= enough * mean_ns(rows)) return rows;
    }
  }
  return most;
}

}  // namespace headrace
