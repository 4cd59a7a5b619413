#include "transport/event_loop.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

namespace headrace {

namespace {

// Descriptors of the untrusted lane that are handled between two looks at the clock.
constexpr int kUntrustedAtOnce = 4;

}  // namespace

EventLoop::EventLoop(Nanoseconds busy_poll, std::function<bool()> idle, uint32_t untrusted_percent)
    : busy_poll_(busy_poll),
      idle_(std::move(idle)),
      now_(Clock::now()),
      timers_(now_),
      share_(untrusted_percent) {
  resume_.owner = this;
  resume_.on_fire = [](TimerWheel::Timer& timer) {
    static_cast<EventLoop*>(timer.owner)->paused_ = false;
  };
}

EventLoop::~EventLoop() {
  timers_.cancel(resume_);
  if (untrusted_fd_ >= 0) ::close(untrusted_fd_);
  if (event_fd_ >= 0) ::close(event_fd_);
  if (epoll_fd_ >= 0) ::close(epoll_fd_);
}

Status EventLoop::open() {
  epoll_fd_ = ::epoll_create1(EPOLL_CLOEXEC);
  untrusted_fd_ = ::epoll_create1(EPOLL_CLOEXEC);
  event_fd_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (epoll_fd_ < 0 || untrusted_fd_ < 0 || event_fd_ < 0) {
    return Status::resource_exhausted(std::string("cannot make an event loop: ") +
                                      std::strerror(errno));
  }
  struct epoll_event event {};
  // Edge-triggered: every write is an event of its own, so the counter is never read.
  event.events = EPOLLIN | EPOLLET;
  event.data.ptr = nullptr;  // the eventfd
  if (::epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, event_fd_, &event) != 0) {
    return Status::resource_exhausted(std::string("epoll_ctl: ") + std::strerror(errno));
  }
  event.events = EPOLLIN | EPOLLONESHOT;
  event.data.ptr = this;  // the untrusted lane
  if (::epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, untrusted_fd_, &event) != 0) {
    return Status::resource_exhausted(std::string("epoll_ctl: ") + std::strerror(errno));
  }
  return {};
}

Status EventLoop::add(int fd, uint32_t events, FdHandler& handler, Lane lane) {
  struct epoll_event event {};
  event.events = events;
  event.data.ptr = &handler;
  if (::epoll_ctl(epoll_of(lane), EPOLL_CTL_ADD, fd, &event) != 0) {
    return Status::resource_exhausted(std::string("epoll_ctl: ") + std::strerror(errno));
  }
  return {};
}

void EventLoop::modify(int fd, uint32_t events, FdHandler& handler, Lane lane) {
  struct epoll_event event {};
  event.events = events;
  event.data.ptr = &handler;
  ::epoll_ctl(epoll_of(lane), EPOLL_CTL_MOD, fd, &event);
}

void EventLoop::remove(int fd, Lane lane) {
  ::epoll_ctl(epoll_of(lane), EPOLL_CTL_DEL, fd, nullptr);
}

void EventLoop::wake() {
  // The loop clears the flag before it looks at its inboxes, so a message is never missed.
  if (woken_.exchange(true, std::memory_order_acq_rel)) return;
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = ::write(event_fd_, &one, sizeof(one));
}

bool EventLoop::post(std::function<void()> function) {
  {
    const std::lock_guard lock(mutex_);
    if (ended_) return false;
    posted_.push_back(std::move(function));
  }
  wake();
  return true;
}

void EventLoop::run_posted() {
  std::vector<std::function<void()>> posted;
  {
    const std::lock_guard lock(mutex_);
    posted.swap(posted_);
  }
  for (const std::function<void()>& function : posted) function();
}

void EventLoop::stop() {
  stopping_.store(true, std::memory_order_release);
  wake();
}

int EventLoop::wait(std::span<struct epoll_event> events) {
  const auto look = [&](int timeout_ms) {
    const int n =
        ::epoll_wait(epoll_fd_, events.data(), static_cast<int>(events.size()), timeout_ms);
    now_ = Clock::now();
    return n;
  };
  now_ = Clock::now();
  const bool untrusted = !paused_ && (untrusted_ready_ || !untrusted_.empty());
  if (!turn_ends_.empty() || !flushes_.empty() || untrusted) return look(0);
  const TimePoint since = now_;
  const bool polls = busy_poll_.enabled() && idle_();
  int n = 0;
  if (polls && busy_poll_.time() > Nanoseconds{0}) {
    TimePoint until = since + busy_poll_.time();
    if (const int due_ms = timers_.sleep_ms(since); due_ms >= 0) {
      until = std::min(until, since + Milliseconds(due_ms));
    }
    do {
      n = look(0);
    } while (n == 0 && now_ < until);
  }
  if (n == 0) n = look(timers_.sleep_ms(now_));
  if (polls) busy_poll_.waited(now_ - since);
  return n;
}

void EventLoop::end_turn() {
  // An item may ask for the next turn's end from within this one's.
  ending_.clear();
  ending_.swap(turn_ends_);
  for (TurnEnd* item : ending_) item->on_turn_end();
  ending_.clear();
  ending_.swap(flushes_);
  for (TurnEnd* item : ending_) item->on_turn_end();
}

void EventLoop::watch_untrusted() {
  untrusted_ready_ = false;
  struct epoll_event event {};
  event.events = EPOLLIN | EPOLLONESHOT;
  event.data.ptr = this;
  ::epoll_ctl(epoll_fd_, EPOLL_CTL_MOD, untrusted_fd_, &event);
}

void EventLoop::take_untrusted_turn() {
  if (paused_ || (!untrusted_ready_ && untrusted_.empty())) return;
  if (!share_.may_work(now_)) {
    paused_ = true;
    return timers_.schedule(resume_, share_.ready_at());
  }
  const TimePoint began = Clock::now();
  slice_end_ = began + UntrustedShare::kSlice;
  working_.swap(untrusted_);
  for (UntrustedWork* item : working_) item->on_untrusted_turn();
  working_.clear();
  // Some of them in any case: the items may always have more to do.
  for (bool first = true; untrusted_ready_ && (first || !slice_over()); first = false) {
    std::array<struct epoll_event, kUntrustedAtOnce> events;
    const int n = ::epoll_wait(untrusted_fd_, events.data(), kUntrustedAtOnce, 0);
    for (int i = 0; i < n; ++i) {
      static_cast<FdHandler*>(events[i].data.ptr)->on_ready(events[i].events);
    }
    // Watching it tells whether there is more.
    if (n < kUntrustedAtOnce) watch_untrusted();
  }
  end_turn();
  slice_end_ = kNever;
  share_.spent(Clock::now() - began);
}

void EventLoop::run() {
  std::array<struct epoll_event, 256> events;
  while (!stopping_.load(std::memory_order_acquire)) {
    const int n = wait(events);
    for (int i = 0; i < n; ++i) {
      if (events[i].data.ptr == nullptr) continue;  // woken_ tells
      if (events[i].data.ptr == this) {
        untrusted_ready_ = true;
        continue;
      }
      static_cast<FdHandler*>(events[i].data.ptr)->on_ready(events[i].events);
    }
    if (woken_.exchange(false, std::memory_order_acq_rel)) {
      for (Inbox* inbox : inboxes_) inbox->on_wake();
      run_posted();
    }
    timers_.advance(now_);
    end_turn();
    take_untrusted_turn();
  }
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
  }
  run_posted();
}

}  // namespace headrace
