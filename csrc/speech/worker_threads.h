// WorkerThreads: a recogniser's own threads, which run their networks before they work.
//
// Threads: whoever owns the recogniser; the destructor may run on one of them, told by which a listener lets
// go of the recogniser last. Whoever destroys it has told the threads to stop.
#pragma once

#include <future>
#include <thread>
#include <utility>
#include <vector>

#include "base/low_priority.h"
#include "base/status.h"

namespace headrace {

class WorkerThreads {
 public:
  WorkerThreads() = default;
  WorkerThreads(const WorkerThreads&) = delete;
  WorkerThreads& operator=(const WorkerThreads&) = delete;
  ~WorkerThreads() {
    for (std::thread& thread : threads_) {
      if (thread.get_id() == std::this_thread::get_id()) {
        thread.detach();
      } else {
        thread.join();
      }
    }
  }

  template <class Work>
  void start(Work work) {
    threads_.emplace_back(std::move(work));
  }
  // A thread with a worker of its own: Status warm_up(worker), at low priority or not, and when that went
  // well void work(worker).
  template <class Worker, class WarmUp, class Work>
  void start(Worker worker, bool low_priority, WarmUp warm_up, Work work) {
    std::promise<Status> warm;
    warm_.push_back(warm.get_future());
    threads_.emplace_back([mine = std::move(worker), low_priority, warm_up = std::move(warm_up),
                           work = std::move(work), told = std::move(warm)]() mutable {
      Status status;
      const auto run = [&] { status = warm_up(mine); };
      low_priority ? run_at_low_priority(run) : run();
      const bool ok = status.ok();
      told.set_value(std::move(status));
      if (ok) work(mine);
    });
  }
  // Until all can work at full speed. Not OK: what a warm_up() answered; that thread has ended.
  Status wait_until_warm() {
    Status status;
    for (std::future<Status>& each : warm_) {
      if (Status own = each.get(); !own.ok()) status = std::move(own);
    }
    warm_.clear();
    return status;
  }

 private:
  std::vector<std::future<Status>> warm_;
  std::vector<std::thread> threads_;
};

}  // namespace headrace
