// Batcher: the queue of one model version. I/O threads push requests; instance threads *pull*
// batches when they are free, so a batch is as large as what arrived while the instance was busy.
//
// Threads: push() from any thread, never blocks for longer than the lock; pull(), leave() and enter()
// from instance threads; borrow() and give_back() from any; expire() from the reaper; close() from
// any, again with kRefuse to cut a drain short.
// Invariants: a request leaves the queue exactly once: in a batch, or refused (cancelled, deadline
// passed, queue timeout, queue full, closed, no instance in service). Those that left early cost no
// execution.
// A batch holds requests of equal row shapes and the same optional inputs, higher priority levels
// first and in arrival order within a level; what does not fit ends the batch, so nothing is
// overtaken within its level.
// Cost: O(1) amortised a request (O(log n) with a deadline), no allocation once the queue has had
// its greatest length; an instance is woken only when it waits and there is a batch for it.
//
//   const TimePoint when = batcher.push(std::move(request));     // an I/O thread
//   if (when != kNever) reaper.wake_at(batcher, when);
//   while (batcher.pull(batch)) { execute(batch); batch.clear(); }  // an instance thread
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/clock.h"
#include "batching/batch_policy.h"
#include "batching/cost_model.h"
#include "batching/queue_load.h"
#include "core/request.h"

namespace headrace {

struct Batch {
  std::vector<RequestPtr> requests;
  int64_t rows = 0;
  TimePoint taken;  // when an instance took it
  // Position in the order of pulls; what preserve_ordering releases by.
  uint64_t sequence = 0;

  void clear() {
    requests.clear();
    rows = 0;
  }
};

class Batcher {
 public:
  // Takes each request that leaves the queue without a batch and answers it with the status:
  // CANCELLED, DEADLINE_EXCEEDED or UNAVAILABLE. Called outside the lock, on the thread that
  // noticed; must not block.
  using Refuse = std::function<void(RequestPtr, Status)>;
  // How long a queue goes without a look for cancelled requests; and when the last look found some.
  static constexpr Nanoseconds kLook = std::chrono::seconds(1);
  static constexpr Nanoseconds kLookAgain = std::chrono::milliseconds(10);

  Batcher(BatchPolicy policy, Refuse refuse, std::size_t instances = 1);
  ~Batcher();  // close(kRefuse)

  // Queues the request or refuses it: UNAVAILABLE "Exceeds maximum queue size" at the bound, or
  // when closed. The caller has set `rows`, `inputs`, `input_of` and `times.queued`.
  // Returns when expire() is to be called if that is sooner than push() or expire() said before,
  // otherwise kNever.
  TimePoint push(RequestPtr request);
  // The same for requests that arrived together, all moved from. Without `wake`, the caller goes on
  // to borrow(), which wakes an instance when it must.
  TimePoint push(std::span<RequestPtr> requests, bool wake = true);

  // Waits for a batch by the policy. False: closed and drained, the instance thread ends; or
  // give_back() wants the instance's own thread to see to it; or there was none until `attend_at`.
  // Fills an empty `batch`, which its caller keeps for the capacity of its vector. `instance` is the
  // number of the caller's instance.
  bool pull(Batch& batch, std::size_t instance = 0, TimePoint attend_at = kNever);

  // An instance that waited, in use by another thread; its own sleeps on.
  struct Waiter;
  struct Loan {
    Waiter* waiter = nullptr;
    std::size_t instance = 0;
    explicit operator bool() const { return waiter != nullptr; }
  };
  // Takes what an instance that waits would pull now, together with that instance, so that a short
  // batch costs no switch of threads. Goes on with the instance of a loan that is held. False: there
  // is no batch now or no instance waits (one is woken if it has to look again).
  bool borrow(Batch& batch, Loan& loan);
  // The instance waits again, or pulls when there is something for it; or, to `attend` to, its pull()
  // answers false. Without a loan: nothing.
  void give_back(Loan& loan, bool attend = false);

  // The instance, which does not pull() now, is out of service until it enter()s again. While none is
  // in service, what is queued and what is pushed is refused with `why` of the last that left.
  void leave(std::size_t instance, Status why);
  void enter(std::size_t instance);
  std::size_t in_service() const { return in_service_.load(std::memory_order_relaxed); }

  // Refuses what is past its deadline or queue timeout, and some of what is cancelled (all, in
  // queues of up to 64); returns when to call again (kNever: not before push() says so): for a
  // timeout while every instance is busy, and for who may have left meanwhile.
  TimePoint expire(TimePoint now);

  // How long a batch took that was pulled or borrowed, from then until its answers were sent. Any
  // thread.
  void executed(int64_t rows, Nanoseconds took) { cost_.record(rows, took); }
  const CostModel& cost() const { return cost_; }
  // What a request of this level would find. Any thread, without the lock.
  Load load(std::size_t level, TimePoint now) const;

  // No more pushes; pulls go on until the queue is empty (drain) or everything queued is refused
  // with UNAVAILABLE now.
  enum class Close : uint8_t { kDrain, kRefuse };
  void close(Close how);

  // What a request is answered that comes too late.
  static Status stopping();
  // Requests queued, not yet handed to an instance.
  std::size_t pending() const;
  const BatchPolicy& policy() const { return policy_; }

 private:
  struct State;
  const BatchPolicy policy_;
  const Refuse refuse_;
  CostModel cost_;
  std::atomic<std::size_t> in_service_;  // instances; written under the lock
  std::unique_ptr<State> state_;
};

// Whether two requests may share a batch: equal row shapes of all inputs and the same set of
// optional inputs.
bool compatible(const Request& a, const Request& b);

}  // namespace headrace
