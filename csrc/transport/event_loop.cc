#include "transport/event_loop.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

namespace headrace {

EventLoop::EventLoop(Nanoseconds busy_poll, std::function<bool()> idle)
    : busy_poll_(busy_poll), idle_(std::move(idle)), now_(Clock::now()), timers_(now_) {}

EventLoop::~EventLoop() {
  if (event_fd_ >= 0) ::close(event_fd_);
  if (epoll_fd_ >= 0) ::close(epoll_fd_);
}

Status EventLoop::open() {
  epoll_fd_ = ::epoll_create1(EPOLL_CLOEXEC);
  event_fd_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (epoll_fd_ < 0 || event_fd_ < 0) {
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
  return {};
}

Status EventLoop::add(int fd, uint32_t events, FdHandler& handler) {
  struct epoll_event event {};
  event.events = events;
  event.data.ptr = &handler;
  if (::epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event) != 0) {
    return Status::resource_exhausted(std::string("epoll_ctl: ") + std::strerror(errno));
  }
  return {};
}

void EventLoop::modify(int fd, uint32_t events, FdHandler& handler) {
  struct epoll_event event {};
  event.events = events;
  event.data.ptr = &handler;
  ::epoll_ctl(epoll_fd_, EPOLL_CTL_MOD, fd, &event);
}

void EventLoop::remove(int fd) { ::epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, fd, nullptr); }

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
  if (!turn_ends_.empty()) return look(0);
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

void EventLoop::run() {
  std::array<struct epoll_event, 256> events;
  std::vector<TurnEnd*> ending;
  while (!stopping_.load(std::memory_order_acquire)) {
    const int n = wait(events);
    for (int i = 0; i < n; ++i) {
      if (events[i].data.ptr == nullptr) continue;  // woken_ tells
      static_cast<FdHandler*>(events[i].data.ptr)->on_ready(events[i].events);
    }
    if (woken_.exchange(false, std::memory_order_acq_rel)) {
      for (Inbox* inbox : inboxes_) inbox->on_wake();
      run_posted();
    }
    timers_.advance(now_);
    // An item may ask for the next turn's end from within this one's.
    ending.clear();
    ending.swap(turn_ends_);
    for (TurnEnd* item : ending) item->on_turn_end();
  }
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
  }
  run_posted();
}

}  // namespace headrace
