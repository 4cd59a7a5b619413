#include "batching/admission.h"

#include <doctest/doctest.h>

#include <cmath>
#include <deque>
#include <map>
#include <random>
#include <string>

using namespace headrace;
using namespace std::chrono_literals;

namespace {

constexpr TimePoint kNow{1h};

double ms(Nanoseconds time) { return std::chrono::duration<double, std::milli>(time).count(); }

// Batches take 10 ms + 1 ms a row.
struct Learned {
  Learned() {
    for (int i = 0; i < 200; ++i) cost.record(1 + i % 10, 10ms + (1 + i % 10) * 1ms);
    batch.max_rows = 10;
  }
  Load busy(int64_t rows_ahead, Nanoseconds free_in = 5ms, std::size_t instances = 1) const {
    Load load;
    load.rows_ahead = rows_ahead;
    load.free_in = free_in;
    load.instances = instances;
    return load;
  }
  Status decide(Admission& admission, const Load& load, Nanoseconds remaining,
                TimePoint now = kNow) {
    const TimePoint deadline = remaining == Nanoseconds::max() ? kNever : now + remaining;
    return admission.decide(batch, cost, load, deadline, now, 1, now, expected);
  }

  CostModel cost;
  BatchPolicy batch;
  TimePoint expected{};
};

}  // namespace

TEST_CASE("an estimate: the running batch, the batches ahead over the instances, the own one") {
  const Learned model;
  const auto of = [&](const Load& load, int64_t rows = 1) {
    return *estimate(model.batch, model.cost, load, rows);
  };
  CHECK(ms(of(model.busy(0)).wait) == doctest::Approx(5));
  CHECK(ms(of(model.busy(0)).execution) == doctest::Approx(11).epsilon(0.05));
  CHECK(ms(of(model.busy(4)).wait) == doctest::Approx(5));
  CHECK(ms(of(model.busy(4)).execution) == doctest::Approx(15).epsilon(0.05));
  CHECK(ms(of(model.busy(25)).wait) == doctest::Approx(5 + 2 * 20).epsilon(0.05));
  CHECK(ms(of(model.busy(25, 5ms, 2)).wait) == doctest::Approx(5 + 20).epsilon(0.05));
  CHECK(ms(of(model.busy(8), 5).wait) == doctest::Approx(5 + 20).epsilon(0.05));
  Load joined = model.busy(0);
  joined.rows_per_s = 1000;  // five more come while the batch before runs
  CHECK(ms(of(joined).execution) == doctest::Approx(16).epsilon(0.05));
  Load overtaken = model.busy(25);
  overtaken.overtaking_per_s = 250;  // half of what the instance can do
  CHECK(ms(of(overtaken).wait) == doctest::Approx(2 * 45).epsilon(0.05));
  overtaken.overtaking_per_s = 5000;  // there is nothing left for it: bounded all the same
  CHECK(of(overtaken).wait > 500ms);
  CHECK(of(overtaken).wait < 2s);
}

TEST_CASE("an estimate without batching counts requests") {
  Learned model;
  model.batch.max_rows = 1;
  CostModel cost;
  for (int i = 0; i < 50; ++i) cost.record(3, 6ms);  // each request has three rows
  const Estimate estimated = *estimate(model.batch, cost, model.busy(4, 2ms), 3);
  CHECK(ms(estimated.wait) == doctest::Approx(2 + 4 * 6));
  CHECK(ms(estimated.execution) == doctest::Approx(6).epsilon(0.05));
  CHECK(estimated.margin >= 0ns);
}

TEST_CASE("with a deadline: refused when it cannot be kept, told when to come back") {
  Learned model;
  Admission admission({});
  CHECK(model.decide(admission, model.busy(25), 100ms));
  CHECK(model.expected > kNow + 43ms);  // the wait: 5 ms and two batches
  CHECK(model.expected < kNow + 47ms);
  const Status refused = model.decide(admission, model.busy(25), 50ms);
  CHECK(refused.code() == StatusCode::kResourceExhausted);
  CHECK(refused.message().find("the model is overloaded: this request would take ") == 0);
  CHECK(refused.message().find(", its deadline is in 50.0 ms") != std::string::npos);
  REQUIRE(refused.pushback());
  CHECK(*refused.pushback() >= 1ms);
  CHECK(*refused.pushback() <= 30ms);
  CHECK(admission.refused(Refusal::kDeadline) == 1);
  CHECK(model.decide(admission, model.busy(25), Nanoseconds::max()));  // no deadline: may wait
  CHECK_FALSE(admission.applies(model.batch, kNever));
  CHECK(admission.applies(model.batch, kNow));
  Admission off({false, false, 0ns, 100ms});
  CHECK(model.decide(off, model.busy(25), 50ms));
  CHECK_FALSE(off.applies(model.batch, kNow));
}

