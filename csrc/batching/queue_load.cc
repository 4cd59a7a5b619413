#include "batching/queue_load.h"

#include <algorithm>

namespace headrace {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;

}  // namespace

void QueueLoad::arrived(std::size_t level, int64_t rows, TimePoint now) {
  Level& at = levels_[level];
  const TimePoint since{Nanoseconds(at.since.load(kRelaxed))};
  const int64_t current = at.current.load(kRelaxed);
  if (now - since < kWindow) {
    at.current.store(current + rows, kRelaxed);
    return;
  }
  at.before.store(now - since < 2 * kWindow ? current : 0, kRelaxed);
  at.current.store(rows, kRelaxed);
  at.since.store(now.time_since_epoch().count(), kRelaxed);
}

double QueueLoad::Level::rows_per_s(TimePoint now) const {
  const Nanoseconds age = now.time_since_epoch() - Nanoseconds(since.load(kRelaxed));
  if (age >= 2 * kWindow) return 0;
  const int64_t rows = before.load(kRelaxed) + current.load(kRelaxed);
  return static_cast<double>(rows) /
         std::chrono::duration<double>(kWindow + std::max(age, Nanoseconds(0))).count();
}

double QueueLoad::rows_per_s(TimePoint now) const {
  double sum = 0;
  for (const Level& level : levels_) sum += level.rows_per_s(now);
  return sum;
}

void QueueLoad::set(std::size_t instance, TimePoint until) {
  if (instance >= busy_until_.size()) return;
  const bool moves = (busy_until_[instance] == kNever) != (until == kNever);
  busy_until_[instance] = until;
  if (moves) {
    const auto out = std::count(busy_until_.begin(), busy_until_.end(), kNever);
    instances_.store(std::max<std::size_t>(busy_until_.size() - static_cast<std::size_t>(out), 1),
                     kRelaxed);
  }
  TimePoint first = *std::min_element(busy_until_.begin(), busy_until_.end());
  if (first == kNever) first = kIdle;  // nobody waits for what is refused
  free_at_.store(first.time_since_epoch().count(), kRelaxed);
}

Load QueueLoad::at(std::size_t level, TimePoint now) const {
  Load load;
  load.instances = instances();
  for (std::size_t i = 0; i < levels_.size(); ++i) {
    const double rate = levels_[i].rows_per_s(now);
    load.rows_per_s += rate;
    if (i < level) load.overtaking_per_s += rate;
    if (i <= level) load.rows_ahead += levels_[i].queued.load(kRelaxed);
  }
  const TimePoint::rep free_at = free_at_.load(kRelaxed);
  load.idle = free_at == 0;
  // A batch that should have ended will take about as much longer as it is late.
  if (!load.idle) load.free_in = std::chrono::abs(now.time_since_epoch() - Nanoseconds(free_at));
  return load;
}

}  // namespace headrace
