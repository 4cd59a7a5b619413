#include "transport/handshakes.h"

#include <utility>

namespace headrace {

Handshakes::Handshakes(TimerWheel& timers, std::function<TimePoint()> now, Nanoseconds timeout,
                       std::size_t bound, OnOverdue on_overdue)
    : timers_(timers),
      now_(std::move(now)),
      timeout_(timeout),
      bound_(bound),
      on_overdue_(std::move(on_overdue)) {
  head_.next_ = head_.previous_ = &head_;
  timer_.owner = this;
  timer_.on_fire = [](TimerWheel::Timer& timer) {
    static_cast<Handshakes*>(timer.owner)->on_timer();
  };
}

Handshakes::~Handshakes() { timers_.cancel(timer_); }

void Handshakes::begin(Entry& entry) {
  while (size_ != 0 && size_ >= bound_) {
    Entry& oldest = *head_.next_;
    finish(oldest);
    on_overdue_(oldest, true);
  }
  entry.end_ = saturating_add(now_(), timeout_);
  entry.previous_ = head_.previous_;
  entry.next_ = &head_;
  head_.previous_->next_ = &entry;
  head_.previous_ = &entry;
  ++size_;
  schedule();
}

void Handshakes::finish(Entry& entry) {
  if (entry.next_ == nullptr) return;
  entry.previous_->next_ = entry.next_;
  entry.next_->previous_ = entry.previous_;
  entry.next_ = entry.previous_ = nullptr;
  --size_;
}

void Handshakes::on_timer() {
  const TimePoint now = now_();
  while (size_ != 0 && head_.next_->end_ <= now) {
    Entry& oldest = *head_.next_;
    finish(oldest);
    on_overdue_(oldest, false);
  }
  schedule();
}

// The timer may fire for one that has finished meanwhile: then it finds nothing overdue. Moving it at
// every finish() would cost more.
void Handshakes::schedule() {
  if (size_ != 0 && !timer_.scheduled()) timers_.schedule(timer_, head_.next_->end_);
}

}  // namespace headrace
