// ReleaseGate: hands on finished batches in the order in which they were pulled, whatever the order
// in which several instances finish them (config.pbtxt `preserve_ordering`).
//
// Threads: release() from any. Invariant: every sequence number from 0 on is released exactly once;
// the thread that brings the next one hands on all that waited for it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <vector>

#include "core/request.h"

namespace headrace {

class ReleaseGate {
 public:
  using HandOn = std::function<void(std::vector<RequestPtr>&)>;
  explicit ReleaseGate(HandOn hand_on) : hand_on_(std::move(hand_on)) {}

  // Takes the requests of batch `sequence` and hands them on, now or from another thread's
  // release().
  void release(uint64_t sequence, std::vector<RequestPtr> requests);

 private:
  const HandOn hand_on_;  // called outside the lock, by one thread at a time
  std::mutex mutex_;
  std::map<uint64_t, std::vector<RequestPtr>> waiting_;  // guarded by mutex_
  uint64_t next_ = 0;                                    // guarded by mutex_
  bool handing_on_ = false;                              // guarded by mutex_
};

}  // namespace headrace
