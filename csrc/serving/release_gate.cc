#include "serving/release_gate.h"

#include <utility>

namespace headrace {

void ReleaseGate::release(uint64_t sequence, std::vector<RequestPtr> requests) {
  std::unique_lock lock(mutex_);
  waiting_.emplace(sequence, std::move(requests));
  if (handing_on_) return;  // that thread will see it
  handing_on_ = true;
  while (!waiting_.empty() && waiting_.begin()->first == next_) {
    std::vector<RequestPtr> ready = std::move(waiting_.begin()->second);
    waiting_.erase(waiting_.begin());
    ++next_;
    lock.unlock();
    hand_on_(ready);
    lock.lock();
  }
  handing_on_ = false;
}

}  // namespace headrace
