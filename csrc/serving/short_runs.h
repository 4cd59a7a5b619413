// ShortRuns: whether a model's next batch is so short that the I/O thread had better execute it
// itself: waking an instance's thread and being woken by it costs some 30 us, more than a small model
// runs. Learned from batches that were executed; pure, so that it is tested without a clock.
//
// Threads: any (relaxed atomics: a stale answer costs one batch's time).
// A batch may be run if batches at least half its size were short. Runs that turned out longer (a loop
// in the model, a page fault, a busy machine) may take kLongShare of an I/O thread's time, a burst
// of kBurst included; then it is put off until that is made good.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/clock.h"

namespace headrace {

class ShortRuns {
 public:
  static constexpr Nanoseconds kShort = std::chrono::microseconds(100);
  static constexpr Nanoseconds kBurst = std::chrono::milliseconds(50);
  static constexpr int kLongShare = 50;  // one fiftieth

  // `bytes`: the batch's request messages.
  bool allows(std::size_t bytes, TimePoint now) const {
    return bytes <= short_bytes_.load(std::memory_order_relaxed) &&
           now.time_since_epoch().count() >= made_good_.load(std::memory_order_relaxed);
  }

  void record(std::size_t bytes, Nanoseconds took, TimePoint now, bool on_io_thread) {
    const std::size_t known = short_bytes_.load(std::memory_order_relaxed);
    if (took <= kShort) {
      if (2 * bytes > known) short_bytes_.store(2 * bytes, std::memory_order_relaxed);
      return;
    }
    if (bytes <= known) short_bytes_.store(bytes / 2, std::memory_order_relaxed);
    if (!on_io_thread) return;
    const TimePoint::rep burst_ago = (now - kBurst * kLongShare).time_since_epoch().count();
    const TimePoint::rep from = std::max(made_good_.load(std::memory_order_relaxed), burst_ago);
    made_good_.store(from + took.count() * kLongShare, std::memory_order_relaxed);
  }

 private:
  std::atomic<std::size_t> short_bytes_{0};
  std::atomic<TimePoint::rep> made_good_{INT64_MIN};  // when the long runs are
};

}  // namespace headrace
