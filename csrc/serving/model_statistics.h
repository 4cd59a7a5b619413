// ModelStatistics: what a model version counted, with Triton's counting rules: a batch of n
// requests is one execution, n successes, `rows` inferences.
//
// Threads: record() from any thread (relaxed atomics); read() from any.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>

#include "base/histogram.h"
#include "core/request.h"

namespace headrace {

// Why a request failed: the `reason` label of nv_inference_request_failure.
enum class FailureReason : uint8_t { kRejected = 0, kCancelled, kBackend, kOther };
inline constexpr std::size_t kFailureReasons = 4;

struct DurationStat {
  uint64_t count = 0;
  uint64_t ns = 0;
};

struct BatchSizeStatistics {
  uint64_t executions = 0;
  uint64_t input_ns = 0;
  uint64_t infer_ns = 0;
  uint64_t output_ns = 0;
};

struct StatisticsValues {
  uint64_t last_inference_ms = 0;  // since the Unix epoch
  uint64_t inference_count = 0;    // rows
  uint64_t execution_count = 0;
  DurationStat success, fail, queue, compute_input, compute_infer, compute_output;
  std::array<uint64_t, kFailureReasons> failures{};
  std::map<int64_t, BatchSizeStatistics> batches;  // by executed batch size
  Histogram::Values request_ns, queue_ns, infer_ns;
  // Of a latency budget: requests that should have been answered within it, and those that were. What
  // the client spoilt does not count: requests that are wrong, or cancelled within the budget.
  uint64_t slo_requests = 0;
  uint64_t slo_good = 0;
};

class ModelStatistics {
 public:
  // `latency_budget`: 0 for none.
  explicit ModelStatistics(Nanoseconds latency_budget = Nanoseconds{0})
      : budget_ns_(static_cast<uint64_t>(latency_budget.count())) {}

  // A batch that was executed, before its requests are answered. `batch_times` are the stamps they
  // share. The compute durations of its requests are counted here, at once.
  void record_batch(int64_t rows, std::size_t requests, const RequestTimes& batch_times);
  // One request of it.
  void record_success(const RequestTimes& times);
  void record_failure(FailureReason reason, const RequestTimes& times, TimePoint now);
  StatisticsValues read() const;

 private:
  struct Duration {
    std::atomic<uint64_t> count{0};
    std::atomic<uint64_t> ns{0};
    void add(uint64_t value, uint64_t n = 1) {
      count.fetch_add(n, std::memory_order_relaxed);
      ns.fetch_add(value, std::memory_order_relaxed);
    }
    DurationStat read() const {
      return {count.load(std::memory_order_relaxed), ns.load(std::memory_order_relaxed)};
    }
  };

  const uint64_t budget_ns_;
  std::atomic<uint64_t> slo_requests_{0};
  std::atomic<uint64_t> slo_good_{0};
  std::atomic<uint64_t> last_inference_ms_{0};
  std::atomic<uint64_t> inference_count_{0};
  std::atomic<uint64_t> execution_count_{0};
  Duration success_, fail_, queue_, compute_input_, compute_infer_, compute_output_;
  std::array<std::atomic<uint64_t>, kFailureReasons> failures_{};
  Histogram request_ns_, queue_ns_, infer_ns_;

  mutable std::mutex mutex_;                        // taken once a batch, by instance threads
  std::map<int64_t, BatchSizeStatistics> batches_;  // guarded by mutex_
};

}  // namespace headrace
