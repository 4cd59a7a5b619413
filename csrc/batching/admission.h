// Admission: whether a request is worth taking: by time, not by count. What waits and what batches
// cost tell when it would be done; a request that would be late is refused at once, RESOURCE_EXHAUSTED
// with the time after which to try again, instead of being executed for nobody.
//
//   - A request with a deadline is refused when the p95 of its wait and its batch's time is past it.
//   - With a latency budget (an SLO), that is every request's deadline, unless its own is sooner.
//   - Otherwise, if asked for, CoDel (RFC 8289, in the form of Maurer, "Fail at Scale", 2015): its wait
//     is held to `queue_interval`, and to `queue_target` (but at least the batch after next) once it
//     has not been below the target for an interval: then the queue is no burst, it stands.
//   - If asked for, requests beyond what may be in flight (ConcurrencyLimit) are refused, whatever the
//     estimate says.
//
// Nothing is refused before the cost model has learned, nor while an instance is idle and nothing
// queued: so a model that has become fast again is noticed. Lower priority levels are shed first: what
// is ahead of them, and what will overtake them, is more.
// Estimated waits are corrected by what admitted requests did wait on average (learn()).
//
// Threads: any, without a lock. Pure but for that state: time is a parameter.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "base/clock.h"
#include "base/status.h"
#include "batching/batch_policy.h"
#include "batching/concurrency_limit.h"
#include "batching/cost_model.h"
#include "batching/queue_load.h"

namespace headrace {

struct AdmissionPolicy {
  bool by_deadline = true;
  bool by_budget = true;  // BatchPolicy::latency_budget
  // Zero: no CoDel, requests without a deadline may wait until the queue is full.
  Nanoseconds queue_target{0};
  Nanoseconds queue_interval = std::chrono::milliseconds(100);
  bool adaptive_concurrency = false;
};

struct Estimate {
  Nanoseconds wait{0};       // until its batch is taken
  Nanoseconds execution{0};  // of that batch
  // What 19 of 20 requests keep to beyond these: batches vary, and the sum of n of them by sqrt(n) as
  // much as one.
  Nanoseconds margin{0};
};
// When a request of so many rows would be answered. nullopt: nothing is known yet.
std::optional<Estimate> estimate(const BatchPolicy& policy, const CostModel& cost, const Load& load,
                                 int64_t rows);

// Why a request was refused: the `reason` label of headrace_admission_refused.
enum class Refusal : uint8_t { kDeadline = 0, kSlo, kQueue, kConcurrency };
inline constexpr std::size_t kRefusals = 4;

class Admission {
 public:
  // Of a version with so many instances, which take batches of at most `rows`.
  explicit Admission(AdmissionPolicy policy, std::size_t instances = 1, int64_t rows = 1);

  // Not OK: as many are in flight as may be, without the one that asks; answer that.
  Status decide_in_flight(std::size_t in_flight);
  // A request was answered well (ConcurrencyLimit::record).
  void answered(Nanoseconds after, Nanoseconds executed, std::size_t in_flight, TimePoint now) {
    if (concurrency_) concurrency_->record(after, executed, in_flight, now);
  }
  bool limits_concurrency() const { return concurrency_ != nullptr; }
  // 0: there is none.
  std::size_t concurrency_limit() const { return concurrency_ ? concurrency_->limit() : 0; }

  // Whether decide() can refuse such a request at all.
  bool applies(const BatchPolicy& batch, TimePoint deadline) const {
    return (deadline != kNever && policy_.by_deadline) ||
           (batch.latency_budget > Nanoseconds{0} && policy_.by_budget) ||
           policy_.queue_target > Nanoseconds{0};
  }

  // A request that arrived and would be queued now, behind `load`. Not OK: answer that. `expected` is
  // when its batch should be taken, for learn(); left alone when that is not known.
  Status decide(const BatchPolicy& batch, const CostModel& cost, const Load& load,
                TimePoint deadline, TimePoint arrived, int64_t rows, TimePoint now,
                TimePoint& expected);

  // A request that was admitted at `admitted`, to be taken when `expected` said, was taken (or is
  // given up) now.
  void learn(TimePoint admitted, TimePoint expected, TimePoint now);

  // What estimated waits are multiplied with.
  double correction() const { return correction_.load(std::memory_order_relaxed); }
  uint64_t refused(Refusal reason) const {
    return refused_[static_cast<std::size_t>(reason)].load(std::memory_order_relaxed);
  }

 private:
  // The longest wait that CoDel allows now.
  Nanoseconds queue_limit(const Estimate& estimate, std::size_t instances, TimePoint now);
  Status refuse(Refusal reason, Nanoseconds takes, Nanoseconds limit);
  // When to try again: spread, so that those who are refused together do not come back together.
  Milliseconds pushback(Nanoseconds late);

  const AdmissionPolicy policy_;
  const std::unique_ptr<ConcurrencyLimit> concurrency_;  // null: not limited
  std::atomic<double> correction_{1};
  std::atomic<TimePoint::rep> learned_at_{0};
  std::array<std::atomic<uint64_t>, kRefusals> refused_{};
  // CoDel: the least wait since the interval began, and whether the last interval's was too long.
  std::atomic<TimePoint::rep> interval_began_{0};
  std::atomic<Nanoseconds::rep> least_wait_{0};
  std::atomic<bool> standing_{false};
};

}  // namespace headrace
