// The one clock of the core: monotonic, so that a wall-clock jump moves no deadline. Functions that
// decide by time take `now` as a parameter; only the owners of loops and threads read the clock.
#pragma once

#include <time.h>

#include <chrono>
#include <cstdint>

namespace headrace {

using Clock = std::chrono::steady_clock;
using TimePoint = Clock::time_point;
using Nanoseconds = std::chrono::nanoseconds;
using Microseconds = std::chrono::microseconds;
using Milliseconds = std::chrono::milliseconds;

inline constexpr TimePoint kNever = TimePoint::max();

// Elapsed time in ns, 0 when `to` is before `from` (stamps of two threads may cross by a tick).
inline uint64_t elapsed_ns(TimePoint from, TimePoint to) {
  return to > from
             ? static_cast<uint64_t>(std::chrono::duration_cast<Nanoseconds>(to - from).count())
             : 0;
}

// `now + delay`, saturating at kNever.
inline TimePoint saturating_add(TimePoint now, Nanoseconds delay) {
  return kNever - now <= delay ? kNever : now + delay;
}

// CPU time of the calling thread, which a loaded machine does not stretch. A system call of some 0.2 us.
inline Nanoseconds thread_cpu_time() {
  struct timespec time {};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return std::chrono::seconds(time.tv_sec) + Nanoseconds(time.tv_nsec);
}

}  // namespace headrace
