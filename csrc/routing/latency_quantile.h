// LatencyQuantile: the 95th percentile of recent latencies, as one number that is always at hand.
// When nothing was recorded for kAge, it is not known: times change.
//
// Threads: any. record() is a relaxed add, and every kEvery-th also a look at the histogram; p95() is
// a relaxed load.
// What is recent: the last kWindow to 2 * kWindow values, or of the last kAge.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>

#include "base/clock.h"
#include "base/histogram.h"

namespace headrace {

class LatencyQuantile {
 public:
  static constexpr uint64_t kEvery = 16;
  static constexpr uint64_t kWindow = 512;
  static constexpr uint64_t kFewest = 16;
  static constexpr Nanoseconds kAge = std::chrono::seconds(10);

  void record(Nanoseconds took, TimePoint now) {
    histogram_.record(took.count() > 0 ? static_cast<uint64_t>(took.count()) : 0);
    if (count_.fetch_add(1, std::memory_order_relaxed) % kEvery == kEvery - 1) look(now);
  }

  // 0: not known. An upper bound, at most 25 % above.
  Nanoseconds p95(TimePoint now) const {
    const TimePoint looked(Nanoseconds(looked_.load(std::memory_order_relaxed)));
    if (now - looked > kAge) return Nanoseconds{0};
    return Nanoseconds(p95_.load(std::memory_order_relaxed));
  }

 private:
  void look(TimePoint now) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) return;  // somebody looks already
    const Histogram::Values values = histogram_.read();
    const uint64_t count = values.count - old_.count;
    if (count < kFewest) return;
    uint64_t above = count / 20;  // so many may be longer
    for (std::size_t i = Histogram::kBuckets; i-- > 0;) {
      const uint64_t here = values.buckets[i] - old_.buckets[i];
      if (here > above) {
        p95_.store(static_cast<int64_t>(Histogram::upper_bound(i)), std::memory_order_relaxed);
        looked_.store(now.time_since_epoch().count(), std::memory_order_relaxed);
        break;
      }
      above -= here;
    }
    if (values.count - middle_.count >= kWindow || now - turned_ >= kAge) {
      old_ = middle_;
      middle_ = values;
      turned_ = now;
    }
  }

  Histogram histogram_;
  std::atomic<uint64_t> count_{0};
  std::atomic<int64_t> p95_{0};
  std::atomic<TimePoint::rep> looked_{0};
  std::mutex mutex_;
  Histogram::Values old_;     // guarded by mutex_: what is counted starts here
  Histogram::Values middle_;  // guarded by mutex_
  TimePoint turned_;          // guarded by mutex_
};

}  // namespace headrace
