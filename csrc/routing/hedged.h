// Hedged: a servable that is asked again, for the same request, when an answer takes long: another
// instance takes the second attempt, and the first good answer is the client's. The other attempt is
// dropped where it still waits. (Dean and Barroso, "The Tail at Scale", 2013.)
//
// A budget bounds the work that is done twice; without it a servable that gets slower would get twice
// the requests. Errors are answered when no other attempt is under way: asking again is not retrying.
// Threads: any. A mutex and an allocation a request; an alarm for those not answered at once.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "core/request.h"
#include "core/servable.h"
#include "routing/alarms.h"
#include "routing/latency_quantile.h"

namespace headrace {

struct HedgeOptions {
  Nanoseconds after{0};  // since the submit; 0: the p95 of recent answers, or kShortest
  double budget = 0.05;  // second attempts a request, in the long run
  std::function<TimePoint()> now = &Clock::now;
};

class Hedged final : public Servable, public std::enable_shared_from_this<Hedged> {
 public:
  static constexpr int64_t kBurst = 10;  // second attempts at a time that saved budget allows
  // Asking sooner is not worth an alarm.
  static constexpr Nanoseconds kShortest = std::chrono::milliseconds(1);

  struct Values {
    uint64_t sent = 0;       // second attempts
    uint64_t won = 0;        // that brought the answer
    uint64_t no_budget = 0;  // not sent
  };

  // `servable` is not null. `alarms` outlives every request.
  static std::shared_ptr<Hedged> make(std::shared_ptr<Servable> servable, HedgeOptions options,
                                      Alarms& alarms);

  void submit(RequestPtr request) override;
  void submit_together(std::span<RequestPtr> requests) override;
  const ModelSpec& spec() const override { return servable_->spec(); }
  bool ready() const noexcept override { return servable_->ready(); }
  void gave_up() noexcept override { servable_->gave_up(); }

  Values values() const;

 private:
  static constexpr int64_t kToken = 1'000'000;  // what a second attempt costs
  class Race;
  struct Attempt;
  Hedged(std::shared_ptr<Servable> servable, HedgeOptions options, Alarms& alarms)
      : servable_(std::move(servable)), options_(std::move(options)), alarms_(alarms) {}
  // How long an answer may take before the request is sent again; 0: nobody knows.
  Nanoseconds patience(TimePoint now) const;
  void earn();
  bool spend();

  const std::shared_ptr<Servable> servable_;
  const HedgeOptions options_;
  Alarms& alarms_;
  LatencyQuantile latencies_;
  std::atomic<int64_t> tokens_{kBurst * kToken};
  std::atomic<uint64_t> sent_{0}, won_{0}, no_budget_{0};
};

}  // namespace headrace
