// PythonEvents: the events of calls for an asyncio loop: a queue and an eventfd that the loop watches. The
// descriptor is written once however many events come before the loop looks.
//
// Threads: push() from any; drain() from the asyncio loop's; neither waits.
#pragma once

#include <mutex>
#include <utility>
#include <vector>

#include "bindings/python_call.h"

namespace headrace {

class PythonEvents final : public CallSink {
 public:
  PythonEvents();  // throws std::system_error
  ~PythonEvents() override;

  bool push(CallEvent event, PythonCallRef call) override;

  // Readable when events wait.
  int fd() const { return fd_; }
  std::vector<std::pair<CallEvent, PythonCallRef>> drain();
  // Takes nothing more.
  void stop();

 private:
  const int fd_;
  std::mutex mutex_;
  std::vector<std::pair<CallEvent, PythonCallRef>> events_;  // guarded by mutex_
  bool stopped_ = false;                                     // guarded by mutex_
};

}  // namespace headrace
