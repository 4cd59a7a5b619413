#include "base/low_priority.h"

#include <doctest/doctest.h>
#include <sys/resource.h>

#include <stdexcept>
#include <thread>

using namespace headrace;

namespace {

// Linux: of the calling thread.
int niceness() { return ::getpriority(PRIO_PROCESS, 0); }

}  // namespace

TEST_CASE("the work runs on a lower thread; its threads inherit that, the caller's do not") {
  const int before = niceness();
  int inside = 0;
  int child = 0;
  std::thread::id where;
  run_at_low_priority([&] {
    where = std::this_thread::get_id();
    inside = niceness();
    std::thread([&] { child = niceness(); }).join();
  });
  CHECK(where != std::this_thread::get_id());
  CHECK(inside >= 10);
  CHECK(inside >= before);
  CHECK(child == inside);
  CHECK(niceness() == before);
  int later = -1;
  std::thread([&] { later = niceness(); }).join();
  CHECK(later == before);
}

TEST_CASE("what the work throws arrives at the caller") {
  CHECK_THROWS_AS(run_at_low_priority([] { throw std::runtime_error("no"); }), std::runtime_error);
}

TEST_CASE("work within work") {
  bool done = false;
  run_at_low_priority([&] { run_at_low_priority([&] { done = true; }); });
  CHECK(done);
}
