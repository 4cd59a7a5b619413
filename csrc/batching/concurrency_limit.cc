#include "batching/concurrency_limit.h"

#include <algorithm>
#include <cmath>

namespace headrace {
namespace {

// What a window changes at most.
constexpr double kLeastGradient = 0.5;
constexpr double kMostGradient = 1.5;
// A wait as long as the execution is right.
constexpr double kAllowed = 2;

}  // namespace

ConcurrencyLimit::ConcurrencyLimit(std::size_t least, std::size_t start)
    : least_(std::clamp<std::size_t>(least, 1, kMost)),
      limit_(std::clamp(start, least_, kMost)),
      exact_(static_cast<double>(limit())) {
  slot_of_.fill(-1);
}

void ConcurrencyLimit::record(Nanoseconds answered, Nanoseconds executed, std::size_t in_flight,
                              TimePoint now) {
  const std::lock_guard lock(mutex_);
  if (answers_ == 0) began_ = now;
  ++answers_;
  answered_ns_ += static_cast<double>(answered.count());
  executed_ns_ += static_cast<double>(executed.count());
  in_flight_ = std::max(in_flight_, in_flight);
  const Nanoseconds age = now - began_;
  if (age >= kLongest || (age >= kWindow && answers_ >= kAnswers)) close_window(now);
}

void ConcurrencyLimit::close_window(TimePoint now) {
  const auto count = static_cast<double>(answers_);
  const double executed = std::max(executed_ns_ / count, 1.0);
  const double answered = std::max(answered_ns_ / count, 1.0);

  const int64_t slot = now.time_since_epoch() / (kMemory / static_cast<int64_t>(kSlots));
  const auto at = static_cast<std::size_t>(slot % static_cast<int64_t>(kSlots));
  quickest_[at] = slot_of_[at] == slot ? std::min(quickest_[at], executed) : executed;
  slot_of_[at] = slot;
  double quickest = executed;
  for (std::size_t i = 0; i < kSlots; ++i) {
    if (slot_of_[i] > slot - static_cast<int64_t>(kSlots)) {
      quickest = std::min(quickest, quickest_[i]);
    }
  }

  double next = exact_ * std::clamp(kAllowed * quickest / answered, kLeastGradient, kMostGradient);
  next += std::sqrt(next);
  // What is not used says nothing about more of it.
  if (2 * in_flight_ < limit()) next = std::min(next, exact_);
  exact_ = std::clamp(next, static_cast<double>(least_), static_cast<double>(kMost));
  limit_.store(static_cast<std::size_t>(exact_), std::memory_order_relaxed);

  answers_ = 0;
  answered_ns_ = executed_ns_ = 0;
  in_flight_ = 0;
}

}  // namespace headrace
