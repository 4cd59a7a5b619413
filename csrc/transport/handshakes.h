// Handshakes: the TLS connections of one loop that have not yet said anything in HTTP/2. Each gets
// `timeout` from its first moment; past `bound` the oldest goes, which is most likely the one that
// never meant to finish.
//
// Threads: belongs to one I/O thread.
#pragma once

#include <cstddef>
#include <functional>

#include "base/clock.h"
#include "base/timer_wheel.h"

namespace headrace {

class Handshakes {
 public:
  // A member of the connection; finish() before it is destroyed.
  class Entry {
   public:
    explicit Entry(void* connection) : owner(connection) {}
    void* const owner;

   private:
    friend class Handshakes;
    Entry* next_ = nullptr;
    Entry* previous_ = nullptr;
    TimePoint end_;
  };
  // Called with an entry that has just been taken out; it should close the connection.
  using OnOverdue = std::function<void(Entry& entry, bool crowded_out)>;

  Handshakes(TimerWheel& timers, std::function<TimePoint()> now, Nanoseconds timeout,
             std::size_t bound, OnOverdue on_overdue);
  ~Handshakes();
  Handshakes(const Handshakes&) = delete;
  Handshakes& operator=(const Handshakes&) = delete;

  void begin(Entry& entry);
  // Of an entry that is not in, too.
  void finish(Entry& entry);
  // Whether the time of an entry that began is over.
  bool overdue(const Entry& entry) const { return entry.end_ <= now_(); }
  std::size_t size() const { return size_; }

 private:
  void on_timer();
  void schedule();

  TimerWheel& timers_;
  const std::function<TimePoint()> now_;
  const Nanoseconds timeout_;
  const std::size_t bound_;
  const OnOverdue on_overdue_;
  Entry head_{nullptr};  // of a circular list, oldest first: all have the same time, so by end too
  std::size_t size_ = 0;
  TimerWheel::Timer timer_;  // for the oldest
};

}  // namespace headrace
