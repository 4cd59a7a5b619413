// EventLoop: one I/O thread: epoll, timers, an eventfd for messages from other threads.
//
// Threads: run() on the loop's own thread; wake(), post() and stop() from any thread; everything else
// on the loop's thread (or before run()).
// A turn: poll -> sockets -> messages (Inbox) -> posted functions -> timers -> end of turn (connections
// with output flush once).
// ---------------------------------------------------------------------------------------------
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "base/timer_wheel.h"
#include "transport/busy_poll.h"

struct epoll_event;

namespace headrace {

class EventLoop {
 public:
  class FdHandler {
   public:
    virtual ~FdHandler() = default;
    virtual void on_ready(uint32_t events) = 0;  // EPOLLIN, ...
  };
  // Something that gets messages from other threads: it keeps its own queue and calls wake().
  class Inbox {
   public:
    virtual ~Inbox() = default;
    virtual void on_wake() = 0;
  };
  // Wants to be called once at the end of this turn. Must outlive the turn.
  class TurnEnd {
   public:
    virtual ~TurnEnd() = default;
    virtual void on_turn_end() = 0;
  };

  // `busy_poll`: how long a wait may look for events before it sleeps (busy_poll.h); zero: not at
  // all. It does so only while `idle()`: others that work for this loop get the core.
  explicit EventLoop(
      Nanoseconds busy_poll = Nanoseconds{0}, std::function<bool()> idle = [] { return true; });
  ~EventLoop();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  // Makes the descriptors. Errors: RESOURCE_EXHAUSTED.
  Status open();

  void run();
  // Ends run() after its current turn.
  void stop();

  Status add(int fd, uint32_t events, FdHandler& handler);
  void modify(int fd, uint32_t events, FdHandler& handler);
  void remove(int fd);

  void add_inbox(Inbox& inbox) { inboxes_.push_back(&inbox); }
  void at_turn_end(TurnEnd& item) { turn_ends_.push_back(&item); }

  // Any thread; one eventfd write however often it is called between two turns.
  void wake();
  // Runs `function` on the loop's thread. False, and it never runs, once the loop has ended.
  bool post(std::function<void()> function);

  TimerWheel& timers() { return timers_; }
  // Read once a turn.
  TimePoint now() const { return now_; }

 private:
  // Waits for events, at the latest until a timer is due. Answers epoll_wait()'s number.
  int wait(std::span<struct epoll_event> events);
  void run_posted();

  int epoll_fd_ = -1;
  int event_fd_ = -1;
  BusyPoll busy_poll_;
  const std::function<bool()> idle_;
  TimePoint now_;
  TimerWheel timers_;
  std::vector<Inbox*> inboxes_;
  std::vector<TurnEnd*> turn_ends_;
  std::atomic<bool> woken_{false};
  std::atomic<bool> stopping_{false};

  std::mutex mutex_;
  std::vector<std::function<void()>> posted_;  // guarded by mutex_
  bool ended_ = false;                         // guarded by mutex_
};

}  // namespace headrace
