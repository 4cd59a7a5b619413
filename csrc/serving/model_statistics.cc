#include "serving/model_statistics.h"

#include <chrono>

namespace headrace {

void ModelStatistics::record_batch(int64_t rows, std::size_t requests,
                                   const RequestTimes& batch_times) {
  const uint64_t input_ns = elapsed_ns(batch_times.batched, batch_times.input_done);
  const uint64_t infer_ns = elapsed_ns(batch_times.input_done, batch_times.infer_done);
  const uint64_t output_ns = elapsed_ns(batch_times.infer_done, batch_times.done);
  // Every request of a batch counts the batch's times, as in Triton.
  compute_input_.add(input_ns * requests, requests);
  compute_infer_.add(infer_ns * requests, requests);
  compute_output_.add(output_ns * requests, requests);
  infer_ns_.record(infer_ns, requests);
  inference_count_.fetch_add(static_cast<uint64_t>(rows), std::memory_order_relaxed);
  execution_count_.fetch_add(1, std::memory_order_relaxed);
  last_inference_ms_.store(
      static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(
                                std::chrono::system_clock::now().time_since_epoch())
                                .count()),
      std::memory_order_relaxed);

  const std::lock_guard lock(mutex_);
  BatchSizeStatistics& batch = batches_[rows];
  ++batch.executions;
  batch.input_ns += input_ns;
  batch.infer_ns += infer_ns;
  batch.output_ns += output_ns;
}

void ModelStatistics::record_success(const RequestTimes& times) {
  const uint64_t request_ns = elapsed_ns(times.arrived, times.done);
  const uint64_t queue_ns = elapsed_ns(times.queued, times.batched);
  success_.add(request_ns);
  queue_.add(queue_ns);
  request_ns_.record(request_ns);
  queue_ns_.record(queue_ns);
  if (budget_ns_ == 0) return;
  slo_requests_.fetch_add(1, std::memory_order_relaxed);
  if (request_ns <= budget_ns_) slo_good_.fetch_add(1, std::memory_order_relaxed);
}

void ModelStatistics::record_failure(FailureReason reason, const RequestTimes& times,
                                     TimePoint now) {
  const uint64_t request_ns = elapsed_ns(times.arrived, now);
  fail_.add(request_ns);
  failures_[static_cast<std::size_t>(reason)].fetch_add(1, std::memory_order_relaxed);
  if (budget_ns_ == 0 || reason == FailureReason::kOther) return;
  if (reason == FailureReason::kCancelled && request_ns <= budget_ns_) return;
  slo_requests_.fetch_add(1, std::memory_order_relaxed);
}

StatisticsValues ModelStatistics::read() const {
  StatisticsValues values;
  values.last_inference_ms = last_inference_ms_.load(std::memory_order_relaxed);
  values.inference_count = inference_count_.load(std::memory_order_relaxed);
  values.execution_count = execution_count_.load(std::memory_order_relaxed);
  values.success = success_.read();
  values.fail = fail_.read();
  values.queue = queue_.read();
  values.compute_input = compute_input_.read();
  values.compute_infer = compute_infer_.read();
  values.compute_output = compute_output_.read();
  for (std::size_t i = 0; i < kFailureReasons; ++i) {
    values.failures[i] = failures_[i].load(std::memory_order_relaxed);
  }
  values.request_ns = request_ns_.read();
  values.queue_ns = queue_ns_.read();
  values.infer_ns = infer_ns_.read();
  values.slo_requests = slo_requests_.load(std::memory_order_relaxed);
  values.slo_good = slo_good_.load(std::memory_order_relaxed);
  const std::lock_guard lock(mutex_);
  values.batches = batches_;
  return values;
}

}  // namespace headrace
