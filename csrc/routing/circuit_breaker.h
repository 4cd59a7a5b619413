// CircuitBreaker: whether a version that fails much is asked at all. Closed: everything passes, and
// outcomes are counted in a sliding window. Open: nothing passes, for a while. Half-open: a few
// requests are let through; if they succeed it closes, if one fails it opens for twice as long.
//
// It opens when, of the last `window`, there were at least `min_requests` and a share of
// `failure_rate` or more failed, or when `consecutive` requests failed in a row.
// Threads: any. Time is a parameter. While closed: a load to pass, a compare-and-swap to count;
// no lock but for a change of state.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>

#include "base/clock.h"

namespace headrace {

struct BreakerOptions {
  double failure_rate = 0.5;
  uint32_t min_requests = 20;
  uint32_t consecutive = 0;  // 0: does not count
  Nanoseconds window = std::chrono::seconds(10);
  Nanoseconds open_for = std::chrono::seconds(5);
  Nanoseconds open_for_max = std::chrono::seconds(60);
  uint32_t probes = 3;  // of a half-open breaker: at the same time, and to succeed before it closes
};

class CircuitBreaker {
 public:
  enum class State : uint8_t { kClosed, kOpen, kHalfOpen };
  enum class Outcome : uint8_t { kSuccess, kFailure, kNeither };  // neither: says nothing
  // How a request passed; to be given back with its outcome.
  enum class Pass : uint8_t { kRefused, kNormal, kProbe };

  explicit CircuitBreaker(BreakerOptions options) : options_(options) {}

  Pass pass(TimePoint now);
  void record(Pass pass, Outcome outcome, TimePoint now);

  State state() const { return static_cast<State>(state_.load(std::memory_order_acquire)); }
  // Changes to each state since the start, by State.
  std::array<uint64_t, 3> changes() const;
  uint64_t refused() const { return refused_.load(std::memory_order_relaxed); }
  const BreakerOptions& options() const { return options_; }

 private:
  static constexpr std::size_t kSlots = 10;
  struct Counts {
    uint64_t requests = 0;
    uint64_t failures = 0;
  };

  void count(bool failed, TimePoint now);
  Counts counts(TimePoint now) const;
  uint32_t epoch_of(TimePoint now) const;
  // Under mutex_.
  void open(TimePoint now, Nanoseconds time);
  void change(State state);

  const BreakerOptions options_;
  std::atomic<uint8_t> state_{0};
  // A slot of the window: its number (24 bits), requests and failures (20 each, saturating).
  std::array<std::atomic<uint64_t>, kSlots> slots_{};
  std::atomic<uint32_t> in_a_row_{0};
  std::atomic<uint64_t> refused_{0};
  std::array<std::atomic<uint64_t>, 3> changes_{};

  std::mutex mutex_;  // changes of state
  // Guarded by mutex_.
  Nanoseconds time_open_{0};
  TimePoint until_;       // when open: half-open from then on; half-open: probes are given up then
  uint32_t probing_ = 0;  // under way
  uint32_t succeeded_ = 0;  // probes
};

}  // namespace headrace
