#include "routing/circuit_breaker.h"

#include <algorithm>

namespace headrace {
namespace {

constexpr uint64_t kMost = (uint64_t{1} << 20) - 1;

constexpr uint64_t packed(uint32_t epoch, uint64_t requests, uint64_t failures) {
  return uint64_t{epoch} << 40 | requests << 20 | failures;
}
constexpr uint32_t epoch_in(uint64_t slot) { return static_cast<uint32_t>(slot >> 40); }
constexpr uint64_t requests_in(uint64_t slot) { return slot >> 20 & kMost; }
constexpr uint64_t failures_in(uint64_t slot) { return slot & kMost; }
constexpr uint32_t kEpochs = uint32_t{1} << 24;

}  // namespace

CircuitBreaker::Pass CircuitBreaker::pass(TimePoint now) {
  if (state() == State::kClosed) return Pass::kNormal;
  const std::lock_guard lock(mutex_);
  if (state() == State::kClosed) return Pass::kNormal;
  if (now >= until_) {
    // The time is over; or so are the probes, which nobody answered.
    if (state() == State::kOpen) change(State::kHalfOpen);
    probing_ = 0;
    until_ = saturating_add(now, time_open_);
  }
  if (state() == State::kOpen || probing_ >= options_.probes) {
    refused_.fetch_add(1, std::memory_order_relaxed);
    return Pass::kRefused;
  }
  ++probing_;
  return Pass::kProbe;
}

void CircuitBreaker::record(Pass pass, Outcome outcome, TimePoint now) {
  if (pass == Pass::kRefused) return;
  if (pass == Pass::kNormal) {
    if (outcome == Outcome::kNeither || state() != State::kClosed) return;
    const bool failed = outcome == Outcome::kFailure;
    count(failed, now);
    if (!failed) {
      // Read first: the line stays shared while all is well.
      if (in_a_row_.load(std::memory_order_relaxed) != 0) {
        in_a_row_.store(0, std::memory_order_relaxed);
      }
      return;
    }
    const uint32_t row = in_a_row_.fetch_add(1, std::memory_order_relaxed) + 1;
    const Counts seen = counts(now);
    const bool many = seen.requests >= options_.min_requests &&
                      static_cast<double>(seen.failures) >=
                          options_.failure_rate * static_cast<double>(seen.requests);
    if (!many && (options_.consecutive == 0 || row < options_.consecutive)) return;
    const std::lock_guard lock(mutex_);
    if (state() == State::kClosed) open(now, options_.open_for);
    return;
  }
  const std::lock_guard lock(mutex_);
  if (probing_ > 0) --probing_;
  if (state() != State::kHalfOpen || outcome == Outcome::kNeither) return;
  if (outcome == Outcome::kFailure) {
    open(now, std::min(2 * time_open_, options_.open_for_max));
  } else if (++succeeded_ >= options_.probes) {
    for (std::atomic<uint64_t>& slot : slots_) slot.store(0, std::memory_order_relaxed);
    in_a_row_.store(0, std::memory_order_relaxed);
    change(State::kClosed);
  }
}

void CircuitBreaker::open(TimePoint now, Nanoseconds time) {
  time_open_ = time;
  until_ = saturating_add(now, time);
  change(State::kOpen);
}

void CircuitBreaker::change(State state) {
  probing_ = succeeded_ = 0;
  state_.store(static_cast<uint8_t>(state), std::memory_order_release);
  changes_[static_cast<std::size_t>(state)].fetch_add(1, std::memory_order_relaxed);
}

uint32_t CircuitBreaker::epoch_of(TimePoint now) const {
  const Nanoseconds slot = std::max<Nanoseconds>(options_.window / kSlots, Nanoseconds(1));
  // From 1 on: 0 is an empty slot's.
  return static_cast<uint32_t>(now.time_since_epoch() / slot % (kEpochs - 1)) + 1;
}

void CircuitBreaker::count(bool failed, TimePoint now) {
  const uint32_t epoch = epoch_of(now);
  std::atomic<uint64_t>& slot = slots_[epoch % kSlots];
  uint64_t seen = slot.load(std::memory_order_relaxed);
  uint64_t wanted = 0;
  do {
    const uint64_t base = epoch_in(seen) == epoch ? seen : packed(epoch, 0, 0);
    if (requests_in(base) == kMost) return;  // a million in a second says enough
    wanted = packed(epoch, requests_in(base) + 1, failures_in(base) + (failed ? 1 : 0));
  } while (!slot.compare_exchange_weak(seen, wanted, std::memory_order_relaxed));
}

CircuitBreaker::Counts CircuitBreaker::counts(TimePoint now) const {
  const uint32_t epoch = epoch_of(now);
  Counts sum;
  for (const std::atomic<uint64_t>& each : slots_) {
    const uint64_t slot = each.load(std::memory_order_relaxed);
    const uint32_t age = epoch - epoch_in(slot);  // a wrap costs one window every few months
    if (epoch_in(slot) == 0 || age >= kSlots) continue;
    sum.requests += requests_in(slot);
    sum.failures += failures_in(slot);
  }
  return sum;
}

std::array<uint64_t, 3> CircuitBreaker::changes() const {
  std::array<uint64_t, 3> changes{};
  for (std::size_t i = 0; i < changes.size(); ++i) {
    changes[i] = changes_[i].load(std::memory_order_relaxed);
  }
  return changes;
}

}  // namespace headrace
