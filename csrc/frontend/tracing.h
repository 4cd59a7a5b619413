// Tracing: which requests are traced, and a bounded ring of what became of them, which the control
// plane drains and sends away. A request that is not traced costs one relaxed load; one that is, a
// record under a short lock. When the ring is full records are dropped and counted: a collector that
// is slow or gone slows nothing down.
//
// Threads: configure() and drain() by the control plane; the rest by any I/O thread.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "core/request.h"
#include "core/trace_context.h"

namespace headrace {

struct TraceRecord {
  TraceContext context;
  RequestTimes times;  // a stamp that was not taken is the epoch
  TimePoint answered;
  StatusCode code = StatusCode::kOk;
  bool streamed = false;  // ModelStreamInfer
  int64_t rows = 0;
  int64_t batch_rows = 0;  // of the batch it was executed in; 0: none
  std::string request_id;
  std::string model;
  std::string version;  // who answered; empty: nobody
  std::string arm;
  std::string fallback_from;
};

class Tracing {
 public:
  // Names of clients are cut to this.
  static constexpr std::size_t kMaxText = 256;

  // `ratio`: of the requests without a traceparent, 0 to 1, chosen by a hash of their id (the same in
  // every server), or by chance without one. A valid traceparent decides by its flag. `capacity`
  // records wait for drain(). Before that, and with capacity 0, nothing is traced.
  void configure(double ratio, std::size_t capacity);
  bool on() const { return on_.load(std::memory_order_relaxed); }

  // Whether the request is traced, and as what. `traceparent`: the header, or empty.
  std::unique_ptr<TraceContext> begin(std::string_view traceparent, std::string_view request_id);
  void record(const Request& request, TimePoint answered);

  struct Drained {
    std::vector<TraceRecord> records;  // oldest first
    uint64_t dropped = 0;              // since the start
  };
  Drained drain();

 private:
  std::atomic<bool> on_{false};
  std::atomic<uint64_t> threshold_{0};  // hashes below it are traced
  std::atomic<bool> everything_{false};

  std::mutex mutex_;
  std::vector<TraceRecord> records_;  // guarded by mutex_, as is all below
  std::size_t capacity_ = 0;
  uint64_t dropped_ = 0;
};

}  // namespace headrace
