#include "transport/busy_poll.h"

#include <doctest/doctest.h>

using namespace headrace;
using namespace std::chrono_literals;

namespace {

// The number of waits, `hits` short and then `misses` long ones by turns, that were looked through.
int looked(BusyPoll& poll, int rounds, int hits, int misses) {
  int count = 0;
  for (int i = 0; i < rounds; ++i) {
    for (int n = 0; n < hits + misses; ++n) {
      count += poll.time() > 0ns ? 1 : 0;
      poll.waited(n < hits ? 40us : 5ms);
    }
  }
  return count;
}

}  // namespace

TEST_CASE("a loop looks again where calls follow each other closely, and only there") {
  BusyPoll poll(100us);
  CHECK(poll.enabled());
  CHECK(poll.time() == 0ns);  // nothing is known yet
  CHECK(looked(poll, 100, 1, 0) > 90);
  CHECK(poll.time() == Nanoseconds(100us));
  CHECK(looked(poll, 100, 0, 1) < 10);  // the client has gone
  CHECK(poll.time() == 0ns);
}

TEST_CASE("every other wait in vain is not worth it; one in ten is") {
  BusyPoll poll(100us);
  CHECK(looked(poll, 100, 1, 1) == 0);
  CHECK(looked(poll, 100, 9, 1) > 900);
  CHECK(looked(poll, 100, 1, 1) < 20);
}

TEST_CASE("what takes exactly as long is found by looking") {
  BusyPoll poll(100us);
  for (int i = 0; i < 20; ++i) poll.waited(100us);
  CHECK(poll.time() > 0ns);
  for (int i = 0; i < 20; ++i) poll.waited(100us + 1ns);
  CHECK(poll.time() == 0ns);
}

TEST_CASE("zero: never") {
  BusyPoll poll(0ns);
  CHECK_FALSE(poll.enabled());
  for (int i = 0; i < 20; ++i) poll.waited(0ns);
  CHECK(poll.time() == 0ns);
}
