#include "serving/reaper.h"

#include <pthread.h>

#include <algorithm>

namespace headrace {

Reaper::Reaper() : thread_([this] { run(); }) {
  pthread_setname_np(thread_.native_handle(), "reaper");
}

Reaper::~Reaper() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Reaper::add(Batcher& batcher) {
  const std::lock_guard lock(mutex_);
  next_.emplace(&batcher, kNever);
}

void Reaper::remove(Batcher& batcher) {
  std::unique_lock lock(mutex_);
  next_.erase(&batcher);
  changed_.wait(lock, [&] { return expiring_ != &batcher; });
}

void Reaper::wake_at(Batcher& batcher, TimePoint when) {
  {
    const std::lock_guard lock(mutex_);
    const auto entry = next_.find(&batcher);
    if (entry == next_.end() || entry->second <= when) return;
    entry->second = when;
    if (sleeping_until_ <= when) return;
    sleeping_until_ = when;
  }
  changed_.notify_all();
}

void Reaper::run() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    const auto earliest =
        std::min_element(next_.begin(), next_.end(),
                         [](const auto& a, const auto& b) { return a.second < b.second; });
    sleeping_until_ = earliest == next_.end() ? kNever : earliest->second;
    const TimePoint now = Clock::now();
    if (sleeping_until_ > now) {
      if (sleeping_until_ == kNever) {
        changed_.wait(lock);
      } else {
        changed_.wait_until(lock, sleeping_until_);
      }
      continue;
    }
    Batcher* const batcher = earliest->first;
    earliest->second = kNever;
    expiring_ = batcher;
    lock.unlock();
    const TimePoint next = batcher->expire(now);
    lock.lock();
    expiring_ = nullptr;
    if (const auto entry = next_.find(batcher); entry != next_.end()) {
      entry->second = std::min(entry->second, next);
    }
    changed_.notify_all();  // remove() may wait for it
  }
}

}  // namespace headrace
