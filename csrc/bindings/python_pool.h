// PythonPool: the threads that run Python's RPC handlers. While handlers are quick one worker, the
// leader, runs all of them, one after the other under one hold of the GIL: a second would only fight for
// it. Another takes the lead when the leader waits (a handler of a kind known to wait, a read or a write that
// blocks) or is seen to be stuck in one handler for a tick of the I/O loops, a millisecond.
//
// Threads: push() and tick() from I/O threads, which never wait for the GIL; stop() from the control
// plane, without the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "bindings/python_call.h"

namespace headrace {

class PythonPool final : public CallSink {
 public:
  struct Options {
    std::size_t threads = 1;
    std::string name = "headrace-py";  // of the threads, for the system
    std::size_t queue_bound = 4096;    // calls; 0: none
    // Called once on each thread before its first call, with its number; or None.
    pybind11::object on_thread_start = pybind11::none();
  };
  explicit PythonPool(Options options);
  // With the GIL. Waits for handlers that still run.
  ~PythonPool() override;

  bool push(CallEvent event, PythonCallRef call) override;

  // Replaces a leader that is on the same job as at the last tick with this `seen`. Whether to tick again.
  bool tick(uint64_t& seen);

  // Runs nothing more but what is at its end (kEnded). Waits for the threads that run no handler; those
  // that do end when it does. Without the GIL.
  void stop();
  // Whether the current thread is one of this pool's, which cannot wait for itself.
  bool on_worker() const;

  // For the current thread, when it is a worker that leads: someone else may; it is about to wait.
  static void step_aside();
  // Whether the current thread is a leader that will wake the outbox after its calls.
  static bool defer_wake(CallOutbox& outbox);

 private:
  struct Job {
    CallEvent event;
    PythonCallRef call;
  };
  class Worker;

  void run(std::size_t number);
  void run_job(Job& job);
  // With mutex_: lets an idle or new worker take the lead, if there is one.
  void call_worker();

  const Options options_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> jobs_;              // guarded by mutex_
  Worker* leader_ = nullptr;          // guarded by mutex_
  bool called_ = false;               // guarded by mutex_; a worker was woken and has not come yet
  bool in_job_ = false;               // guarded by mutex_; the leader is
  uint64_t job_number_ = 0;           // guarded by mutex_
  std::size_t idle_ = 0;              // guarded by mutex_
  std::size_t alive_ = 0;             // guarded by mutex_; threads
  std::size_t running_ = 0;           // guarded by mutex_; threads in a handler
  bool stopping_ = false;             // guarded by mutex_
  std::vector<std::thread> threads_;  // guarded by mutex_ until stopping_; started as jobs come
};

}  // namespace headrace
