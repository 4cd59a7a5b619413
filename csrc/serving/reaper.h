// Reaper: one thread that makes every Batcher drop what timed out while all its instances are busy.
// It sleeps until the earliest timeout that a batcher told it.
//
// Threads: every member from any thread. remove() returns only when the batcher is not in use here,
// so not from an answer that the reaper gives.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "base/clock.h"
#include "batching/batcher.h"

namespace headrace {

class Reaper {
 public:
  Reaper();
  ~Reaper();
  Reaper(const Reaper&) = delete;
  Reaper& operator=(const Reaper&) = delete;

  // From now on `batcher.expire()` is called when it asks for it.
  void add(Batcher& batcher);
  void remove(Batcher& batcher);
  // A request that must leave the queue by `when` was pushed: look at the batcher then. Nothing
  // happens when the batcher was removed meanwhile.
  void wake_at(Batcher& batcher, TimePoint when);

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::unordered_map<Batcher*, TimePoint> next_;  // guarded by mutex_
  Batcher* expiring_ = nullptr;        // guarded by mutex_; expire() runs on it, unlocked
  TimePoint sleeping_until_ = kNever;  // guarded by mutex_
  bool stopping_ = false;              // guarded by mutex_
  std::thread thread_;
};

}  // namespace headrace
