// Guarded: a servable behind a circuit breaker. While the breaker is open, requests are refused at
// once: UNAVAILABLE, and `circuit_open` for a fallback chain.
//
// What is a failure: UNKNOWN, INTERNAL, DATA_LOSS, ABORTED and UNIMPLEMENTED; an answer that comes
// after the request's deadline; an attempt that was given up (gave_up()). What is neither: refusals
// (UNAVAILABLE, RESOURCE_EXHAUSTED, a deadline that passed in the queue), cancelled requests, and
// what the client got wrong.
// Threads: any.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/request.h"
#include "core/servable.h"
#include "routing/circuit_breaker.h"

namespace headrace {

class Guarded final : public Servable,
                      public Completion,
                      public std::enable_shared_from_this<Guarded> {
 public:
  static std::shared_ptr<Guarded> make(std::shared_ptr<Servable> servable, BreakerOptions options,
                                       std::function<TimePoint()> now = &Clock::now);

  void submit(RequestPtr request) override;
  void submit_together(std::span<RequestPtr> requests) override;
  const ModelSpec& spec() const override { return servable_->spec(); }
  bool ready() const noexcept override { return servable_->ready(); }
  void gave_up() noexcept override;
  void complete(RequestPtr request) noexcept override;

  const CircuitBreaker& breaker() const { return breaker_; }

 private:
  Guarded(std::shared_ptr<Servable> servable, BreakerOptions options,
          std::function<TimePoint()> now)
      : servable_(std::move(servable)), breaker_(options), now_(std::move(now)) {}
  // False: refused and answered.
  bool admit(RequestPtr& request, TimePoint now);

  const std::shared_ptr<Servable> servable_;
  CircuitBreaker breaker_;
  const std::function<TimePoint()> now_;
};

}  // namespace headrace
