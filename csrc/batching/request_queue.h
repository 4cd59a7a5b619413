// RequestQueue: what a Batcher guards with its lock: the queued requests by priority level, their
// expiries, and the run of compatible requests at the head that the next batch is cut from.
//
// Threads: none of its own; the Batcher calls it under its lock. Refused requests are collected in
// `refused` and answered by the Batcher after the lock.
// Invariants: each level has two FIFO lists, timely and delayed (TimeoutAction::kDelay); batches
// are cut in list order: level 1 timely, level 1 delayed, level 2 timely, ... Requests sit in slots
// whose numbers are reused, so nothing is allocated once the queue has had its greatest length.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "batching/batch_policy.h"
#include "batching/batcher.h"
#include "batching/cost_model.h"
#include "batching/queue_load.h"
#include "core/request.h"

namespace headrace {

class RequestQueue {
 public:
  using Refused = std::vector<std::pair<RequestPtr, Status>>;

  // `cost` (null: none) and `policy` outlive the queue.
  explicit RequestQueue(const BatchPolicy& policy, std::size_t instances = 1,
                        const CostModel* cost = nullptr);

  // Adds the request, or puts it into `refused` when its level or the whole queue is full.
  void push(RequestPtr request, Refused& refused);
  // Removes what is past its deadline or queue timeout.
  void expire(TimePoint now, Refused& refused);
  // Looks for cancelled requests among the next kScan of every level that holds any.
  void drop_cancelled(Refused& refused);
  // How many requests to take now, or when to look again. Drops cancelled ones on its way.
  Cut cut(TimePoint now, bool draining, Refused& refused);
  // Moves the first `requests` into the batch.
  void take(std::size_t requests, Batch& batch);
  // Empties the queue.
  void refuse_all(const Status& status, Refused& refused);

  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  // The earliest expiry of a queued request, kNever if none.
  TimePoint next_expiry();

  // Readable by any thread without the lock.
  QueueLoad& load() { return load_; }
  const QueueLoad& load() const { return load_; }

 private:
  static constexpr uint32_t kNone = UINT32_MAX;
  static constexpr std::size_t kScan =
      64;  // cancelled flags read by a push that finds the queue full

  struct Slot {
    RequestPtr request;
    TimePoint queue_timeout = kNever;  // kNever also once it is in the delayed list
    uint32_t previous = kNone;
    uint32_t next = kNone;
    uint32_t list = 0;
    uint32_t generation = 0;  // tells expiries of the slot's earlier requests
    uint64_t run = 0;         // == run_.number: part of the current run
  };
  struct List {
    uint32_t head = kNone;
    uint32_t tail = kNone;
    uint32_t scan = kNone;  // where drop_cancelled() goes on
    std::size_t size = 0;
  };
  struct Expiry {
    TimePoint at;
    uint32_t slot;
    uint32_t generation;
  };
  // The longest run of compatible requests from the head, grown as requests arrive and started anew
  // when one of it leaves or one arrives ahead of its end.
  struct Run {
    uint64_t number = 1;
    std::vector<int64_t> rows;  // cumulative
    TimePoint oldest = kNever;
    TimePoint due = kNever;  // with a latency budget
    uint32_t last = kNone;
    uint32_t blocker = kNone;  // the request that does not fit
    bool full = false;
  };

  int64_t counted_rows(const Request& request) const;
  const QueuePolicy& queue_policy(std::size_t level) const;
  uint32_t allocate_slot();
  void link(uint32_t slot, uint32_t list);
  void unlink(uint32_t slot);
  RequestPtr remove(uint32_t slot);
  uint32_t first_from(std::size_t list) const;
  uint32_t following(uint32_t slot) const;
  void scan(uint32_t list, Refused& refused);
  void schedule(uint32_t slot);
  void drop_stale_expiries();
  void extend_run(Refused& refused);
  void restart_run();

  const BatchPolicy& policy_;
  const CostModel* const cost_;
  QueueLoad load_;
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_slots_;
  std::vector<List> lists_;       // two a level
  std::vector<Expiry> expiries_;  // a heap, the earliest in front; stale entries are dropped late
  std::size_t size_ = 0;
  Run run_;
};

}  // namespace headrace
