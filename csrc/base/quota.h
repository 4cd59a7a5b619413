// Quota: so many events a second, with bursts: a token bucket in one number (GCRA: when it will be full
// again), so that threads share it without a lock.
//
// Threads: any.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>

#include "base/clock.h"

namespace headrace {

class Quota {
 public:
  // `rate` > 0 a second; `burst` >= 1: what may come at once after a pause.
  Quota(double rate, double burst)
      : interval_(static_cast<Nanoseconds::rep>(std::clamp(1e9 / rate, 1.0, 1e18))),
        tolerance_(static_cast<Nanoseconds::rep>(
            std::min((burst - 1) * static_cast<double>(interval_), 1e18))) {}

  // Takes a token. None is left: how long until there is one.
  std::optional<Nanoseconds> take(TimePoint now) {
    const Nanoseconds::rep at = now.time_since_epoch().count();
    Nanoseconds::rep full = full_at_.load(std::memory_order_relaxed);
    for (;;) {
      const Nanoseconds::rep from = std::max(full, at);
      if (from - at > tolerance_) return Nanoseconds(from - at - tolerance_);
      if (full_at_.compare_exchange_weak(full, from + interval_, std::memory_order_relaxed)) {
        return std::nullopt;
      }
    }
  }

 private:
  const Nanoseconds::rep interval_;
  const Nanoseconds::rep tolerance_;
  std::atomic<Nanoseconds::rep> full_at_{0};
};

}  // namespace headrace
