// StepStats: what became of the calls that arrived during one step of an open loop's schedule.
//
// Threads: one.
#pragma once

#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "log_histogram.h"

namespace loadgen {

struct StepStats {
  static constexpr int64_t kBin = 100'000'000;  // ns of the timeline

  double rate = 0;
  int64_t begin_ns = 0;
  int64_t end_ns = 0;
  uint64_t arrivals = 0;
  uint64_t dropped = 0;
  std::map<std::string, uint64_t> errors;
  LogHistogram latency;  // of right answers
  LogHistogram refusal;  // of RESOURCE_EXHAUSTED and UNAVAILABLE
  std::vector<uint64_t> right_in_bin;

  void answered(int64_t start_ns, int64_t now_ns, const std::string& error) {
    if (error.empty()) {
      latency.record(now_ns - start_ns);
      const auto bin = static_cast<std::size_t>((start_ns - begin_ns) / kBin);
      if (right_in_bin.size() <= bin) right_in_bin.resize(bin + 1);
      ++right_in_bin[bin];
      return;
    }
    ++errors[error];
    if (error == "grpc-status 8" || error == "grpc-status 14") refusal.record(now_ns - start_ns);
  }

  void print() const {
    const double seconds = static_cast<double>(end_ns - begin_ns) * 1e-9;
    std::printf("{\"rate\": %.3f, \"seconds\": %.3f, \"arrivals\": %llu, \"dropped\": %llu, ", rate,
                seconds, static_cast<unsigned long long>(arrivals),
                static_cast<unsigned long long>(dropped));
    std::printf("\"right\": %llu, \"right_per_s\": %.2f,\n   \"errors\": {",
                static_cast<unsigned long long>(latency.count()),
                static_cast<double>(latency.count()) / seconds);
    const char* comma = "";
    for (const auto& [kind, count] : errors) {
      std::printf("%s\"%s\": %llu", comma, kind.c_str(), static_cast<unsigned long long>(count));
      comma = ", ";
    }
    std::printf("},\n   ");
    print("latency_us", latency);
    std::printf(",\n   ");
    print("refusal_us", refusal);
    std::printf(",\n   \"right_each_100ms\": [");
    comma = "";
    for (const uint64_t right : right_in_bin) {
      std::printf("%s%llu", comma, static_cast<unsigned long long>(right));
      comma = ",";
    }
    std::printf("]}");
  }

 private:
  static void print(const char* name, const LogHistogram& times) {
    std::printf("\"%s\": {\"count\": %llu, \"p50\": %.2f, \"p99\": %.2f, \"max\": %.2f}", name,
                static_cast<unsigned long long>(times.count()), times.quantile_ns(0.5) / 1e3,
                times.quantile_ns(0.99) / 1e3, times.max_ns() / 1e3);
  }
};

}  // namespace loadgen
