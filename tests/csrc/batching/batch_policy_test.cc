#include "batching/batch_policy.h"

#include <doctest/doctest.h>

#include <string>

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
