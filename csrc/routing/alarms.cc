#include "routing/alarms.h"

#include <pthread.h>

namespace headrace {

Alarms::Alarms(Run run, TimePoint start) : wheel_(start) {
  if (run == Run::kByHand) return;
  thread_ = std::thread([this] { this->run(); });
  pthread_setname_np(thread_.native_handle(), "alarms");
}

Alarms::~Alarms() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Alarms::set(Sleeper& sleeper, TimePoint when) {
  bool wake = false;
  {
    const std::lock_guard lock(mutex_);
    TimerWheel::Timer& timer = sleeper.timer_;
    timer.owner = &sleeper;
    timer.on_fire = [](TimerWheel::Timer& fired) {
      // Still there: its destructor waits for the lock that we hold. But it may have begun.
      auto& late = *static_cast<Sleeper*>(fired.owner);
      if (auto held = late.weak_from_this().lock()) late.alarms_.due_.push_back(std::move(held));
    };
    wheel_.schedule(timer, when);
    if (when < sleeping_until_) {
      sleeping_until_ = when;
      wake = true;
    }
  }
  if (wake) changed_.notify_one();
}

void Alarms::cancel(Sleeper& sleeper) noexcept {
  const std::lock_guard lock(mutex_);
  if (sleeper.timer_.scheduled()) wheel_.cancel(sleeper.timer_);
}

void Alarms::advance(TimePoint now) {
  std::vector<std::shared_ptr<Sleeper>> due;
  {
    const std::lock_guard lock(mutex_);
    wheel_.advance(now);
    due.swap(due_);
  }
  for (const std::shared_ptr<Sleeper>& sleeper : due) sleeper->wake(now);
}

void Alarms::run() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    const TimePoint now = Clock::now();
    const int sleep_ms = wheel_.sleep_ms(now);
    if (sleep_ms == 0) {
      lock.unlock();
      advance(now);
      lock.lock();
      continue;
    }
    sleeping_until_ = sleep_ms < 0 ? kNever : now + Milliseconds(sleep_ms);
    if (sleep_ms < 0) {
      changed_.wait(lock);
    } else {
      changed_.wait_until(lock, sleeping_until_);
    }
    sleeping_until_ = TimePoint::min();
  }
}

}  // namespace headrace