TEST_CASE(
    "never refused: before the model is known, and when nothing is ahead and an instance idle") {
  Learned model;
  Admission admission({});
  Load idle = model.busy(0, 0ns);
  idle.idle = true;
  CHECK(model.decide(admission, idle, 1us));
  idle.rows_ahead = 30;  // brought together with it
  CHECK_FALSE(model.decide(admission, idle, 1us));
  const CostModel unknown;
  TimePoint expected{};
  CHECK(admission.decide(model.batch, unknown, model.busy(1000), kNow + 1ms, kNow, 1, kNow,
                         expected));
  CHECK(expected == TimePoint{});
}

TEST_CASE("a latency budget is everybody's deadline, unless the own one is sooner") {
  Learned model;
  model.batch.latency_budget = 60ms;  // two batches of 10 + ... fit: 30 ms are 10 rows and more
  Admission admission({});
  CHECK(model.decide(admission, model.busy(4), Nanoseconds::max()));
  const Status late = model.decide(admission, model.busy(60), Nanoseconds::max());
  CHECK(late.code() == StatusCode::kResourceExhausted);
  CHECK(late.message().find("of its latency budget there are 60.0 ms") != std::string::npos);
  CHECK_FALSE(model.decide(admission, model.busy(60), 10s));
  CHECK(admission.refused(Refusal::kSlo) == 2);
  CHECK_FALSE(model.decide(admission, model.busy(4), 8ms));
  CHECK(admission.refused(Refusal::kDeadline) == 1);
  Admission tolerant({true, false, 0ns, 100ms});  // late answers are better than none
  CHECK(model.decide(tolerant, model.busy(60), Nanoseconds::max()));
  CHECK_FALSE(tolerant.applies(model.batch, kNever));
}

TEST_CASE("pushbacks are spread, so that the refused do not come back together") {
  Learned model;
  Admission admission({});
  std::map<int64_t, int> at;
  for (int i = 0; i < 1000; ++i) {
    const Status refused = model.decide(admission, model.busy(1000), 10ms);
    REQUIRE_FALSE(refused);
    ++at[refused.pushback()->count() / 200];
  }
  CHECK(at.size() >= 8);
  for (const auto& [tenth, count] : at) CHECK(count < 250);
}

TEST_CASE("lower priority levels are refused first") {
  BatchPolicy batch;
  batch.max_rows = 10;
  batch.priority_levels = 2;
  batch.default_priority_level = 2;
  CHECK(batch.level_of(0) == 1);
  CHECK(batch.level_of(1) == 0);
  CHECK(batch.level_of(7) == 1);
  const Learned model;
  QueueLoad load(2, 1);
  load.busy(0, kNow + 5ms);
  load.arrived(0, 15, kNow);
  load.add(0, 15);
  load.arrived(1, 15, kNow);
  load.add(1, 15);
  Admission admission({});
  TimePoint expected{};
  const auto decide = [&](uint64_t priority) {
    return admission.decide(batch, model.cost, load.at(batch.level_of(priority), kNow), kNow + 60ms,
                            kNow, 1, kNow, expected);
  };
  CHECK(decide(1));
  CHECK_FALSE(decide(2));
}

TEST_CASE("estimates that prove too short are corrected, and forgiven") {
  Admission admission({});
  TimePoint now = kNow;
  for (int i = 0; i < 150; ++i, now += 5ms) admission.learn(now - 20ms, now - 10ms, now);  // twice
  CHECK(admission.correction() == doctest::Approx(2).epsilon(0.2));
  admission.learn(now - 20ms, now - 10ms, now);
  const double before = admission.correction();
  for (int i = 0; i < 100; ++i) admission.learn(now - 90ms, now - 89ms, now);  // one batch: once
  CHECK(admission.correction() <= before * 1.1);
  for (int i = 0; i < 2000; ++i, now += 5ms) admission.learn(now - 10ms, now, now);
  CHECK(admission.correction() < 1.1);
  for (int i = 0; i < 1000; ++i, now += 5ms) admission.learn(now - 1s, now - 999ms, now);
  CHECK(admission.correction() <= 3);
  const double learned = admission.correction();
  admission.learn(now, now + 900us, now + 1s);  // short waits are no lesson
  CHECK(admission.correction() == learned);
  admission.learn(now, now, now);
  admission.learn(now, now + 1ms, now - 1ms);
}

