// BusyPoll: whether an event loop that has nothing to do looks again for a moment before it sleeps.
// A core that sleeps takes tens of microseconds to wake, which is most of the latency of a client
// with one call in flight; a core that looks again does nothing else. So it is done only where it
// pays: when most of the last waits were ended by an event within the time one would look.
//
// One thread. Values only; the loop does the looking.
#pragma once

#include <algorithm>

#include "base/clock.h"

namespace headrace {

class BusyPoll {
 public:
  // The longest time to look, a wait. Zero: never.
  explicit BusyPoll(Nanoseconds longest) : longest_(longest) {}

  bool enabled() const { return longest_ > Nanoseconds{0}; }
  // How long the next wait is worth looking for: all of `longest` or nothing.
  Nanoseconds time() const { return score_ >= kWorth ? longest_ : Nanoseconds{0}; }
  // A wait is over, by an event or because a timer was due.
  void waited(Nanoseconds took) {
    score_ = took <= longest_ ? std::min(score_ + 1, kMost) : std::max(score_ - kMissCosts, 0);
  }

 private:
  // Worth it from two hits a miss on; a client that goes away costs four looks in vain.
  static constexpr int kMost = 16;
  static constexpr int kWorth = 8;
  static constexpr int kMissCosts = 2;

  const Nanoseconds longest_;
  int score_ = 0;
};

}  // namespace headrace
