#include "batching/batch_policy.h"

#include <algorithm>

#include "batching/cost_model.h"

namespace headrace {
namespace {

// Batches that keep up with so much of what an instance could do leave it time for bursts.
constexpr double kBusyEnough = 0.8;

Cut cut_by_cost(const BatchPolicy& policy, const QueueView& queue, TimePoint now) {
  const std::vector<int64_t>& rows = queue.cumulative_rows;
  const CostModel& cost = *queue.cost;
  int64_t limit = batch_limit(policy, &cost);
  if (cost.learned()) {
    // What larger batches cost is looked at now and then, if it is not known.
    const int64_t widest = cost.largest_within(policy.latency_budget / 2, policy.max_rows);
    if (limit < widest && rows.back() >= widest && !cost.fresh(widest)) limit = widest;
  }
  const auto fitting = std::upper_bound(rows.begin(), rows.end(), limit) - rows.begin();
  const Cut go{std::max<std::size_t>(static_cast<std::size_t>(fitting), 1), kNever};
  if (go.requests < rows.size() || rows.back() >= limit || queue.closed || queue.draining ||
      !cost.learned()) {
    return go;
  }

  const auto queued = static_cast<double>(rows.back());
  const double batch_s = std::chrono::duration<double>(cost.mean(rows.back())).count();
  const double per_instance = queue.rows_per_s / static_cast<double>(queue.instances);
  if (per_instance * batch_s < kBusyEnough * queued) return go;
  // With a batch of n rows t(n) = fixed + n * row, and the next row expected in w, rows a second rise
  // as long as (n + 1) / (w + t(n + 1)) > n / t(n), which is fixed > n * w. So all the waiting is not
  // worth more than `fixed`.
  const double fixed_s = std::chrono::duration<double>(cost.fixed()).count();
  if (fixed_s * queue.rows_per_s <= queued) return go;
  Nanoseconds longest = cost.fixed();
  if (policy.max_queue_delay > Nanoseconds{0}) {
    longest = std::min(longest, policy.max_queue_delay);
  }
  const TimePoint worth = saturating_add(queue.oldest_queued, longest);
  const TimePoint latest = queue.due == kNever ? kNever : queue.due - cost.p95(limit);
  const TimePoint until = std::min(worth, latest);
  return now >= until ? go : Cut{0, until};
}

}  // namespace

std::size_t BatchPolicy::level_of(uint64_t priority) const {
  if (priority_levels == 0) return 0;
  if (priority == 0 || priority > priority_levels) priority = default_priority_level;
  if (priority == 0 || priority > priority_levels) priority = priority_levels;
  return priority - 1;
}

int64_t batch_limit(const BatchPolicy& policy, const CostModel* cost) {
  if (policy.latency_budget <= Nanoseconds{0} || cost == nullptr) return policy.max_rows;
  if (!cost->learned()) {
    // 1, 2, 4, 8: the largest may take far longer than the budget, and small ones teach as much.
    const int64_t rows = int64_t{1} << (4 * cost->batches() / CostModel::kLearned);
    return std::min(rows, policy.max_rows);
  }
  return cost->efficient(cost->largest_within(policy.latency_budget / 2, policy.max_rows));
}

Cut cut_batch(const BatchPolicy& policy, const QueueView& queue, TimePoint now) {
  const std::vector<int64_t>& rows = queue.cumulative_rows;
  if (rows.empty()) return {};
  if (policy.latency_budget > Nanoseconds{0} && queue.cost != nullptr) {
    return cut_by_cost(policy, queue, now);
  }
  const Cut everything{rows.size(), kNever};
  if (queue.draining) return everything;

  const bool may_wait = policy.max_queue_delay > Nanoseconds{0};
  const TimePoint wait_until = saturating_add(queue.oldest_queued, policy.max_queue_delay);
  if (may_wait && now >= wait_until) return everything;

  const std::vector<int64_t>& preferred = policy.preferred_batch_size;
  for (auto size = preferred.rbegin(); size != preferred.rend(); ++size) {
    const auto hit = std::lower_bound(rows.begin(), rows.end(), *size);
    if (hit != rows.end() && *hit == *size) {
      return {static_cast<std::size_t>(hit - rows.begin()) + 1, kNever};
    }
  }

  // Past the largest preferred size (or full) waiting gains nothing.
  const int64_t enough = preferred.empty() ? policy.max_rows : preferred.back();
  if (!may_wait || queue.closed || rows.back() >= enough) return everything;
  return {0, wait_until};
}

}  // namespace headrace
