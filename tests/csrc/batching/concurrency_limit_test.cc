#include "batching/concurrency_limit.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <functional>
#include <queue>
#include <random>
#include <vector>

#include "batching/admission.h"

using namespace headrace;
using namespace std::chrono_literals;

namespace {

struct Outcome {
  double answered_per_s = 0;
  double mean_ms = 0;
  std::size_t limit = 0;
};

// Arrivals by Poisson at a server with so many instances, one request a batch, first come, first served,
// for `time`. `execution`: of a request while so many execute.
Outcome simulate(ConcurrencyLimit& limit, double rate, std::size_t instances, Nanoseconds time,
                 const std::function<Nanoseconds(std::size_t)>& execution, TimePoint& now) {
  struct Running {
    TimePoint until;
    TimePoint began;
    TimePoint arrived;
    bool operator>(const Running& other) const { return until > other.until; }
  };
  std::mt19937_64 random(7);
  std::exponential_distribution<double> gap(rate);
  std::priority_queue<Running, std::vector<Running>, std::greater<>> running;
  std::queue<TimePoint> waiting;
  const TimePoint end = now + time;
  TimePoint arrival = now;
  std::size_t answered = 0;
  double waited_ms = 0;
  const auto begin = [&](TimePoint arrived) {
    running.push({now + execution(running.size() + 1), now, arrived});
  };
  while (now < end) {
    if (running.empty() || arrival < running.top().until) {
      now = arrival;
      arrival +=
          std::chrono::duration_cast<Nanoseconds>(std::chrono::duration<double>(gap(random)));
      if (limit.full(running.size() + waiting.size())) continue;
      if (running.size() < instances) {
        begin(now);
      } else {
        waiting.push(now);
      }
      continue;
    }
    const Running done = running.top();
    now = done.until;
    limit.record(now - done.arrived, now - done.began, running.size() + waiting.size(), now);
    running.pop();
    ++answered;
    waited_ms += std::chrono::duration<double, std::milli>(now - done.arrived).count();
    if (!waiting.empty()) {
      begin(waiting.front());
      waiting.pop();
    }
  }
  return {static_cast<double>(answered) / std::chrono::duration<double>(time).count(),
          waited_ms / static_cast<double>(std::max<std::size_t>(answered, 1)), limit.limit()};
}

}  // namespace

TEST_CASE("overload: instances are busy, and a request waits about as long as it executes") {
  for (const std::size_t instances : {1, 4, 16}) {
    CAPTURE(instances);
    ConcurrencyLimit limit(2 * instances, 1000);
    TimePoint now{1h};
    const auto execution = [](std::size_t) { return Nanoseconds(10ms); };
    const double capacity = 100.0 * static_cast<double>(instances);
    simulate(limit, 10 * capacity, instances, 10s, execution, now);
    const Outcome settled = simulate(limit, 10 * capacity, instances, 20s, execution, now);
    CHECK(settled.answered_per_s > 0.97 * capacity);
    CHECK(settled.mean_ms < 50);
    CHECK(settled.limit <= 5 * instances + 4);
  }
}

TEST_CASE("what executes together slows down: few are let in, and the limit follows the service") {
  ConcurrencyLimit limit(2, 1000);
  TimePoint now{1h};
  // 64 threads that call a service which does 8 at a time.
  std::size_t together = 8;
  const auto execution = [&](std::size_t running) {
    return 10ms * static_cast<int64_t>(std::max(running, together)) /
           static_cast<int64_t>(together);
  };
  // It is met idle first, as services are.
  simulate(limit, 100, 64, 5s, execution, now);
  simulate(limit, 8000, 64, 10s, execution, now);
  Outcome settled = simulate(limit, 8000, 64, 10s, execution, now);
  CHECK(settled.answered_per_s > 0.9 * 800);
  CHECK(settled.mean_ms < 50);
  CHECK(settled.limit < 64);
  const std::size_t before = settled.limit;
  together = 24;
  simulate(limit, 8000, 64, 60s, execution, now);
  settled = simulate(limit, 8000, 64, 10s, execution, now);
  CHECK(settled.limit > before);
  CHECK(settled.answered_per_s > 0.9 * 2400);
}

TEST_CASE("what is not used does not grow, nor does the limit fall below its least") {
  ConcurrencyLimit limit(4, 32);
  TimePoint now{1h};
  for (int i = 0; i < 10'000; ++i) limit.record(10ms, 10ms, 1, now += 5ms);
  CHECK(limit.limit() == 32);
  for (int i = 0; i < 10'000; ++i) limit.record(10s, 10ms, 32, now += 5ms);
  CHECK(limit.limit() == 4);
  CHECK(limit.full(4));
  CHECK_FALSE(limit.full(3));
  for (int i = 0; i < 10'000; ++i) limit.record(10ms, 10ms, limit.limit(), now += 5ms);
  CHECK(limit.limit() == ConcurrencyLimit::kMost);
}

TEST_CASE("admission refuses what is beyond the limit, if it is asked to") {
  Admission none(AdmissionPolicy{});
  CHECK(none.concurrency_limit() == 0);
  CHECK(none.decide_in_flight(1'000'000));
  AdmissionPolicy policy;
  policy.adaptive_concurrency = true;
  Admission admission(policy, 2, 16);
  CHECK(admission.concurrency_limit() == 64);
  CHECK(admission.decide_in_flight(63));
  const Status status = admission.decide_in_flight(64);
  CHECK(status.code() == StatusCode::kResourceExhausted);
  CHECK(status.message() ==
        "the model is overloaded: 64 requests are in flight, which its latency allows");
  CHECK(admission.refused(Refusal::kConcurrency) == 1);
}
