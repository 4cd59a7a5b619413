#include "serving/instance_health.h"

#include <algorithm>

namespace headrace {

bool blames_instance(const Status& status) {
  switch (status.code()) {
    case StatusCode::kUnknown:
    case StatusCode::kInternal:
    case StatusCode::kDataLoss:
    case StatusCode::kAborted:
    case StatusCode::kUnavailable:
    case StatusCode::kResourceExhausted:  // memory that an instance does not give back
      return true;
    default:
      return false;
  }
}

void InstanceHealth::failed(const Status& status, TimePoint now) {
  if (policy_.failures == 0 || suspect_) return;
  ++failed_;
  if (failed_ < policy_.failures || now < not_before_) return;
  suspect_ = true;
  fault_ = status;
}

void InstanceHealth::failed_idle(const Status& status, TimePoint now) {
  if (suspect_ || now < not_before_) return;
  suspect_ = true;
  fault_ = status;
}

void InstanceHealth::cleared(TimePoint now, Nanoseconds probe_took) {
  forgiven();
  not_before_ = saturating_add(now, std::max(policy_.backoff, probe_took * kProbeShare));
}

TimePoint InstanceHealth::next_rebuild(TimePoint now) {
  const bool anew = tried_ == TimePoint{} || now - tried_ >= 2 * policy_.backoff_max;
  tried_ = anew ? now : std::max(now, saturating_add(tried_, wait_));
  step_ = anew ? policy_.backoff : std::min(2 * step_, policy_.backoff_max);
  const double jitter = std::uniform_real_distribution<double>(0.75, 1.25)(random_);
  wait_ = Nanoseconds(static_cast<int64_t>(static_cast<double>(step_.count()) * jitter));
  return tried_;
}

void InstanceHealth::rebuilt(bool proven, TimePoint now) {
  forgiven();
  not_before_ = proven ? TimePoint{}
                       : std::max(saturating_add(tried_, wait_),
                                  saturating_add(now, (now - tried_) * kProbeShare));
}

}  // namespace headrace
