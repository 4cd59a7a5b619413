#include "batching/admission.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>

namespace headrace {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;

// The correction follows the last twenty lessons or so; one of them says at most this.
constexpr double kGain = 0.05;
constexpr double kMostLesson = 4;
constexpr double kLeastCorrection = 0.7;
constexpr double kMostCorrection = 3;
// Requests of one batch say the same, and must not say it fifty times.
constexpr Nanoseconds kBetweenLessons = Milliseconds(2);
// Shorter waits are as the machine's scheduler likes.
constexpr Nanoseconds kShortWait = Milliseconds(1);

constexpr Nanoseconds kMostPushback = std::chrono::seconds(10);

// A low priority level has at least this part of the instances' time in an estimate.
constexpr double kLeastShare = 0.05;

Nanoseconds scaled(Nanoseconds time, double factor) {
  return Nanoseconds(static_cast<Nanoseconds::rep>(static_cast<double>(time.count()) * factor));
}

std::string milliseconds(Nanoseconds time) {
  const double ms = static_cast<double>(time.count()) / 1e6;
  std::string text = std::to_string(std::llround(ms * 10));
  if (text.size() == 1) text.insert(0, 1, '0');
  text.insert(text.size() - 1, 1, '.');
  return text + " ms";
}

}  // namespace

Admission::Admission(AdmissionPolicy policy, std::size_t instances, int64_t rows)
    : policy_(policy),
      concurrency_(
          policy.adaptive_concurrency
              ? std::make_unique<ConcurrencyLimit>(
                    2 * instances,
                    std::max<std::size_t>(
                        32, 2 * instances * static_cast<std::size_t>(std::max<int64_t>(rows, 1))))
              : nullptr) {}

Status Admission::decide_in_flight(std::size_t in_flight) {
  if (concurrency_ == nullptr || !concurrency_->full(in_flight)) return {};
  refused_[static_cast<std::size_t>(Refusal::kConcurrency)].fetch_add(1, kRelaxed);
  return Status::resource_exhausted("the model is overloaded: " + std::to_string(in_flight) +
                                    " requests are in flight, which its latency allows")
      .with_pushback(pushback(ConcurrencyLimit::kWindow));
}

std::optional<Estimate> estimate(const BatchPolicy& policy, const CostModel& cost, const Load& load,
                                 int64_t rows) {
  if (!cost.learned()) return std::nullopt;
  rows = std::max<int64_t>(rows, 1);
  // Without batching a request is a batch, however many rows it has: rows_ahead are requests.
  const bool batching = policy.max_rows > 1;
  const int64_t most = batching ? batch_limit(policy, &cost) : 1;
  const Nanoseconds full = cost.mean(batching ? most : cost.typical_rows());
  const int64_t ahead = batching ? (load.rows_ahead + rows - 1) / most : load.rows_ahead;
  const auto instances = static_cast<double>(load.instances);
  const double batches = static_cast<double>(ahead) / instances;

  Estimate result;
  result.wait = load.free_in + scaled(full, batches);
  if (load.overtaking_per_s > 0) {
    const double row_s = std::chrono::duration<double>(full).count() / static_cast<double>(most);
    const double share = 1 - load.overtaking_per_s * row_s / instances;
    result.wait = scaled(result.wait, 1 / std::max(share, kLeastShare));
  }
  int64_t own = rows;
  if (batching) {
    const double joining = load.rows_per_s * std::chrono::duration<double>(result.wait).count();
    const double together = static_cast<double>(load.rows_ahead % most + rows) + joining;
    own = together < static_cast<double>(most) ? static_cast<int64_t>(together) : most;
    own = std::max(own, rows);
  }
  result.execution = cost.mean(own);
  const double summed = 1 + batches + (load.free_in > Nanoseconds{0} ? 1 : 0);
  result.margin = scaled(cost.p95(own) - result.execution, std::sqrt(summed));
  return result;
}

