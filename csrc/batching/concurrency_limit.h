// ConcurrencyLimit: how many requests of a model may be in flight, found by what they show: the gradient
// of latency (as in Envoy's adaptive concurrency and Netflix' concurrency-limits). It is for models whose
// time is not their own (a pipeline, a call to another service, an accelerator that is shared), where
// what batches cost (Admission) says too little.
//
// At the end of each window the limit is multiplied with `2 * executed / answered`: the execution at its
// quickest of late, against the mean time from arrival to answer; a square root of it is added, so that
// it grows while nothing waits. In balance a request waits about as long as it executes: there is always
// a next batch, and no queue behind it. No probing at low concurrency is needed: what a request takes
// without a queue is measured with each batch. Executions of all batch sizes count alike: where large
// batches take much longer than small ones, the quickest are those of quiet times, and for kMemory after
// one fewer are let in than could be.
//
// Threads: any; full() without a lock. Time is a parameter.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>

#include "base/clock.h"

namespace headrace {

class ConcurrencyLimit {
 public:
  static constexpr Nanoseconds kWindow = std::chrono::milliseconds(100);
  // A window has at least so many, unless it lasts kLongest.
  static constexpr uint64_t kAnswers = 20;
  static constexpr Nanoseconds kLongest = std::chrono::seconds(5);
  static constexpr Nanoseconds kMemory = std::chrono::seconds(30);  // of the quickest execution
  static constexpr std::size_t kMost = 10'000;

  // Never fewer than `least`; begins with `start`.
  ConcurrencyLimit(std::size_t least, std::size_t start);

  // Whether one more, with so many in flight already, is too many.
  bool full(std::size_t in_flight) const { return in_flight >= limit(); }
  std::size_t limit() const { return limit_.load(std::memory_order_relaxed); }

  // A request was answered well, `answered` after it arrived, of which its batch executed for `executed`;
  // so many were in flight, itself among them.
  void record(Nanoseconds answered, Nanoseconds executed, std::size_t in_flight, TimePoint now);

 private:
  void close_window(TimePoint now);

  const std::size_t least_;
  std::atomic<std::size_t> limit_;
  std::mutex mutex_;
  // All below guarded by mutex_.
  double exact_;  // the limit, with its fraction
  TimePoint began_{};
  uint64_t answers_ = 0;
  double answered_ns_ = 0;  // sums
  double executed_ns_ = 0;
  std::size_t in_flight_ = 0;  // the most
  // The least mean execution of a window, by tenths of kMemory.
  static constexpr std::size_t kSlots = 10;
  std::array<double, kSlots> quickest_{};
  std::array<int64_t, kSlots> slot_of_{};
};

}  // namespace headrace
