#include "batching/request_queue.h"

#include <algorithm>

namespace headrace {
namespace {

constexpr auto kLater = [](const auto& a, const auto& b) { return a.at > b.at; };

}  // namespace

RequestQueue::RequestQueue(const BatchPolicy& policy, std::size_t instances, const CostModel* cost)
    : policy_(policy),
      cost_(cost),
      load_(policy.priority_levels, instances),
      lists_(2 * std::max<uint64_t>(policy.priority_levels, 1)) {}

// Without batching a request is a batch, however many rows it has.
int64_t RequestQueue::counted_rows(const Request& request) const {
  return policy_.max_rows <= 1 ? 1 : request.rows;
}

const QueuePolicy& RequestQueue::queue_policy(std::size_t level) const {
  const auto own = policy_.priority_queue_policy.find(level + 1);
  return policy_.priority_levels == 0 || own == policy_.priority_queue_policy.end()
             ? policy_.default_queue_policy
             : own->second;
}

void RequestQueue::push(RequestPtr request, Refused& refused) {
  const std::size_t level = policy_.level_of(request->priority);
  load_.arrived(level, counted_rows(*request), request->times.queued);
  const QueuePolicy& limits = queue_policy(level);
  const auto timely = static_cast<uint32_t>(2 * level);
  const auto level_full = [&] {
    return limits.max_queue_size != 0 &&
           lists_[timely].size + lists_[timely + 1].size >= limits.max_queue_size;
  };
  if (level_full()) {
    scan(timely, refused);
    scan(timely + 1, refused);
  }
  if (size_ >= policy_.queue_bound) drop_cancelled(refused);
  if (level_full() || size_ >= policy_.queue_bound) {
    refused.emplace_back(std::move(request), Status::unavailable("Exceeds maximum queue size"));
    return;
  }

  Nanoseconds timeout = limits.default_timeout;
  if (limits.allow_timeout_override && request->timeout && *request->timeout > Nanoseconds{0} &&
      (timeout == Nanoseconds{0} || *request->timeout < timeout)) {
    timeout = *request->timeout;
  }
  const uint32_t index = allocate_slot();
  Slot& slot = slots_[index];
  slot.queue_timeout =
      timeout > Nanoseconds{0} ? saturating_add(request->times.queued, timeout) : kNever;
  slot.request = std::move(request);
  link(index, timely);
  schedule(index);
}

void RequestQueue::expire(TimePoint now, Refused& refused) {
  while (!expiries_.empty() && expiries_.front().at <= now) {
    std::pop_heap(expiries_.begin(), expiries_.end(), kLater);
    const Expiry expiry = expiries_.back();
    expiries_.pop_back();
    Slot& slot = slots_[expiry.slot];
    if (slot.generation != expiry.generation) continue;
    if (slot.request->deadline <= now) {
      refused.emplace_back(remove(expiry.slot),
                           Status::deadline_exceeded("the request's deadline passed in the queue"));
    } else if (queue_policy(slot.list / 2).timeout_action == QueuePolicy::TimeoutAction::kReject) {
      refused.emplace_back(remove(expiry.slot), Status::unavailable("Request timeout expired"));
    } else {
      slot.queue_timeout = kNever;
      unlink(expiry.slot);
      link(expiry.slot, slot.list | 1);
      schedule(expiry.slot);
    }
  }
}

void RequestQueue::drop_cancelled(Refused& refused) {
  for (uint32_t list = 0; list < lists_.size(); ++list) scan(list, refused);
}

void RequestQueue::scan(uint32_t list_index, Refused& refused) {
  List& list = lists_[list_index];
  // The cursor goes round, so that a long queue is covered by many calls.
  for (std::size_t looks = std::min(list.size, kScan); looks > 0; --looks) {
    const uint32_t index = list.scan == kNone ? list.head : list.scan;
    list.scan = slots_[index].next;
    if (slots_[index].request->cancelled()) {
      refused.emplace_back(remove(index), Status::cancelled(""));
    }
  }
}

Cut RequestQueue::cut(TimePoint now, bool draining, Refused& refused) {
  extend_run(refused);
  QueueView view{run_.rows, run_.oldest, run_.full || run_.blocker != kNone, draining};
  if (policy_.latency_budget > Nanoseconds{0}) {
    view.cost = cost_;
    view.due = run_.due;
    view.rows_per_s = load_.rows_per_s(now);
    view.instances = load_.instances();
  }
  return cut_batch(policy_, view, now);
}

void RequestQueue::take(std::size_t requests, Batch& batch) {
  for (; requests > 0; --requests) {
    batch.requests.push_back(remove(first_from(0)));
    batch.rows += batch.requests.back()->rows;
  }
  restart_run();
}

void RequestQueue::refuse_all(const Status& status, Refused& refused) {
  for (uint32_t index = first_from(0); index != kNone; index = first_from(0)) {
    refused.emplace_back(remove(index), status);
  }
}

TimePoint RequestQueue::next_expiry() {
  while (!expiries_.empty() &&
         slots_[expiries_.front().slot].generation != expiries_.front().generation) {
    std::pop_heap(expiries_.begin(), expiries_.end(), kLater);
    expiries_.pop_back();
  }
  return expiries_.empty() ? kNever : expiries_.front().at;
}

uint32_t RequestQueue::allocate_slot() {
  if (free_slots_.empty()) {
    slots_.emplace_back();
    return static_cast<uint32_t>(slots_.size() - 1);
  }
  const uint32_t index = free_slots_.back();
  free_slots_.pop_back();
  return index;
}

void RequestQueue::link(uint32_t index, uint32_t list_index) {
  List& list = lists_[list_index];
  Slot& slot = slots_[index];
  slot.list = list_index;
  slot.previous = list.tail;
  slot.next = kNone;
  (list.tail == kNone ? list.head : slots_[list.tail].next) = index;
  list.tail = index;
  ++list.size;
  ++size_;
  load_.add(list_index / 2, counted_rows(*slot.request));
  if (run_.last == kNone) return;
  if (list_index < slots_[run_.last].list) {
    restart_run();
  } else if (run_.blocker != kNone && list_index < slots_[run_.blocker].list) {
    run_.blocker = kNone;
  }
}

void RequestQueue::unlink(uint32_t index) {
  const Slot& slot = slots_[index];
  List& list = lists_[slot.list];
  (slot.previous == kNone ? list.head : slots_[slot.previous].next) = slot.next;
  (slot.next == kNone ? list.tail : slots_[slot.next].previous) = slot.previous;
  if (list.scan == index) list.scan = slot.next;
  --list.size;
  --size_;
  load_.add(slot.list / 2, -counted_rows(*slot.request));
  if (slot.run == run_.number) restart_run();
  if (run_.blocker == index) run_.blocker = kNone;
}

RequestPtr RequestQueue::remove(uint32_t index) {
  unlink(index);
  Slot& slot = slots_[index];
  ++slot.generation;
  free_slots_.push_back(index);
  return std::move(slot.request);
}

uint32_t RequestQueue::first_from(std::size_t list) const {
  for (; list < lists_.size(); ++list) {
    if (lists_[list].head != kNone) return lists_[list].head;
  }
  return kNone;
}

uint32_t RequestQueue::following(uint32_t index) const {
  const Slot& slot = slots_[index];
  return slot.next != kNone ? slot.next : first_from(slot.list + std::size_t{1});
}

void RequestQueue::schedule(uint32_t index) {
  const Slot& slot = slots_[index];
  const TimePoint at = std::min(slot.request->deadline, slot.queue_timeout);
  if (at == kNever) return;
  if (expiries_.size() >= 2 * size_ + 64) drop_stale_expiries();
  expiries_.push_back({at, index, slot.generation});
  std::push_heap(expiries_.begin(), expiries_.end(), kLater);
}

void RequestQueue::drop_stale_expiries() {
  std::erase_if(expiries_,
                [&](const Expiry& e) { return slots_[e.slot].generation != e.generation; });
  std::make_heap(expiries_.begin(), expiries_.end(), kLater);
}

void RequestQueue::extend_run(Refused& refused) {
  if (run_.full || run_.blocker != kNone) return;
  uint32_t index = run_.last == kNone ? first_from(0) : following(run_.last);
  while (index != kNone) {
    const uint32_t after = following(index);
    const Request& request = *slots_[index].request;
    if (request.cancelled()) {
      refused.emplace_back(remove(index), Status::cancelled(""));
      index = after;
      continue;
    }
    const int64_t rows = run_.rows.empty() ? 0 : run_.rows.back();
    // A first request of more than max_rows goes alone: then the model batches only within
    // requests.
    if (!run_.rows.empty() && (request.rows > policy_.max_rows - rows ||
                               !compatible(*slots_[first_from(0)].request, request))) {
      run_.blocker = index;
      return;
    }
    run_.rows.push_back(rows + request.rows);
    run_.oldest = std::min(run_.oldest, request.times.queued);
    if (policy_.latency_budget > Nanoseconds{0}) {
      const TimePoint budget = saturating_add(request.times.arrived, policy_.latency_budget);
      run_.due = std::min({run_.due, request.deadline, budget});
    }
    run_.last = index;
    slots_[index].run = run_.number;
    if (run_.rows.back() >= policy_.max_rows) {
      run_.full = true;
      return;
    }
    index = after;
  }
}

void RequestQueue::restart_run() {
  ++run_.number;
  run_.rows.clear();
  run_.oldest = run_.due = kNever;
  run_.last = run_.blocker = kNone;
  run_.full = false;
}

}  // namespace headrace
