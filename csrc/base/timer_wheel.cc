#include "base/timer_wheel.h"

#include <algorithm>
#include <bit>

namespace headrace {

TimerWheel::TimerWheel(TimePoint start) : start_(start) {
  for (Timer& head : heads_) head.next_ = head.previous_ = &head;
}

uint64_t TimerWheel::tick_after(TimePoint when) const {
  const uint64_t ns = elapsed_ns(start_, when);
  constexpr uint64_t kTickNs = std::chrono::nanoseconds(kTick).count();
  return ns / kTickNs + (ns % kTickNs != 0 ? 1 : 0);
}

void TimerWheel::unlink(Timer& timer) {
  timer.previous_->next_ = timer.next_;
  timer.next_->previous_ = timer.previous_;
  timer.next_ = timer.previous_ = nullptr;
}

void TimerWheel::schedule(Timer& timer, TimePoint when) {
  cancel(timer);
  if (when == kNever) return;
  timer.tick_ = std::max(tick_after(when), current_ + 1);
  const std::size_t slot = timer.tick_ % kSlots;
  Timer& head = heads_[slot];
  timer.next_ = &head;
  timer.previous_ = head.previous_;
  head.previous_->next_ = &timer;
  head.previous_ = &timer;
  occupied_[slot / 64] |= uint64_t{1} << (slot % 64);
  ++size_;
}

void TimerWheel::cancel(Timer& timer) {
  if (!timer.scheduled()) return;
  unlink(timer);
  --size_;
}

void TimerWheel::advance(TimePoint now) {
  // Rounded down: a tick is due once all of it has passed.
  const uint64_t due = elapsed_ns(start_, now) / std::chrono::nanoseconds(kTick).count();
  if (due <= current_) return;
  // One turn of the wheel visits every slot; more would visit them again for nothing.
  const uint64_t first = due - current_ > kSlots ? due - kSlots + 1 : current_ + 1;
  current_ = due;
  for (uint64_t tick = first; tick <= due; ++tick) {
    const std::size_t slot = tick % kSlots;
    const uint64_t bit = uint64_t{1} << (slot % 64);
    if ((occupied_[slot / 64] & bit) == 0) continue;
    // Move the list aside: callbacks may schedule into this slot or cancel its timers.
    Timer& head = heads_[slot];
    Timer pending;
    pending.next_ = pending.previous_ = &pending;
    if (head.next_ != &head) {
      pending.next_ = head.next_;
      pending.previous_ = head.previous_;
      pending.next_->previous_ = pending.previous_->next_ = &pending;
      head.next_ = head.previous_ = &head;
    }
    occupied_[slot / 64] &= ~bit;
    while (pending.next_ != &pending) {
      Timer& timer = *pending.next_;
      unlink(timer);
      if (timer.tick_ > due) {  // a later turn of the wheel
        timer.next_ = &head;
        timer.previous_ = head.previous_;
        head.previous_->next_ = &timer;
        head.previous_ = &timer;
        occupied_[slot / 64] |= bit;
        continue;
      }
      --size_;
      timer.on_fire(timer);
    }
  }
}

int TimerWheel::sleep_ms(TimePoint now) const {
  if (size_ == 0) return -1;
  // Next occupied slot after current_, found a word at a time.
  for (uint64_t offset = 1; offset <= kSlots;) {
    const std::size_t slot = (current_ + offset) % kSlots;
    const uint64_t word = occupied_[slot / 64] >> (slot % 64);
    if (word == 0) {
      offset += 64 - slot % 64;
      continue;
    }
    const uint64_t tick = current_ + offset + static_cast<uint64_t>(std::countr_zero(word));
    const TimePoint when = start_ + kTick * static_cast<int64_t>(tick);
    if (when <= now) return 0;
    const auto wait = std::chrono::ceil<Milliseconds>(when - now).count();
    return static_cast<int>(wait);
  }
  return static_cast<int>(kSlots);
}

}  // namespace headrace
