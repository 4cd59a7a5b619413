// Alarms: one thread that wakes objects at a time: attempts that take too long, waits that end.
//
// Threads: every member from any thread. An object is woken without a lock held, one object at a
// time; it may set its alarm again. An alarm may ring late, never early, and once more than was
// asked for when it is moved while it rings: who is woken looks at its own state.
// Cost: setting is O(1) under a lock, and wakes the thread only when it would sleep too long.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/timer_wheel.h"

namespace headrace {

class Alarms {
 public:
  class Sleeper;
  enum class Run : uint8_t { kThread, kByHand };  // by hand: advance() is called, for tests

  explicit Alarms(Run run = Run::kThread, TimePoint start = Clock::now());
  ~Alarms();
  Alarms(const Alarms&) = delete;
  Alarms& operator=(const Alarms&) = delete;

  // Moves an alarm that is set. The sleeper must be held by a shared_ptr.
  void set(Sleeper& sleeper, TimePoint when);
  void cancel(Sleeper& sleeper) noexcept;
  // Rings what is due.
  void advance(TimePoint now);

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable changed_;
  TimerWheel wheel_;                             // guarded by mutex_
  std::vector<std::shared_ptr<Sleeper>> due_;    // guarded by mutex_; filled by advance()
  TimePoint sleeping_until_ = TimePoint::min();  // guarded by mutex_; min: awake
  bool stopping_ = false;                        // guarded by mutex_
  std::thread thread_;
};

class Alarms::Sleeper : public std::enable_shared_from_this<Alarms::Sleeper> {
 public:
  Sleeper(const Sleeper&) = delete;
  Sleeper& operator=(const Sleeper&) = delete;
  virtual void wake(TimePoint now) noexcept = 0;

 protected:
  explicit Sleeper(Alarms& alarms) : alarms_(alarms) {}
  virtual ~Sleeper() { alarms_.cancel(*this); }
  Alarms& alarms() const { return alarms_; }

 private:
  friend class Alarms;
  Alarms& alarms_;
  TimerWheel::Timer timer_;  // guarded by the alarms' mutex
};

}  // namespace headrace