Status Admission::decide(const BatchPolicy& batch, const CostModel& cost, const Load& load,
                         TimePoint deadline, TimePoint arrived, int64_t rows, TimePoint now,
                         TimePoint& expected) {
  const std::optional<Estimate> raw = estimate(batch, cost, load, rows);
  if (!raw) return {};
  expected = now + raw->wait;
  if (load.idle && load.rows_ahead == 0) return {};
  const Nanoseconds takes = scaled(raw->wait, correction()) + raw->execution + raw->margin;

  if (!policy_.by_deadline) deadline = kNever;
  Refusal reason = Refusal::kDeadline;
  if (batch.latency_budget > Nanoseconds{0} && policy_.by_budget) {
    const TimePoint due = saturating_add(arrived, batch.latency_budget);
    if (due < deadline) {
      deadline = due;
      reason = Refusal::kSlo;
    }
  }
  if (deadline != kNever) {
    if (saturating_add(now, takes) <= deadline) return {};
    return refuse(reason, takes, std::max(deadline - now, Nanoseconds{0}));
  }
  if (policy_.queue_target == Nanoseconds{0}) return {};
  const Nanoseconds limit = queue_limit(*raw, load.instances, now);
  if (raw->wait <= limit) return {};
  return refuse(Refusal::kQueue, raw->wait, limit);
}

Nanoseconds Admission::queue_limit(const Estimate& estimate, std::size_t instances, TimePoint now) {
  const Nanoseconds wait = estimate.wait;
  const TimePoint::rep began = interval_began_.load(kRelaxed);
  const Nanoseconds age = now.time_since_epoch() - Nanoseconds(began);
  if (wait <= policy_.queue_target) {
    standing_.store(false, kRelaxed);
    least_wait_.store(wait.count(), kRelaxed);
  } else if (age >= policy_.queue_interval) {
    // Nobody asked for an interval and more: then it is not known that the queue stands.
    const bool known = age < 2 * policy_.queue_interval;
    standing_.store(known && least_wait_.load(kRelaxed) > policy_.queue_target.count(), kRelaxed);
  } else if (wait.count() < least_wait_.load(kRelaxed)) {
    least_wait_.store(wait.count(), kRelaxed);
  }
  if (age >= policy_.queue_interval) {
    interval_began_.store(now.time_since_epoch().count(), kRelaxed);
    least_wait_.store(wait.count(), kRelaxed);
  }
  // Below the batch that runs and the next one, instances would run dry.
  const auto more = static_cast<Nanoseconds::rep>(instances);
  const Nanoseconds two = estimate.execution + estimate.execution / more;
  return std::max(standing_.load(kRelaxed) ? policy_.queue_target : policy_.queue_interval, two);
}

void Admission::learn(TimePoint admitted, TimePoint expected, TimePoint now) {
  if (expected - admitted < kShortWait) return;
  const TimePoint::rep last = learned_at_.load(kRelaxed);
  if (now.time_since_epoch() - Nanoseconds(last) < kBetweenLessons) return;
  learned_at_.store(now.time_since_epoch().count(), kRelaxed);
  const double correction = correction_.load(kRelaxed);
  const auto took = static_cast<double>((now - admitted).count());
  const auto estimated = static_cast<double>((expected - admitted).count());
  const double lesson = std::clamp(took / estimated, 0.0, kMostLesson);
  const double next = correction + (lesson - correction) * kGain;
  correction_.store(std::clamp(next, kLeastCorrection, kMostCorrection), kRelaxed);
}

Milliseconds Admission::pushback(Nanoseconds late) {
  uint64_t sum = 0;
  for (const auto& count : refused_) sum += count.load(kRelaxed);
  // Multiples of the golden ratio, modulo 1, lie evenly between 0 and 1.
  const double spread = std::fmod(static_cast<double>(sum % 1000000) * 0.6180339887498949, 1.0);
  const Nanoseconds after = scaled(std::min(late, kMostPushback), 0.5 + spread);
  return std::max(std::chrono::duration_cast<Milliseconds>(after), Milliseconds(1));
}

Status Admission::refuse(Refusal reason, Nanoseconds takes, Nanoseconds limit) {
  refused_[static_cast<std::size_t>(reason)].fetch_add(1, kRelaxed);
  std::string text = "the model is overloaded: this request would ";
  text += reason == Refusal::kQueue ? "wait " : "take ";
  text += milliseconds(takes);
  text += reason == Refusal::kDeadline ? ", its deadline is in "
          : reason == Refusal::kSlo    ? ", of its latency budget there are "
                                       : ", the limit is ";
  text += milliseconds(limit);
  return Status::resource_exhausted(std::move(text)).with_pushback(pushback(takes - limit));
}

}  // namespace headrace
