// TimerWheel: many timers that mostly never fire (deadlines, time-outs). Hashed wheel of 1 ms slots
// with intrusive nodes: schedule and cancel are O(1) and allocate nothing.
//
// Threads: belongs to one thread (an event loop).
// Invariants: a timer fires at its time or up to one tick after it, never before. A callback may
// schedule and cancel any timer, itself included.
//
//   struct Call { TimerWheel::Timer deadline; };
//   call.deadline.on_fire = [](TimerWheel::Timer& t) { ... };
//   wheel.schedule(call.deadline, now + 50ms);
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/clock.h"

namespace headrace {

class TimerWheel {
 public:
  static constexpr std::size_t kSlots = 4096;
  static constexpr Milliseconds kTick{1};

  // A member of what it times. Must be cancelled before it is destroyed.
  struct Timer {
    using OnFire = void (*)(Timer&);
    OnFire on_fire = nullptr;
    void* owner = nullptr;  // for on_fire

    bool scheduled() const { return next_ != nullptr; }

   private:
    friend class TimerWheel;
    Timer* next_ = nullptr;
    Timer* previous_ = nullptr;
    uint64_t tick_ = 0;
  };

  explicit TimerWheel(TimePoint start);
  TimerWheel(const TimerWheel&) = delete;
  TimerWheel& operator=(const TimerWheel&) = delete;

  // Moves it when it is already scheduled. kNever: cancels.
  void schedule(Timer& timer, TimePoint when);
  void cancel(Timer& timer);

  // Fires what is due.
  void advance(TimePoint now);

  // How long to sleep at most before advance() has something to do; < 0: for ever.
  int sleep_ms(TimePoint now) const;
  std::size_t size() const { return size_; }

 private:
  // Ticks since start, rounded up: a timer may fire late, not early.
  uint64_t tick_after(TimePoint when) const;
  static void unlink(Timer& timer);

  const TimePoint start_;
  uint64_t current_ = 0;  // every slot up to this tick was handled
  std::size_t size_ = 0;
  std::array<Timer, kSlots> heads_;               // circular lists
  std::array<uint64_t, kSlots / 64> occupied_{};  // a bit a slot; may be set for an emptied slot
};

}  // namespace headrace
