#include "routing/fallback_chain.h"

#include <algorithm>
#include <utility>

#include "routing/pursuit.h"

namespace headrace {
namespace {

// What a ticket may take to be filed.
constexpr Nanoseconds kFilingReserve = std::chrono::milliseconds(100);

bool is_floating_point(DType dtype) {
  return dtype == DType::kFp16 || dtype == DType::kBf16 || dtype == DType::kFp32 ||
         dtype == DType::kFp64;
}

Status check_accept(const ModelSpec& spec, const Accept& accept) {
  const std::optional<std::size_t> index = spec.find_output(accept.output);
  if (!index) {
    return Status::invalid_argument("accept.output: model '" + spec.name + "' has no output '" +
                                    accept.output + "'");
  }
  if (!is_floating_point(spec.outputs[*index].dtype)) {
    return Status::invalid_argument("accept.output: '" + accept.output + "' of model '" +
                                    spec.name + "' is " +
                                    std::string(dtype_name(spec.outputs[*index].dtype)) +
                                    ", confidence needs floating-point numbers");
  }
  return {};
}

}  // namespace

void Link::point_to(std::shared_ptr<Servable> servable) {
  // What it pointed to may end here: not under the lock.
  {
    const std::lock_guard lock(mutex_);
    servable_.swap(servable);
  }
}

std::shared_ptr<Servable> Link::get() const {
  const std::lock_guard lock(mutex_);
  return servable_;
}

Triggers usual_triggers() {
  Triggers triggers;
  triggers.set();
  triggers.reset(static_cast<std::size_t>(Trigger::kNone));
  triggers.reset(static_cast<std::size_t>(Trigger::kInvalidInput));
  return triggers;
}

Result<std::shared_ptr<FallbackChain>> FallbackChain::make(std::shared_ptr<Servable> first,
                                                           ChainOptions options, Alarms& alarms) {
  for (const ChainStep& step : options.steps) {
    const int kinds =
        int{step.target != nullptr} + int{step.rule != nullptr} + int{step.desk != nullptr};
    if (kinds != 1) {
      return Status::invalid_argument("fallback '" + step.name +
                                      "' is to be a model, a rule or a person");
    }
  }
  if (options.accept) {
    if (Status status = check_accept(first->spec(), *options.accept); !status) return status;
  }
  return std::shared_ptr<FallbackChain>(
      new FallbackChain(std::move(first), std::move(options), alarms));
}

FallbackChain::FallbackChain(std::shared_ptr<Servable> first, ChainOptions options, Alarms& alarms)
    : first_(std::move(first)),
      options_(std::move(options)),
      alarms_(alarms),
      latencies_(options_.steps.size() + 1),
      counts_(kTriggers * (options_.steps.size() + 3)) {
  names_.push_back(std::make_shared<const std::string>(options_.name));
  for (const ChainStep& step : options_.steps) {
    names_.push_back(std::make_shared<const std::string>(step.name));
  }
}

void FallbackChain::submit(RequestPtr request) {
  Pursuit::perform(Pursuit::begin(shared_from_this(), std::move(request)));
}

void FallbackChain::submit_together(std::span<RequestPtr> requests) {
  std::vector<RequestPtr> tries;
  tries.reserve(requests.size());
  for (RequestPtr& request : requests) {
    Pursuit::Todo todo = Pursuit::begin(shared_from_this(), std::move(request));
    if (todo.attempt != nullptr && todo.target == first_) {
      tries.push_back(std::move(todo.attempt));
    } else {
      Pursuit::perform(std::move(todo));
    }
  }
  if (!tries.empty()) first_->submit_together(tries);
}

bool FallbackChain::ready() const noexcept {
  if (first_->ready()) return true;
  for (std::size_t i = 1; i < steps(); ++i) {
    if (!has(step(i).on, Trigger::kError)) continue;
    if (step(i).rule != nullptr) return true;
    const std::shared_ptr<Servable> target = target_of(i);
    if (target != nullptr && target->ready()) return true;
  }
  return false;
}

std::shared_ptr<Servable> FallbackChain::target_of(std::size_t i) const {
  if (i == 0) return first_;
  if (step(i).target == nullptr) return nullptr;
  std::shared_ptr<Servable> target = step(i).target->get();
  return target == first_ ? nullptr : target;
}

std::size_t FallbackChain::next_step(std::size_t after, Trigger why, TimePoint now,
                                     TimePoint cutoff, bool answers) const {
  for (std::size_t i = after + 1; i < steps(); ++i) {
    if (!has(step(i).on, why)) continue;
    if (step(i).rule != nullptr) return i;
    if (step(i).desk != nullptr) {
      if (answers) continue;
      return i;
    }
    if (target_of(i) == nullptr || now >= cutoff) continue;
    if (cutoff == kNever || latencies_[i].p95(now) <= cutoff - now) return i;
  }
  return kNoStep;
}

TimePoint FallbackChain::give_up_at(std::size_t i, Trigger why, TimePoint now, TimePoint cutoff,
                                    bool has_best) const {
  TimePoint limit = kNever;
  if (i > 0 && step(i).timeout.count() > 0) limit = saturating_add(now, step(i).timeout);
  if (cutoff == kNever) return limit;
  const Nanoseconds left = cutoff - now;
  const Nanoseconds need = latencies_[i].p95(now);
  const Trigger cause = why == Trigger::kNone ? Trigger::kDeadline : why;
  bool somebody = has_best;
  for (std::size_t j = i + 1; j < steps(); ++j) {
    if (!has(step(j).on, cause)) continue;
    if (step(j).target != nullptr && target_of(j) == nullptr) continue;
    somebody = true;
    Nanoseconds reserve{0};
    if (step(j).desk != nullptr) reserve = std::min(left / 4, kFilingReserve);
    if (step(j).target != nullptr) {
      reserve = 2 * latencies_[j].p95(now);
      if (reserve.count() == 0) reserve = left / 2;  // nothing is known
    }
    if (need + reserve <= left) return std::min(limit, cutoff - reserve);
  }
  // Nobody later has the time, but for the answer that is known.
  return somebody ? std::min(limit, cutoff) : limit;
}

std::vector<FallbackChain::Count> FallbackChain::counts() const {
  std::vector<Count> counts;
  for (std::size_t i = 0; i < counts_.size(); ++i) {
    const uint64_t requests = counts_[i].load(std::memory_order_relaxed);
    if (requests == 0) continue;
    const std::size_t end = i % (steps() + 2);
    counts.push_back({static_cast<Trigger>(i / (steps() + 2)),
                      end == ended_doubtful() ? "doubtful"
                      : end == ended_failed() ? "none"
                                              : *names_[end],
                      requests});
  }
  return counts;
}

}  // namespace headrace
