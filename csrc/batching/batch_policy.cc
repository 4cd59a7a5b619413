#include "batching/batch_policy.h"

#include <algorithm>

namespace headrace {

Cut cut_batch(const BatchPolicy& policy, const QueueView& queue, TimePoint now) {
  const std::vector<int64_t>& rows = queue.cumulative_rows;
  if (rows.empty()) return {};
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
