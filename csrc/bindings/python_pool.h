// PythonPool: the threads that run Python RPC handlers. I/O threads hand jobs over and never wait: for
// the GIL or for a handler. A worker takes the GIL once for up to `jobs_per_hold` jobs: 1 when handlers
// may wait, or a job would wait behind one while other workers are idle.
//
// Threads: submit() from I/O threads; stop() from the control plane, without the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "rpc/call.h"
#include "transport/event_loop.h"

namespace headrace {

// What a Python handler may ask about its call (and say to it). Shared by the worker, the I/O thread
// and the Python object.
struct CallInfo {
  std::string method;
  std::string peer;
  std::string principal;  // empty: not known
  Metadata metadata;
  TimePoint deadline = kNever;
  std::atomic<bool> cancelled{false};
  // Set by the handler, read by the I/O thread after the reply was posted.
  Metadata initial_metadata;
  Metadata trailing_metadata;
};

struct PythonReply {
  uint64_t call_id = 0;
  Status status;
  BufferRef message;  // with Call::kPrefixBytes of room
  std::shared_ptr<CallInfo> info;
};

// Replies on their way back to one I/O loop.
class PythonReplies final : public EventLoop::Inbox {
 public:
  PythonReplies(EventLoop& loop, CallSet& calls);
  void post(PythonReply reply);
  void on_wake() override;

 private:
  EventLoop& loop_;
  CallSet& calls_;
  std::mutex mutex_;
  std::vector<PythonReply> inbox_;  // guarded by mutex_
};

struct PythonJob {
  const pybind11::object* handler = nullptr;  // the server's, outlives the pool
  BufferRef message;
  std::shared_ptr<CallInfo> info;
  uint64_t call_id = 0;
  std::shared_ptr<PythonReplies> replies;
};

class PythonPool {
 public:
  PythonPool(std::size_t threads, std::size_t jobs_per_hold, std::string name);
  ~PythonPool();  // stop()

  // False when the queue is full or the pool has stopped: nothing was taken.
  bool submit(PythonJob job);
  // Lets running handlers end, answers nothing more.
  void stop();

 private:
  void run();

  const std::size_t size_;
  const std::size_t jobs_per_hold_;
  const std::string name_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<PythonJob> jobs_;        // guarded by mutex_
  std::size_t idle_ = 0;              // guarded by mutex_; workers that wait for a job
  bool stopping_ = false;             // guarded by mutex_
  std::vector<std::thread> threads_;  // guarded by mutex_ until stopping_; started as jobs come
};

// Hands the calls of one method on one loop to a pool.
class PythonHandler final : public Handler {
 public:
  PythonHandler(PythonPool& pool, const pybind11::object& handler,
                std::shared_ptr<PythonReplies> replies)
      : pool_(pool), handler_(handler), replies_(std::move(replies)) {}
  void on_unary(Call& call, BufferRef message) override;
  void on_cancel(Call& call) override;

 private:
  PythonPool& pool_;
  const pybind11::object& handler_;
  const std::shared_ptr<PythonReplies> replies_;
};

}  // namespace headrace
