#include "base/low_priority.h"

#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>

#include <exception>
#include <system_error>
#include <thread>

namespace headrace {
namespace {

// A tenth of what a serving thread gets of a processor that both want. Not less, and not SCHED_IDLE:
// whoever waits for a lock that a starved thread holds (the allocator's, the kernel's for the address
// space) would wait as long as it.
constexpr int kNice = 10;

void lower_this_thread() {
  // Refused, it stays as it is; a thread that is lower already stays so too.
  const struct sched_param none {};
  (void)::pthread_setschedparam(::pthread_self(), SCHED_BATCH, &none);
  if (::getpriority(PRIO_PROCESS, 0) < kNice) (void)::setpriority(PRIO_PROCESS, 0, kNice);
  (void)::pthread_setname_np(::pthread_self(), "model-loader");
}

}  // namespace

void run_at_low_priority(const std::function<void()>& work) {
  std::exception_ptr thrown;
  const auto run = [&]() noexcept {
    lower_this_thread();
    try {
      work();
    } catch (...) {
      thrown = std::current_exception();
    }
  };
  std::thread thread;
  try {
    thread = std::thread(run);
  } catch (const std::system_error&) {
    return work();
  }
  thread.join();
  if (thrown) std::rethrow_exception(thrown);
}

}  // namespace headrace
