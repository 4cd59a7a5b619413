// EventLoop: one I/O thread: epoll, timers, an eventfd for messages from other threads.
//
// Threads: run() on the loop's own thread; wake(), post() and stop() from any thread; everything else
// on the loop's thread (or before run()).
// A turn: poll -> sockets -> messages (Inbox) -> posted functions -> timers -> end of turn -> flush
// (connections with output, once) -> a slice of untrusted work, if its share (untrusted_share.h) is not
// used up: what was asked for, then descriptors of that lane, and what follows from either.
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
#include "transport/untrusted_share.h"

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
  // Wants to be called once when there is time for connections that are not trusted; does some of its
  // work, until slice_over(), and asks again for the rest. Must outlive the loop's run().
  class UntrustedWork {
   public:
    virtual ~UntrustedWork() = default;
    virtual void on_untrusted_turn() = 0;
  };
  // Descriptors of the second are polled and handled in the untrusted slice of a turn only.
  enum class Lane : uint8_t { kDirect, kUntrusted };

  // `busy_poll`: how long a wait may look for events before it sleeps (busy_poll.h); zero: not at
  // all. It does so only while `idle()`: others that work for this loop get the core.
  explicit EventLoop(
      Nanoseconds busy_poll = Nanoseconds{0}, std::function<bool()> idle = [] { return true; },
      uint32_t untrusted_percent = 100);
  ~EventLoop();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  // Makes the descriptors. Errors: RESOURCE_EXHAUSTED.
  Status open();

  void run();
  // Ends run() after its current turn.
  void stop();

  Status add(int fd, uint32_t events, FdHandler& handler, Lane lane = Lane::kDirect);
  void modify(int fd, uint32_t events, FdHandler& handler, Lane lane = Lane::kDirect);
  void remove(int fd, Lane lane = Lane::kDirect);

  void add_inbox(Inbox& inbox) { inboxes_.push_back(&inbox); }
  void at_turn_end(TurnEnd& item) { turn_ends_.push_back(&item); }
  // After all at_turn_end().
  void at_flush(TurnEnd& item) { flushes_.push_back(&item); }

  void at_untrusted_turn(UntrustedWork& item) { untrusted_.push_back(&item); }
  // Within the untrusted slice of a turn: whether to leave the rest for the next.
  bool slice_over() const { return Clock::now() >= slice_end_; }
  // A trusted connection was heard: untrusted ones keep to their share.
  void protect() { share_.protect(now_); }

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
  void end_turn();
  void take_untrusted_turn();
  void watch_untrusted();
  int epoll_of(Lane lane) const { return lane == Lane::kDirect ? epoll_fd_ : untrusted_fd_; }

  int epoll_fd_ = -1;
  int untrusted_fd_ = -1;  // epoll as well, and watched by the first: one event for all of its lane
  int event_fd_ = -1;
  BusyPoll busy_poll_;
  const std::function<bool()> idle_;
  TimePoint now_;
  TimerWheel timers_;
  std::vector<Inbox*> inboxes_;
  std::vector<TurnEnd*> turn_ends_;
  std::vector<TurnEnd*> flushes_;
  std::vector<TurnEnd*> ending_;  // those of this turn

  UntrustedShare share_;
  std::vector<UntrustedWork*> untrusted_;
  std::vector<UntrustedWork*> working_;  // those of this turn
  bool untrusted_ready_ = false;  // a descriptor of that lane is, and untrusted_fd_ is not watched
  bool paused_ = false;           // until resume_: the share is used up
  TimerWheel::Timer resume_;
  TimePoint slice_end_ = kNever;

  std::atomic<bool> woken_{false};
  std::atomic<bool> stopping_{false};

  std::mutex mutex_;
  std::vector<std::function<void()>> posted_;  // guarded by mutex_
  bool ended_ = false;                         // guarded by mutex_
};

}  // namespace headrace
