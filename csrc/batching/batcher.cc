#include "batching/batcher.h"

#include <algorithm>
#include <utility>

#include "batching/request_queue.h"

namespace headrace {

// An instance thread that waits. Kept by the Batcher, so that it may be signalled after the lock.
struct Batcher::Waiter {
  std::condition_variable signal;
  bool woken = false;
  bool lent = false;    // its instance is in use elsewhere: it must not pull
  bool attend = false;  // its thread has something to see to
  TimePoint until = kNever;
  std::size_t instance = 0;
};

namespace {

void answer_refused(const Batcher::Refuse& refuse, RequestQueue::Refused& refused) {
  for (auto& [request, status] : refused) refuse(std::move(request), std::move(status));
  refused.clear();
}

}  // namespace

struct Batcher::State {
  State(const BatchPolicy& policy, std::size_t instances, const CostModel& model)
      : queue(policy, instances, &model), cost(model) {}

  // The instance has the batch now.
  void took(Batch& batch, std::size_t requests, std::size_t instance, TimePoint now) {
    queue.take(requests, batch);
    batch.taken = now;
    batch.sequence = next_sequence++;
    queue.load().busy(instance, now + cost.mean(batch.rows));
  }

  // The waiting instance that a change of the queue concerns, if any; the caller signals it after
  // the lock. An instance that is on its way is in `idle` no more, so nobody is woken twice.
  Waiter* to_wake(TimePoint now, RequestQueue::Refused& refused) {
    if (idle.empty() || queue.empty()) return nullptr;
    const Cut cut = queue.cut(now, closed, refused);
    if (cut.requests == 0 &&
        (queue.empty() || std::any_of(idle.begin(), idle.end(), [&](const Waiter* waiter) {
           return waiter->until <= cut.wait_until;
         }))) {
      return nullptr;
    }
    Waiter* waiter = idle.back();  // the last to fall idle: its caches are warm
    idle.pop_back();
    waiter->woken = true;
    return waiter;
  }

  void wait(std::unique_lock<std::mutex>& lock, Waiter& waiter, TimePoint until) {
    waiter.woken = false;
    waiter.until = until;
    idle.push_back(&waiter);
    const auto woken = [&] { return waiter.woken; };
    if (until == kNever) {
      waiter.signal.wait(lock, woken);
    } else if (!waiter.signal.wait_until(lock, until, woken)) {
      if (waiter.lent) waiter.signal.wait(lock, woken);  // give_back() knows that its time is up
      std::erase(idle, &waiter);
    }
  }

