#include "serving/instance_health.h"

#include <doctest/doctest.h>

using namespace headrace;
using namespace std::chrono_literals;

namespace {

const Status kBroken = Status::internal("broken");
const TimePoint kStart = TimePoint{} + 1000h;

void fail(InstanceHealth& health, int times, TimePoint now) {
  for (int i = 0; i < times; ++i) health.failed(kBroken, now);
}

}  // namespace

TEST_CASE("only failures in a row make an instance suspect") {
  InstanceHealth health({.failures = 3}, 1);
  for (int i = 0; i < 10; ++i) {
    fail(health, 2, kStart);
    CHECK_FALSE(health.suspect());
    health.succeeded();
  }
  fail(health, 3, kStart);
  CHECK(health.suspect());
  CHECK(health.fault().message() == "broken");
  InstanceHealth never({.failures = 0}, 1);
  fail(never, 100, kStart);
  CHECK_FALSE(never.suspect());
}

TEST_CASE("a good probe clears it, for as long as the probe weighs") {
  InstanceHealth health({.failures = 2, .backoff = 1s}, 1);
  fail(health, 2, kStart);
  health.cleared(kStart, 1ms);
  CHECK_FALSE(health.suspect());
  fail(health, 100, kStart + 999ms);
  CHECK_FALSE(health.suspect());
  fail(health, 1, kStart + 1s);
  CHECK(health.suspect());
  health.cleared(kStart + 1s, 1min);  // a slow one: less than a fiftieth of its time
  fail(health, 100, kStart + 50min);
  CHECK_FALSE(health.suspect());
  fail(health, 1, kStart + 1s + 50min);
  CHECK(health.suspect());
}

TEST_CASE("rebuilds: the first at once, then further and further apart, up to the most") {
  const HealthPolicy policy{.failures = 2, .backoff = 1s, .backoff_max = 60s};
  for (uint32_t seed = 1; seed <= 50; ++seed) {
    InstanceHealth health(policy, seed);
    TimePoint last = health.next_rebuild(kStart);
    CHECK(last == kStart);
    Nanoseconds step = 1s;
    for (int i = 0; i < 12; ++i) {
      const TimePoint next = health.next_rebuild(last);
      CHECK(next - last >= step * 3 / 4);
      CHECK(next - last <= step * 5 / 4);
      step = std::min<Nanoseconds>(2 * step, 60s);
      last = next;
    }
    // Sick again after it was rebuilt: as if it had not been, unless it served well for long.
    health.rebuilt(true, last);
    CHECK(health.next_rebuild(last + 1s) >= last + 45s);
    InstanceHealth well(policy, seed);
    last = well.next_rebuild(kStart);
    CHECK(well.next_rebuild(last + 10s) == last + 10s);  // the time has passed meanwhile
    CHECK(well.next_rebuild(last + 10s) > last + 11s);
    CHECK(well.next_rebuild(last + 10min) == last + 10min);
    CHECK(well.next_rebuild(last + 10min) <= last + 10min + 1250ms);
  }
}

TEST_CASE("a rebuild that no probe has proven is not followed by the next before its time") {
  InstanceHealth health({.failures = 2, .backoff = 4s}, 1);
  fail(health, 2, kStart);
  CHECK(health.next_rebuild(kStart) == kStart);
  health.rebuilt(false, kStart);
  fail(health, 100, kStart + 2s);
  CHECK_FALSE(health.suspect());
  fail(health, 1, kStart + 5s);
  CHECK(health.suspect());
  CHECK(health.next_rebuild(kStart + 5s) == kStart + 5s);
  health.rebuilt(true, kStart + 5s);
  fail(health, 2, kStart + 5s);
  CHECK(health.suspect());

  // One that takes long is out of service for a small part of the time only.
  const TimePoint began = health.next_rebuild(kStart + 1h);
  health.rebuilt(false, began + 30s);
  fail(health, 100, began + 25min);
  CHECK_FALSE(health.suspect());
  fail(health, 1, began + 30s + 25min);
  CHECK(health.suspect());
}

TEST_CASE("what says that the requests are wrong does not blame the instance") {
  CHECK(blames_instance(Status::internal("")));
  CHECK(blames_instance(Status::resource_exhausted("")));
  CHECK(blames_instance(Status::unavailable("")));
  CHECK_FALSE(blames_instance(Status::invalid_argument("")));
  CHECK_FALSE(blames_instance(Status::unimplemented("")));
  CHECK_FALSE(blames_instance(Status::cancelled("")));
  CHECK_FALSE(blames_instance(Status()));
}
