#include "serving/short_runs.h"

#include <doctest/doctest.h>

using namespace headrace;
using namespace std::chrono_literals;

TEST_CASE("what was never short is not run on an I/O thread") {
  ShortRuns runs;
  const TimePoint now{1h};
  CHECK_FALSE(runs.allows(1, now));
  runs.record(100, ShortRuns::kShort + 1ns, now, false);
  CHECK_FALSE(runs.allows(1, now));
}

TEST_CASE("a short run allows batches up to twice its size") {
  ShortRuns runs;
  const TimePoint now{1h};
  runs.record(100, ShortRuns::kShort, now, false);
  CHECK(runs.allows(200, now));
  CHECK_FALSE(runs.allows(201, now));
  runs.record(10, 1us, now, true);
  CHECK(runs.allows(200, now));  // a smaller one says nothing about larger ones
}

TEST_CASE("a longer run takes its size back") {
  ShortRuns runs;
  const TimePoint now{1h};
  runs.record(100, 1us, now, false);
  runs.record(80, ShortRuns::kShort + 1ns, now, true);
  CHECK(runs.allows(40, now));
  CHECK_FALSE(runs.allows(41, now));
}

TEST_CASE("long runs on I/O threads get their share of the time, and no more") {
  ShortRuns runs;
  TimePoint now{1h};
  Nanoseconds spent{0};
  const TimePoint begin = now;
  while (now < begin + 100s) {
    now += 100us;
    runs.record(100, 1us, now, true);
    if (!runs.allows(100, now)) continue;
    runs.record(100, 3ms, now, true);
    spent += 3ms;
  }
  CHECK(spent > 100s / ShortRuns::kLongShare - 10ms);
  CHECK(spent < 100s / ShortRuns::kLongShare + ShortRuns::kBurst + 10ms);
}

TEST_CASE("one run of a second puts it off for long") {
  ShortRuns runs;
  const TimePoint now{1h};
  runs.record(100, 1s, now, true);
  runs.record(100, 1us, now, false);
  CHECK_FALSE(runs.allows(100, now + 45s));
  CHECK(runs.allows(100, now + 50s));
}

TEST_CASE("on the instance's own thread a long run costs nobody else anything") {
  ShortRuns runs;
  const TimePoint now{1h};
  runs.record(100, 1us, now, false);
  runs.record(200, 1s, now, false);
  CHECK(runs.allows(100, now));
}
