// BatchPolicy and cut_batch: when a waiting instance takes a batch, and how many rows. A pure
// function of what is queued, so that it is tested without threads or a clock.
//
// Work-conserving by default: an idle instance takes what is there. It waits only when the model's
// configuration asks for it (`max_queue_delay_microseconds`); or, with a latency budget, when batches
// of what is there could not keep up with what arrives, a larger one saves more time than waiting for
// it costs, and the most urgent request can spare it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "base/clock.h"

namespace headrace {

class CostModel;

// config.pbtxt ModelQueuePolicy.
struct QueuePolicy {
  enum class TimeoutAction : uint8_t {
    kReject,  // answer UNAVAILABLE "Request timeout expired"
    kDelay,   // serve it after every request that has not timed out
  };
  TimeoutAction timeout_action = TimeoutAction::kReject;
  Nanoseconds default_timeout{0};       // 0 = none
  bool allow_timeout_override = false;  // the request's `timeout` parameter may shorten it
  uint32_t max_queue_size = 0;          // requests; 0 = BatchPolicy::queue_bound
};

struct BatchPolicy {
  int64_t max_rows = 1;                       // 1: requests are executed one by one
  std::vector<int64_t> preferred_batch_size;  // ascending; empty: any size will do
  Nanoseconds max_queue_delay{0};
  bool preserve_ordering = false;
  uint64_t priority_levels = 0;  // 0: one queue. Otherwise 1 (highest) .. priority_levels
  uint64_t default_priority_level = 0;
  QueuePolicy default_queue_policy;
  std::map<uint64_t, QueuePolicy> priority_queue_policy;  // by level, instead of the default
  // Everything has a bound: requests queued a model version, whatever its configuration says.
  uint32_t queue_bound = 65536;
  // An SLO: requests are to be answered so soon after they arrived. Then the cost model decides how
  // large batches are and how long to wait for them, not preferred_batch_size; max_queue_delay is the
  // longest wait, if it is given. 0: none.
  Nanoseconds latency_budget{0};

  // The queue that a request of this priority belongs to, 0 the highest.
  std::size_t level_of(uint64_t priority) const;
};

// The most rows of a batch: max_rows; with a budget, what the cost model says fits twice into it (a
// request may have just missed the batch before), or fewer if those are executed as fast: one, when
// a batch costs as much as its rows would one by one.
int64_t batch_limit(const BatchPolicy& policy, const CostModel* cost);

// What an instance sees: the longest run of compatible requests (same shapes, same optional inputs)
// from the head of the queue, as cumulative row counts, at most `max_rows`.
struct QueueView {
  const std::vector<int64_t>& cumulative_rows;  // ascending; [0] = rows of the oldest request
  TimePoint oldest_queued;
  // Nothing that arrives later can join: the run is full, or a request that does not fit follows
  // it.
  bool closed = false;
  // The batcher is shutting down: take what is there.
  bool draining = false;
  // For a policy with a latency budget; null: not known yet.
  const CostModel* cost = nullptr;
  TimePoint due = kNever;  // when the most urgent of the run has to be answered
  double rows_per_s = 0;   // that arrive
  std::size_t instances = 1;
};

struct Cut {
  std::size_t requests = 0;       // how many to take; 0: wait
  TimePoint wait_until = kNever;  // when to look again, if nothing arrives before
};

Cut cut_batch(const BatchPolicy& policy, const QueueView& queue, TimePoint now);

}  // namespace headrace
