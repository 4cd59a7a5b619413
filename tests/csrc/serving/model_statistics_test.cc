#include "serving/model_statistics.h"

#include <doctest/doctest.h>

using namespace headrace;
using namespace std::chrono_literals;

namespace {

constexpr TimePoint kStart{1h};

RequestTimes times() {
  RequestTimes t;
  t.arrived = kStart;
  t.queued = kStart + 1us;
  t.batched = kStart + 3us;
  t.input_done = kStart + 6us;
  t.infer_done = kStart + 10us;
  t.done = kStart + 15us;
  return t;
}

}  // namespace

TEST_CASE("Triton's counting: a batch-8 request is one success, eight inferences, one execution") {
  ModelStatistics statistics;
  statistics.record_batch(8, 1, times());
  statistics.record_success(times());
  const StatisticsValues values = statistics.read();
  CHECK(values.success.count == 1);
  CHECK(values.inference_count == 8);
  CHECK(values.execution_count == 1);
  CHECK(values.last_inference_ms > 0);
}

TEST_CASE(
    "Triton's counting: two merged requests are two successes, two inferences, one execution") {
  ModelStatistics statistics;
  statistics.record_batch(2, 2, times());
  statistics.record_success(times());
  statistics.record_success(times());
  const StatisticsValues values = statistics.read();
  CHECK(values.success.count == 2);
  CHECK(values.inference_count == 2);
  CHECK(values.execution_count == 1);
  CHECK(values.success.ns == 2 * 15000);
  CHECK(values.queue.count == 2);
  CHECK(values.queue.ns == 2 * 2000);
  CHECK(values.compute_input.count == 2);
  CHECK(values.compute_input.ns == 2 * 3000);
  CHECK(values.compute_infer.ns == 2 * 4000);
  CHECK(values.compute_output.ns == 2 * 5000);
  REQUIRE(values.batches.size() == 1);
  CHECK(values.batches.at(2).executions == 1);
  CHECK(values.batches.at(2).infer_ns == 4000);
  CHECK(values.request_ns.count == 2);
  CHECK(values.infer_ns.count == 2);
  CHECK(values.infer_ns.sum_ns == 8000);
}

TEST_CASE("failures count by reason, and not as executions") {
  ModelStatistics statistics;
  statistics.record_failure(FailureReason::kRejected, times(), kStart + 5us);
  statistics.record_failure(FailureReason::kBackend, times(), kStart + 7us);
  statistics.record_failure(FailureReason::kBackend, times(), kStart);
  const StatisticsValues values = statistics.read();
  CHECK(values.fail.count == 3);
  CHECK(values.fail.ns == 12000);
  CHECK(values.failures == std::array<uint64_t, kFailureReasons>{1, 0, 2, 0});
  CHECK(values.execution_count == 0);
  CHECK(values.success.count == 0);
}
