// QueueLoad: what of a model version waits and runs, in few numbers: rows queued and arriving by
// priority level, and when an instance will be free. Admission asks it before a request is looked at.
//
// Threads: what changes it is called under the Batcher's lock; at() by any thread without one. It may
// see a change halfway: an estimate that is off by a request.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/clock.h"

namespace headrace {

// As a request of some priority level sees it.
struct Load {
  int64_t rows_ahead = 0;       // queued at its level or a higher one
  double rows_per_s = 0;        // that arrive, of all levels
  double overtaking_per_s = 0;  // of higher levels only: these pass it
  Nanoseconds free_in{0};       // until an instance can take a batch
  bool idle = false;            // one waits for work
  std::size_t instances = 1;
};

class QueueLoad {
 public:
  QueueLoad(std::size_t levels, std::size_t instances)
      : levels_(levels == 0 ? 1 : levels),
        busy_until_(instances == 0 ? 1 : instances, kIdle),
        instances_(busy_until_.size()) {}

  void arrived(std::size_t level, int64_t rows, TimePoint now);
  // Queued rows, more or fewer.
  void add(std::size_t level, int64_t rows) {
    std::atomic<int64_t>& queued = levels_[level].queued;
    queued.store(queued.load(std::memory_order_relaxed) + rows, std::memory_order_relaxed);
  }
  // The instance took a batch that should be done by `until`.
  void busy(std::size_t instance, TimePoint until) { set(instance, until); }
  void idle(std::size_t instance) { set(instance, kIdle); }
  // The instance is out of service until it is idle() or busy() again.
  void out(std::size_t instance) { set(instance, kNever); }

  Load at(std::size_t level, TimePoint now) const;
  // Those in service, at least 1.
  std::size_t instances() const { return instances_.load(std::memory_order_relaxed); }
  double rows_per_s(TimePoint now) const;

 private:
  static constexpr TimePoint kIdle{};
  static constexpr Nanoseconds kWindow = std::chrono::milliseconds(100);

  struct Level {
    Level() = default;
    Level(const Level&) {}  // only in the constructor's vector, when all is 0
    std::atomic<int64_t> queued{0};
    // Rows that came in the window before, and in this one.
    std::atomic<int64_t> before{0};
    std::atomic<int64_t> current{0};
    std::atomic<TimePoint::rep> since{0};  // this window's begin

    double rows_per_s(TimePoint now) const;
  };
  void set(std::size_t instance, TimePoint until);

  std::vector<Level> levels_;
  std::vector<TimePoint> busy_until_;  // by instance; kNever: out of service
  std::atomic<std::size_t> instances_;
  std::atomic<TimePoint::rep> free_at_{0};
};

}  // namespace headrace
