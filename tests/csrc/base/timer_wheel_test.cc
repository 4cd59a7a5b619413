#include "base/timer_wheel.h"

#include <doctest/doctest.h>

#include <functional>
#include <memory>
#include <random>
#include <vector>

using namespace headrace;
using namespace std::chrono_literals;

namespace {

const TimePoint kStart{std::chrono::hours(100) + std::chrono::nanoseconds(12345)};

struct Alarm {
  Alarm() {
    timer.owner = this;
    timer.on_fire = [](TimerWheel::Timer& t) {
      auto& self = *static_cast<Alarm*>(t.owner);
      ++self.fired;
      if (self.then) self.then();
    };
  }
  TimerWheel::Timer timer;
  int fired = 0;
  std::function<void()> then;
};

}  // namespace

TEST_CASE("a timer fires once, at its time or within one tick, never before") {
  for (const Nanoseconds delay :
       {Nanoseconds(0), Nanoseconds(1), Nanoseconds(999'999), Nanoseconds(1'000'000),
        Nanoseconds(1'000'001), Nanoseconds(4095ms), Nanoseconds(4096ms), Nanoseconds(4097ms),
        Nanoseconds(8192ms), Nanoseconds(1h)}) {
    CAPTURE(delay.count());
    TimerWheel wheel(kStart);
    Alarm alarm;
    wheel.schedule(alarm.timer, kStart + delay);
    CHECK(alarm.timer.scheduled());
    CHECK(wheel.size() == 1);
    if (delay > 0ns) {
      wheel.advance(kStart + delay - 1ns);
      CHECK(alarm.fired == 0);
    }
    wheel.advance(kStart + delay + TimerWheel::kTick);
    CHECK(alarm.fired == 1);
    CHECK_FALSE(alarm.timer.scheduled());
    wheel.advance(kStart + delay + 2h);
    CHECK(alarm.fired == 1);
    CHECK(wheel.size() == 0);
  }
}

TEST_CASE("a time in the past fires at the next tick; kNever is never") {
  TimerWheel wheel(kStart);
  wheel.advance(kStart + 10ms);
  Alarm past;
  Alarm never;
  wheel.schedule(past.timer, kStart - 1h);
  wheel.schedule(never.timer, kNever);
  CHECK_FALSE(never.timer.scheduled());
  wheel.advance(kStart + 11ms);
  CHECK(past.fired == 1);
  CHECK(wheel.size() == 0);
  wheel.schedule(never.timer, kStart + 20ms);
  wheel.schedule(never.timer, kNever);
  wheel.advance(kStart + 1h);
  CHECK(never.fired == 0);
}

TEST_CASE("schedule moves, cancel is idempotent") {
  TimerWheel wheel(kStart);
  Alarm alarm;
  wheel.cancel(alarm.timer);
  wheel.schedule(alarm.timer, kStart + 10ms);
  wheel.schedule(alarm.timer, kStart + 30ms);
  CHECK(wheel.size() == 1);
  wheel.advance(kStart + 20ms);
  CHECK(alarm.fired == 0);
  wheel.cancel(alarm.timer);
  wheel.cancel(alarm.timer);
  CHECK(wheel.size() == 0);
  wheel.advance(kStart + 1h);
  CHECK(alarm.fired == 0);
}

TEST_CASE("callbacks may schedule, cancel and destroy any timer, themselves included") {
  TimerWheel wheel(kStart);
  SUBCASE("itself again, for the same slot a turn later") {
    Alarm alarm;
    alarm.then = [&] {
      if (alarm.fired < 3) wheel.schedule(alarm.timer, kStart + 5ms + alarm.fired * 4096ms);
    };
    wheel.schedule(alarm.timer, kStart + 5ms);
    for (int i = 0; i <= 3 * 4096; ++i) wheel.advance(kStart + i * 1ms);
    CHECK(alarm.fired == 3);
  }
  SUBCASE("itself again at once: not in the same advance") {
    Alarm alarm;
    alarm.then = [&] { wheel.schedule(alarm.timer, kStart); };
    wheel.schedule(alarm.timer, kStart + 1ms);
    wheel.advance(kStart + 100ms);
    CHECK(alarm.fired == 1);
    wheel.advance(kStart + 101ms);
    CHECK(alarm.fired == 2);
    wheel.cancel(alarm.timer);
  }
  SUBCASE("its neighbours in the same slot") {
    std::vector<std::unique_ptr<Alarm>> alarms;
    for (int i = 0; i < 8; ++i) {
      alarms.push_back(std::make_unique<Alarm>());
      wheel.schedule(alarms.back()->timer, kStart + 7ms);
    }
    int fired = 0;
    for (auto& alarm : alarms) {
      alarm->then = [&] {
        ++fired;
        for (auto& other : alarms) wheel.cancel(other->timer);
      };
    }
    wheel.advance(kStart + 7ms);
    CHECK(fired == 1);
    CHECK(wheel.size() == 0);
  }
  SUBCASE("destroys itself") {
    auto alarm = std::make_unique<Alarm>();
    int fired = 0;
    alarm->then = [&] {
      ++fired;
      const std::unique_ptr<Alarm> gone = std::move(alarm);
    };
    wheel.schedule(alarm->timer, kStart + 7ms);
    wheel.advance(kStart + 7ms);
    CHECK(fired == 1);
    CHECK_FALSE(alarm);
  }
}

TEST_CASE("sleep_ms wakes no later than needed, and for ever when nothing waits") {
  TimerWheel wheel(kStart);
  CHECK(wheel.sleep_ms(kStart) < 0);
  Alarm alarm;
  wheel.schedule(alarm.timer, kStart + 100ms);
  CHECK(wheel.sleep_ms(kStart) == 100);
  CHECK(wheel.sleep_ms(kStart + 99'500us) == 1);
  CHECK(wheel.sleep_ms(kStart + 100ms) == 0);
  CHECK(wheel.sleep_ms(kStart + 1h) == 0);
  wheel.cancel(alarm.timer);
  CHECK(wheel.sleep_ms(kStart) < 0);
}

TEST_CASE("random schedules: each timer fires once in its tick when driven by sleep_ms") {
  std::mt19937 random(11);
  for (int round = 0; round < 30; ++round) {
    TimerWheel wheel(kStart);
    TimePoint now = kStart;
    struct Expected {
      Alarm alarm;
      TimePoint when = kNever;
      TimePoint fired_at = kNever;
      bool cancelled = false;
    };
    std::vector<std::unique_ptr<Expected>> all;
    for (int i = 0; i < 100; ++i) {
      all.push_back(std::make_unique<Expected>());
      Expected& e = *all.back();
      e.when = kStart + Nanoseconds(random() % 15'000'000'000ULL);
      e.alarm.then = [&e, &now, &all, &wheel, &random] {
        e.fired_at = now;
        if (random() % 4 == 0) {  // and takes another with it
          Expected& other = *all[random() % all.size()];
          if (other.alarm.timer.scheduled()) other.cancelled = true;
          wheel.cancel(other.alarm.timer);
        }
      };
      wheel.schedule(e.alarm.timer, e.when);
    }
    int turns = 0;
    while (wheel.size() != 0) {
      REQUIRE(++turns < 2000);  // sleep_ms makes progress
      const int sleep = wheel.sleep_ms(now);
      REQUIRE(sleep >= 0);
      now += Milliseconds(sleep);
      wheel.advance(now);
    }
    for (const auto& e : all) {
      REQUIRE(e->alarm.fired == (e->cancelled ? 0 : 1));
      if (e->cancelled) continue;
      REQUIRE(e->fired_at >= e->when);
      REQUIRE(e->fired_at - e->when <= TimerWheel::kTick);
    }
  }
}
