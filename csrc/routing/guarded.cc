#include "routing/guarded.h"

#include <utility>

namespace headrace {
namespace {

using Outcome = CircuitBreaker::Outcome;
using Pass = CircuitBreaker::Pass;

Outcome outcome_of(const Request& request, TimePoint now) {
  switch (request.response.status.code()) {
    case StatusCode::kUnknown:
    case StatusCode::kInternal:
    case StatusCode::kDataLoss:
    case StatusCode::kAborted:
    case StatusCode::kUnimplemented:
      return request.cancelled() ? Outcome::kNeither : Outcome::kFailure;
    case StatusCode::kOk:
      // A call is cancelled when its deadline passes, so that comes first. (The late answer of an
      // attempt that was given up counts again: it was no success.)
      if (now > request.deadline) return Outcome::kFailure;
      return request.cancelled() ? Outcome::kNeither : Outcome::kSuccess;
    default:
      return Outcome::kNeither;
  }
}

}  // namespace

std::shared_ptr<Guarded> Guarded::make(std::shared_ptr<Servable> servable, BreakerOptions options,
                                       std::function<TimePoint()> now) {
  return std::shared_ptr<Guarded>(new Guarded(std::move(servable), options, std::move(now)));
}

bool Guarded::admit(RequestPtr& request, TimePoint now) {
  const Pass pass = breaker_.pass(now);
  if (pass == Pass::kRefused) {
    request->response.outputs.clear();
    request->response.circuit_open = true;
    request->response.status =
        Status::unavailable("model '" + spec().name + "', version " + spec().version_text +
                            " failed too often lately, its circuit is open");
    answer(std::move(request));
    return false;
  }
  request->begin_detour(*this, shared_from_this());
  request->detour().step = static_cast<std::size_t>(pass);
  return true;
}

void Guarded::submit(RequestPtr request) {
  if (admit(request, now_())) servable_->submit(std::move(request));
}

void Guarded::submit_together(std::span<RequestPtr> requests) {
  const TimePoint now = now_();
  std::size_t admitted = 0;
  for (RequestPtr& request : requests) {
    if (admit(request, now)) std::swap(requests[admitted++], request);
  }
  if (admitted > 0) servable_->submit_together(requests.first(admitted));
}

void Guarded::gave_up() noexcept {
  const bool probing = breaker_.state() == CircuitBreaker::State::kHalfOpen;
  breaker_.record(probing ? Pass::kProbe : Pass::kNormal, Outcome::kFailure, now_());
  servable_->gave_up();
}

void Guarded::complete(RequestPtr request) noexcept {
  const TimePoint now = now_();
  const auto pass = static_cast<Pass>(request->detour().step);
  breaker_.record(pass, outcome_of(*request, now), now);
  // This object may end with the detour.
  const std::shared_ptr<const void> self = request->end_detour();
  answer(std::move(request));
}

}  // namespace headrace
