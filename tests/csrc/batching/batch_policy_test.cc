#include "batching/batch_policy.h"

#include <doctest/doctest.h>

#include <string>

#include "batching/cost_model.h"

using namespace headrace;
using namespace std::chrono_literals;

namespace {

struct Case {
  std::string what;
  std::vector<int64_t> preferred;
  Nanoseconds delay;
  std::vector<int64_t> cumulative;
  bool closed;
  bool draining;
  Nanoseconds age;       // of the oldest request
  std::size_t requests;  // 0: waits
};

}  // namespace

TEST_CASE("cut_batch takes what the policy says, for max_rows 8") {
  const std::vector<Case> cases = {
      {"nothing queued", {}, 0us, {}, false, false, 0us, 0},
      {"work-conserving: one is taken at once", {}, 0us, {1}, false, false, 0us, 1},
      {"work-conserving: all there is", {}, 0us, {1, 2, 5}, false, false, 0us, 3},
      {"a full run", {}, 0us, {4, 8}, true, false, 0us, 2},
      {"delay: waits for more", {}, 100us, {1, 2}, false, false, 10us, 0},
      {"delay: full goes at once", {}, 100us, {4, 8}, true, false, 0us, 2},
      {"delay: nothing can join, goes at once", {}, 100us, {1, 2}, true, false, 0us, 2},
      {"delay over", {}, 100us, {1, 2}, false, false, 100us, 2},
      {"delay: draining waits for nobody", {}, 100us, {1, 2}, false, true, 0us, 2},
      {"preferred: the largest reachable", {2, 4}, 0us, {1, 2, 3, 4, 5}, false, false, 0us, 4},
      {"preferred: the smaller one", {2, 4}, 0us, {1, 2, 3}, false, false, 0us, 2},
      {"preferred: none reachable, no delay", {4}, 0us, {1, 2, 3}, false, false, 0us, 3},
      {"preferred and delay: reached", {4}, 100us, {2, 4, 5}, false, false, 0us, 2},
      {"preferred and delay: not reached, waits", {4}, 100us, {1, 3}, false, false, 0us, 0},
      {"preferred and delay: jumped over, goes", {4}, 100us, {3, 6}, false, false, 0us, 2},
      {"preferred and delay: over, all", {2}, 100us, {1, 2, 3}, false, false, 200us, 3},
      {"preferred and delay: closed, all", {4}, 100us, {1, 3}, true, false, 0us, 2},
      {"one request larger than max_rows", {}, 100us, {9}, true, false, 0us, 1},
  };
  const TimePoint now{1h};
  for (const Case& c : cases) {
    CAPTURE(c.what);
    BatchPolicy policy;
    policy.max_rows = 8;
    policy.preferred_batch_size = c.preferred;
    policy.max_queue_delay = c.delay;
    const Cut cut = cut_batch(policy, {c.cumulative, now - c.age, c.closed, c.draining}, now);
    CHECK(cut.requests == c.requests);
    if (c.requests == 0 && !c.cumulative.empty()) CHECK(cut.wait_until == now - c.age + c.delay);
  }
}

TEST_CASE("a delay beyond the end of time waits until something arrives") {
  BatchPolicy policy;
  policy.max_rows = 8;
  policy.max_queue_delay = Nanoseconds::max();
  const std::vector<int64_t> rows = {1};
  const Cut cut = cut_batch(policy, {rows, TimePoint{1h}, false, false}, TimePoint{2h});
  CHECK(cut.requests == 0);
  CHECK(cut.wait_until == kNever);
}

namespace {

// Batches take 10 ms + 1 ms a row.
struct WithBudget {
  explicit WithBudget(Nanoseconds budget) {
    for (int i = 0; i < 200; ++i) cost.record(1 + i % 32, 10ms + (1 + i % 32) * 1ms);
    policy.max_rows = 64;
    policy.latency_budget = budget;
  }
  Cut cut(const std::vector<int64_t>& rows, double rows_per_s, Nanoseconds age = 1ms,
          bool closed = false) const {
    QueueView view{rows, now - age, closed, false};
    view.cost = &cost;
    view.due = now - age + policy.latency_budget;
    view.rows_per_s = rows_per_s;
    return cut_batch(policy, view, now);
  }

  const TimePoint now{1h};
  CostModel cost;
  BatchPolicy policy;
};

}  // namespace

TEST_CASE("latency budget: a batch fits twice into it") {
  const WithBudget given(60ms);  // 30 ms: 20 rows
  std::vector<int64_t> rows;
  for (int64_t i = 1; i <= 40; ++i) rows.push_back(i);
  CHECK(given.cut(rows, 10000).requests == doctest::Approx(20).epsilon(0.1));
  CHECK(given.cut({50}, 10000).requests == 1);  // one request that is larger goes all the same
  const WithBudget generous(10s);
  CHECK(generous.cut(rows, 10).requests == 40);
}

TEST_CASE("latency budget: waits only while that gains throughput that is needed") {
  const WithBudget given(200ms);
  CHECK(given.cut({1}, 20).requests == 1);  // batches of one keep up
  CHECK(given.cut({1}, 90).requests == 1);  // the next is too far away: 10 ms shared, 11 ms
  const Cut waits = given.cut({1}, 2000);   // 20 come while one batch runs
  CHECK(waits.requests == 0);
  CHECK(waits.wait_until > given.now);
  CHECK(waits.wait_until <= given.now + 10ms);         // what can be gained at most
  CHECK(given.cut({1, 2}, 2000, 12ms).requests == 2);  // and that is over
  CHECK(given.cut({1, 2}, 2000, 1ms, true).requests == 2);
  CHECK(given.cut({30}, 2000).requests == 1);  // large enough to keep up
  // The most urgent cannot wait.
  CHECK(given.cut({1}, 2000, 195ms).requests == 1);
}

TEST_CASE("latency budget: before the cost model has learned, small batches teach it") {
  BatchPolicy policy;
  policy.max_rows = 64;
  policy.latency_budget = 1ms;
  policy.max_queue_delay = 100us;
  CostModel cost;
  std::vector<int64_t> rows;
  for (int64_t i = 1; i <= 64; ++i) rows.push_back(i);
  std::vector<std::size_t> taken;
  while (!cost.learned()) {
    QueueView view{rows, TimePoint{1h}, true, false};
    view.cost = &cost;
    taken.push_back(cut_batch(policy, view, TimePoint{1h}).requests);
    cost.record(static_cast<int64_t>(taken.back()), taken.back() * 1ms);
  }
  CHECK(taken.front() == 1);
  CHECK(taken.back() == 8);
  CHECK(cost.per_row() > 900us);  // and a line is through them
  const std::vector<int64_t> one = {1};
  const CostModel unknown;
  QueueView view{one, TimePoint{1h}, false, false};
  view.cost = &unknown;
  CHECK(cut_batch(policy, view, TimePoint{1h}).requests == 1);
}