TEST_CASE("CoDel: bursts may wait for the interval, a standing queue is held to the target") {
  Learned model;
  model.batch.max_rows = 1;
  CostModel cost;
  for (int i = 0; i < 100; ++i) cost.record(1, 1ms);
  Admission admission({true, true, 5ms, 100ms});
  CHECK(admission.applies(model.batch, kNever));
  TimePoint now = kNow;
  TimePoint expected{};
  const auto decide = [&](int64_t ahead) {
    return admission.decide(model.batch, cost, model.busy(ahead, 500us), kNever, now, 1, now,
                            expected);
  };
  CHECK(decide(90));  // a burst
  const Status refused = decide(150);
  CHECK(refused.code() == StatusCode::kResourceExhausted);
  CHECK(refused.message().find("the limit is 100.0 ms") != std::string::npos);
  // For two intervals it has never been short.
  for (int i = 0; i < 20; ++i, now += 10ms) (void)decide(80);
  CHECK_FALSE(decide(20));
  CHECK(decide(4));  // short again: the queue does not stand
  CHECK(decide(20));
  // Nothing for a while: nobody knows.
  for (int i = 0; i < 20; ++i, now += 10ms) (void)decide(80);
  now += 10s;
  CHECK(decide(20));
}

TEST_CASE("simulated overload: admitted requests keep their deadline, the instance stays busy") {
  // One instance, batches of up to 10 rows that take 10 ms + 1 ms a row (+- noise), so 500 rows/s at
  // most; deadlines of 80 ms, requests as Poisson.
  struct Waiting {
    TimePoint arrived, expected;
  };
  for (const double rate : {200.0, 600.0, 1500.0, 5000.0}) {
    CAPTURE(rate);
    Learned model;
    Admission admission({});
    std::mt19937_64 random(11);
    std::exponential_distribution<double> gap(rate);
    std::lognormal_distribution<double> noise(0, 0.15);
    QueueLoad load(1, 1);
    std::deque<Waiting> queue;
    std::deque<Waiting> running;
    TimePoint now = kNow;
    TimePoint done = kNever;
    TimePoint taken{};
    TimePoint next = kNow;
    int offered = 0, good = 0, late = 0;
    const TimePoint end = kNow + 30s;
    while (now < end) {
      now = std::min(next, done);
      if (now == done) {
        for (const Waiting& request : running) {
          (now <= request.arrived + 80ms ? good : late) += 1;
        }
        model.cost.record(static_cast<int64_t>(running.size()), now - taken);
        admission.learn(running.front().arrived, running.front().expected, taken);
        running.clear();
        done = kNever;
      } else {
        ++offered;
        next += std::chrono::duration_cast<Nanoseconds>(std::chrono::duration<double>(gap(random)));
        TimePoint expected{};
        if (admission.decide(model.batch, model.cost, load.at(0, now), now + 80ms, now, 1, now,
                             expected)) {
          queue.push_back({now, expected});
          load.arrived(0, 1, now);
          load.add(0, 1);
        }
      }
      if (!running.empty() || queue.empty()) {
        if (running.empty()) load.idle(0);
        continue;
      }
      while (!queue.empty() && running.size() < 10) {
        running.push_back(queue.front());
        queue.pop_front();
        load.add(0, -1);
      }
      const auto rows = static_cast<int64_t>(running.size());
      taken = now;
      done = now + std::chrono::duration_cast<Nanoseconds>((10ms + rows * 1ms) * noise(random));
      load.busy(0, now + model.cost.mean(rows));
    }
    const double capacity = 30 * 500 / 1.02;  // the noise's mean is a little above 1
    CAPTURE(good);
    CAPTURE(late);
    CHECK(good >= 0.92 * std::min(capacity, static_cast<double>(offered)));
    CHECK(late <= 0.07 * (good + late));
  }
}
