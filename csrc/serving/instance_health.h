// InstanceHealth: decides when an instance is suspect, when it may be suspected again, and when its
// next rebuild may be tried. Pure: told what happened and when, so that it is tested without a clock.
//
// Some batches in a row that failed for the backend's sake make an instance suspect. That alone is no
// proof: one client that sends only bad inputs does the same to every instance. So a suspect instance
// is probed (with a sample that should succeed): when the probe succeeds, the requests were at fault,
// and for a while, at least kProbeShare times as long as the probe took, it is not suspected again.
// An instance that idles may be probed, too; when that fails it is suspect at once.
// Rebuilds are apart by `backoff`, twice as long each time up to `backoff_max`, give or take a
// quarter; after 2 x backoff_max without one it begins anew.
//
// Threads: whoever has the instance, one at a time.
#pragma once

#include <cstdint>
#include <random>
#include <string>

#include "base/clock.h"
#include "base/status.h"

namespace headrace {

struct HealthPolicy {
  uint32_t failures = 5;  // batches in a row that make an instance suspect; 0: none ever does
  Nanoseconds backoff = std::chrono::seconds(1);
  Nanoseconds backoff_max = std::chrono::seconds(60);
  Nanoseconds probe{0};  // an instance that had nothing to do for so long is probed; zero: never
};

// Whether a batch that ended so says something against its instance: not, when it says that the
// requests are wrong.
bool blames_instance(const Status& status);

class InstanceHealth {
 public:
  static constexpr int kProbeShare = 50;

  // `seed`: of the backoff's jitter.
  InstanceHealth(const HealthPolicy& policy, uint32_t seed) : policy_(policy), random_(seed) {}

  // A batch, or one of its requests alone, was answered.
  void succeeded() {
    if (failed_ != 0) failed_ = 0;
  }
  // A batch failed, and each of its requests alone.
  void failed(const Status& status, TimePoint now);

  // A probe failed while nobody asked for anything.
  void failed_idle(const Status& status, TimePoint now);

  bool suspect() const { return suspect_; }
  // The failure that made it suspect.
  const Status& fault() const { return fault_; }
  // It is not, after all: its probe succeeded.
  void cleared(TimePoint now, Nanoseconds probe_took);
  // It is not looked at any more: the version is closing.
  void forgiven() {
    failed_ = 0;
    suspect_ = false;
  }

  // When to rebuild it (`now`, the first time), to be called once a try.
  TimePoint next_rebuild(TimePoint now);
  // It was rebuilt. Unless that was proven by a probe, it is not suspected before its next rebuild
  // would be due, nor before kProbeShare times as long as this one took.
  void rebuilt(bool proven, TimePoint now);

 private:
  HealthPolicy policy_;
  std::minstd_rand random_;
  uint32_t failed_ = 0;  // batches in a row
  bool suspect_ = false;
  Status fault_;
  TimePoint not_before_{};  // when it may become suspect
  TimePoint tried_{};       // the last rebuild; the epoch: none
  Nanoseconds step_{0};     // of the backoff, without jitter
  Nanoseconds wait_{0};     // from tried_ to the next rebuild
};

}  // namespace headrace
