// Batcher: the queue of one model version. I/O threads push requests; instance threads *pull*
// batches when they are free, so a batch is as large as what arrived while the instance was busy.
//
// Threads: push() from any thread, never blocks for longer than the lock; pull() from instance
// threads; expire() from the reaper; close() once.
// Invariants: a request leaves the queue exactly once: in a batch, or answered here (cancelled,
// deadline passed, queue timeout, queue full, closed). Those that left early cost no execution.
// A batch holds requests of equal row shapes and the same optional inputs, in arrival order within
// their priority level.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "base/clock.h"
#include "batching/batch_policy.h"
#include "core/request.h"

namespace headrace {

struct Batch {
  std::vector<RequestPtr> requests;
  int64_t rows = 0;
  // Position in the order of pulls; what preserve_ordering releases by.
  uint64_t sequence = 0;

  void clear() {
    requests.clear();
    rows = 0;
  }
};

class Batcher {
 public:
  // `on_refused` is called, outside the lock, for each request that the batcher answers itself, before
  // it is answered (statistics). It must not block.
  using OnRefused = std::function<void(const Request&, const Status&)>;
  Batcher(BatchPolicy policy, OnRefused on_refused);
  ~Batcher();  // close()

  // Queues the request or answers it: UNAVAILABLE "Exceeds maximum queue size" at the bound, or
  // when closed. The caller has set `rows`, `inputs`, `input_of` and `times.queued`.
  void push(RequestPtr request);

  // Waits for a batch by the policy. False: closed and drained, the instance thread ends.
  bool pull(Batch& batch);

  // Answers what is cancelled or past its deadline or queue timeout; returns when to call again
  // (kNever: not before the next push). For timeouts while every instance is busy.
  TimePoint expire(TimePoint now);

  // No more pushes; pulls go on until the queue is empty (drain) or everything queued is answered
  // UNAVAILABLE now.
  enum class Close : uint8_t { kDrain, kRefuse };
  void close(Close how);

  // Requests queued, not yet handed to an instance.
  std::size_t pending() const;
  const BatchPolicy& policy() const { return policy_; }

 private:
  struct State;
  const BatchPolicy policy_;
  const OnRefused on_refused_;
  std::unique_ptr<State> state_;
};

// Whether two requests may share a batch: equal row shapes of all dense inputs and the same set of
// optional inputs.
bool compatible(const Request& a, const Request& b);

}  // namespace headrace
