#include "bindings/python_events.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace headrace {

PythonEvents::PythonEvents() : fd_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  if (fd_ < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
}

PythonEvents::~PythonEvents() { ::close(fd_); }

bool PythonEvents::push(CallEvent event, PythonCallRef call) {
  const std::lock_guard lock(mutex_);
  if (stopped_) return false;
  events_.emplace_back(event, std::move(call));
  if (events_.size() == 1) {
    const uint64_t one = 1;
    // Fails only when the counter is full: then it is readable already.
    [[maybe_unused]] const ssize_t written = ::write(fd_, &one, sizeof one);
  }
  return true;
}

std::vector<std::pair<CallEvent, PythonCallRef>> PythonEvents::drain() {
  std::vector<std::pair<CallEvent, PythonCallRef>> events;
  const std::lock_guard lock(mutex_);
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t read = ::read(fd_, &count, sizeof count);
  events.swap(events_);
  return events;
}

void PythonEvents::stop() {
  const std::lock_guard lock(mutex_);
  stopped_ = true;
}

}  // namespace headrace