  std::mutex mutex;
  // All below guarded by mutex.
  RequestQueue queue;
  const CostModel& cost;
  std::vector<std::unique_ptr<Waiter>> waiters;  // not in use
  std::vector<Waiter*> idle;                     // waiting and not yet woken
  TimePoint announced = kNever;                  // the next expire() that was asked for
  uint64_t next_sequence = 0;
  bool closed = false;
  bool refusing = false;  // closed, or no instance is in service:
  Status out;             // then this is why
};

Batcher::Batcher(BatchPolicy policy, Refuse refuse, std::size_t instances)
    : policy_(std::move(policy)),
      refuse_(std::move(refuse)),
      in_service_(std::max<std::size_t>(instances, 1)),
      state_(std::make_unique<State>(policy_, instances, cost_)) {}

Batcher::~Batcher() { close(Close::kRefuse); }

TimePoint Batcher::push(RequestPtr request) { return push({&request, 1}); }

TimePoint Batcher::push(std::span<RequestPtr> requests, bool wake) {
  if (requests.empty()) return kNever;
  RequestQueue::Refused refused;  // allocates only when there is one
  Waiter* waiter = nullptr;
  TimePoint announce = kNever;
  {
    const std::lock_guard lock(state_->mutex);
    const TimePoint now = requests.front()->times.queued;
    for (RequestPtr& request : requests) {
      if (state_->refusing) {
        refused.emplace_back(std::move(request), state_->closed ? stopping() : state_->out);
      } else {
        state_->queue.push(std::move(request), refused);
      }
    }
    TimePoint look = state_->queue.next_expiry();
    if (!state_->queue.empty()) look = std::min(look, now + kLook);
    if (look < state_->announced) state_->announced = announce = look;
    if (wake) waiter = state_->to_wake(now, refused);
  }
  if (waiter != nullptr) waiter->signal.notify_one();
  answer_refused(refuse_, refused);
  return announce;
}

bool Batcher::pull(Batch& batch, std::size_t instance, TimePoint attend_at) {
  RequestQueue::Refused refused;
  Waiter* next = nullptr;
  std::unique_lock lock(state_->mutex);
  std::unique_ptr<Waiter> waiter;
  bool took = false;
  for (;;) {
    const TimePoint now = Clock::now();
    Cut cut;
    state_->queue.expire(now, refused);
    if (!state_->queue.empty()) cut = state_->queue.cut(now, state_->closed, refused);
    if (!refused.empty()) {
      lock.unlock();
      answer_refused(refuse_, refused);
      lock.lock();
      continue;
    }
    if (cut.requests > 0) {
      state_->took(batch, cut.requests, instance, now);
      // What is left may concern another instance: a batch of its own, or a delay to wait for.
      next = state_->to_wake(now, refused);
      took = true;
      break;
    }
    if (state_->closed && state_->queue.empty()) break;
    if (now >= attend_at) {
      next = state_->to_wake(now, refused);  // in its place
      break;
    }
    if (waiter == nullptr && !state_->waiters.empty()) {
      waiter = std::move(state_->waiters.back());
      state_->waiters.pop_back();
    } else if (waiter == nullptr) {
      waiter = std::make_unique<Waiter>();
    }
    waiter->instance = instance;
    state_->queue.load().idle(instance);
    state_->wait(lock, *waiter, std::min({cut.wait_until, state_->queue.next_expiry(), attend_at}));
    if (std::exchange(waiter->attend, false)) {
      next = state_->to_wake(Clock::now(), refused);  // in its place
      break;
    }
  }
  if (waiter != nullptr) state_->waiters.push_back(std::move(waiter));
  lock.unlock();
  if (next != nullptr) next->signal.notify_one();
  answer_refused(refuse_, refused);
  return took;
}

bool Batcher::borrow(Batch& batch, Loan& loan) {
  RequestQueue::Refused refused;
  Waiter* next = nullptr;
  bool took = false;
  {
    const std::lock_guard lock(state_->mutex);
    const TimePoint now = Clock::now();
    state_->queue.expire(now, refused);
    Cut cut;
    if (!state_->queue.empty() && (loan || !state_->idle.empty())) {
      cut = state_->queue.cut(now, state_->closed, refused);
    }
    if (cut.requests > 0) {
      if (!loan) {
        loan.waiter = state_->idle.back();
        state_->idle.pop_back();
        loan.waiter->lent = true;
        loan.instance = loan.waiter->instance;
      }
      state_->took(batch, cut.requests, loan.instance, now);
      took = true;
    } else {
      next = state_->to_wake(now, refused);
    }
  }
  if (next != nullptr) next->signal.notify_one();
  answer_refused(refuse_, refused);
  return took;
}

void Batcher::give_back(Loan& loan, bool attend) {
  if (!loan) return;
  RequestQueue::Refused refused;
  {
    const std::lock_guard lock(state_->mutex);
    Waiter* waiter = std::exchange(loan.waiter, nullptr);
    const TimePoint now = Clock::now();
    waiter->lent = false;
    state_->queue.load().idle(waiter->instance);
    if (attend || state_->closed || waiter->until <= now) {
      waiter->attend = attend;
      waiter->woken = true;
    } else {
      state_->idle.push_back(waiter);
      waiter = state_->to_wake(now, refused);
    }
    // Under the lock: once it is open, the instance may end, and with it all of this.
    if (waiter != nullptr) waiter->signal.notify_one();
  }
  answer_refused(refuse_, refused);
}

void Batcher::leave(std::size_t instance, Status why) {
  RequestQueue::Refused refused;
  Waiter* waiter = nullptr;
  {
    const std::lock_guard lock(state_->mutex);
    state_->queue.load().out(instance);
    const std::size_t left = in_service_.fetch_sub(1, std::memory_order_relaxed) - 1;
    if (left == 0) {
      state_->refusing = true;
      state_->out = std::move(why);
      state_->queue.refuse_all(state_->out, refused);
    } else {
      waiter = state_->to_wake(Clock::now(), refused);
    }
  }
  if (waiter != nullptr) waiter->signal.notify_one();
  answer_refused(refuse_, refused);
}

void Batcher::enter(std::size_t instance) {
  const std::lock_guard lock(state_->mutex);
  state_->queue.load().idle(instance);
  in_service_.fetch_add(1, std::memory_order_relaxed);
  state_->refusing = state_->closed;
}

TimePoint Batcher::expire(TimePoint now) {
  RequestQueue::Refused refused;
  Waiter* waiter = nullptr;
  TimePoint next = kNever;
  {
    const std::lock_guard lock(state_->mutex);
    state_->queue.expire(now, refused);
    const std::size_t expired = refused.size();
    state_->queue.drop_cancelled(refused);
    next = state_->queue.next_expiry();
    if (!state_->queue.empty()) {
      next = std::min(next, now + (refused.size() > expired ? kLookAgain : kLook));
    }
    state_->announced = next;
    waiter = state_->to_wake(now, refused);
  }
  if (waiter != nullptr) waiter->signal.notify_one();
  answer_refused(refuse_, refused);
  return next;
}

void Batcher::close(Close how) {
  RequestQueue::Refused refused;
  std::vector<Waiter*> woken;
  {
    const std::lock_guard lock(state_->mutex);
    state_->closed = state_->refusing = true;
    if (how == Close::kRefuse) state_->queue.refuse_all(stopping(), refused);
    woken.swap(state_->idle);
    for (Waiter* waiter : woken) waiter->woken = true;
  }
  for (Waiter* waiter : woken) waiter->signal.notify_one();
  answer_refused(refuse_, refused);
}

Status Batcher::stopping() {
  return Status::unavailable(
      "Server is stopping, scheduler for model has stopped accepting new inference requests");
}

Load Batcher::load(std::size_t level, TimePoint now) const {
  return std::as_const(state_->queue).load().at(level, now);
}

std::size_t Batcher::pending() const {
  const std::lock_guard lock(state_->mutex);
  return state_->queue.size();
}

bool compatible(const Request& a, const Request& b) {
  if (a.input_of.size() != b.input_of.size()) return false;
  for (std::size_t i = 0; i < a.input_of.size(); ++i) {
    const uint32_t of_a = a.input_of[i];
    const uint32_t of_b = b.input_of[i];
    if ((of_a == Request::kAbsent) != (of_b == Request::kAbsent)) return false;
    if (of_a == Request::kAbsent) continue;
    const std::span<const int64_t> shape_a = a.inputs[of_a].tensor.shape.span();
    const std::span<const int64_t> shape_b = b.inputs[of_b].tensor.shape.span();
    if (shape_a.size() != shape_b.size()) return false;
    // Without the batch dimension.
    for (std::size_t d = 1; d < shape_a.size(); ++d) {
      if (shape_a[d] != shape_b[d]) return false;
    }
  }
  return true;
}

}  // namespace headrace
