#include "routing/hedged.h"

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

#include "routing/copy_question.h"

namespace headrace {

struct Hedged::Attempt final : public Completion, public Interest {
  Attempt(std::shared_ptr<Race> of, bool is_second)
      : request(*this), race(std::move(of)), second(is_second) {
    request.made_for(*this);
  }
  void complete(RequestPtr answered) noexcept override;
  void release(Request*) noexcept override { delete this; }
  bool over() const noexcept override;

  Request request;
  const std::shared_ptr<Race> race;
  const bool second;
};

// One request, until both of its attempts are over. It holds the client's request; the attempts,
// which hold it, are requests of their own.
class Hedged::Race final : public Alarms::Sleeper {
 public:
  Race(std::shared_ptr<Hedged> hedged, RequestPtr request, TimePoint now)
      : Sleeper(hedged->alarms_),
        hedged_(std::move(hedged)),
        root_(std::move(request)),
        began_(now) {}

  // The first attempt, before anything else is called.
  RequestPtr first() { return attempt(false); }

  // Once the first attempt is on its way.
  void watch(Nanoseconds patience) {
    {
      const std::lock_guard lock(mutex_);
      if (root_ == nullptr) return;
    }
    alarms().set(*this, saturating_add(began_, patience));
  }

  bool over() const noexcept {
    const std::lock_guard lock(mutex_);
    return root_ == nullptr || root_->cancelled();
  }

  void answered(RequestPtr attempt, bool second) noexcept {
    const TimePoint now = hedged_->options_.now();
    RequestPtr root;
    {
      const std::lock_guard lock(mutex_);
      --under_way_;
      if (root_ == nullptr) return;
      const bool good = attempt->response.status.ok();
      if (!good && under_way_ > 0) {
        if (error_.ok()) error_ = attempt->response.status;
        return;
      }
      root = std::move(root_);
      if (good) {
        hedged_->latencies_.record(now - began_, now);
        if (second) hedged_->won_.fetch_add(1, std::memory_order_relaxed);
      } else if (!error_.ok()) {
        attempt->response.status = std::move(error_);  // the first
      }
    }
    root->response = std::move(attempt->response);
    root->spec = std::move(attempt->spec);
    root->rows = attempt->rows;
    root->times = attempt->times;
    root->batch_rows = attempt->batch_rows;
    attempt.reset();  // the attempt may hold this object's last reference but the caller's
    answer(std::move(root));
  }

  void wake(TimePoint now) noexcept override {
    RequestPtr again;
    {
      const std::lock_guard lock(mutex_);
      if (asked_again_ || root_ == nullptr || root_->cancelled() || now >= root_->deadline) return;
      asked_again_ = true;
      if (!hedged_->spend()) return;
      again = attempt(true);
    }
    hedged_->servable_->submit(std::move(again));
  }

 private:
  // Under mutex_, or before anybody else knows this object.
  RequestPtr attempt(bool second) {
    auto* const made = new Attempt(std::static_pointer_cast<Race>(shared_from_this()), second);
    RequestPtr attempt(&made->request);
    Request& request = made->request;
    copy_question(*root_, request);
    request.deadline = root_->deadline;
    request.chain_depth = root_->chain_depth;
    request.times.arrived = root_->times.arrived;
    ++under_way_;
    return attempt;
  }

  const std::shared_ptr<Hedged> hedged_;
  mutable std::mutex mutex_;
  RequestPtr root_;           // guarded by mutex_; null: answered
  int under_way_ = 0;         // guarded by mutex_; attempts
  bool asked_again_ = false;  // guarded by mutex_
  Status error_;              // guarded by mutex_; of the attempt that failed first
  const TimePoint began_;
};

void Hedged::Attempt::complete(RequestPtr answered) noexcept {
  const std::shared_ptr<Race> kept = race;
  kept->answered(std::move(answered), second);
}

bool Hedged::Attempt::over() const noexcept { return race->over(); }

std::shared_ptr<Hedged> Hedged::make(std::shared_ptr<Servable> servable, HedgeOptions options,
                                     Alarms& alarms) {
  return std::shared_ptr<Hedged>(new Hedged(std::move(servable), std::move(options), alarms));
}

Nanoseconds Hedged::patience(TimePoint now) const {
  if (options_.after.count() > 0) return options_.after;
  const Nanoseconds p95 = latencies_.p95(now);
  return p95.count() > 0 ? std::max(p95, kShortest) : p95;
}

void Hedged::earn() {
  const auto earned = static_cast<int64_t>(options_.budget * static_cast<double>(kToken));
  int64_t have = tokens_.load(std::memory_order_relaxed);
  while (have < kBurst * kToken &&
         !tokens_.compare_exchange_weak(have, std::min(have + earned, kBurst * kToken),
                                        std::memory_order_relaxed)) {
  }
}

bool Hedged::spend() {
  int64_t have = tokens_.load(std::memory_order_relaxed);
  while (have >= kToken) {
    if (tokens_.compare_exchange_weak(have, have - kToken, std::memory_order_relaxed)) {
      sent_.fetch_add(1, std::memory_order_relaxed);
      return true;
    }
  }
  no_budget_.fetch_add(1, std::memory_order_relaxed);
  return false;
}

void Hedged::submit(RequestPtr request) { submit_together({&request, 1}); }

void Hedged::submit_together(std::span<RequestPtr> requests) {
  // An answer may bring more requests here, so the capacity is taken out while it is used.
  thread_local std::vector<std::shared_ptr<Race>> kept;
  std::vector<std::shared_ptr<Race>> races = std::move(kept);
  const TimePoint now = options_.now();
  for (RequestPtr& request : requests) {
    earn();
    races.push_back(std::make_shared<Race>(shared_from_this(), std::move(request), now));
    request = races.back()->first();
  }
  servable_->submit_together(requests);
  if (const Nanoseconds patience = this->patience(now); patience.count() > 0) {
    for (const std::shared_ptr<Race>& race : races) race->watch(patience);
  }
  races.clear();
  kept = std::move(races);
}

Hedged::Values Hedged::values() const {
  return {sent_.load(std::memory_order_relaxed), won_.load(std::memory_order_relaxed),
          no_budget_.load(std::memory_order_relaxed)};
}

}  // namespace headrace
