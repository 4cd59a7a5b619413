// UntrustedShare: how much of an I/O thread's time goes to connections that are not trusted
// (ConnectionGuard): accepting, reading and ending them. While trusted ones have calls it is a part of
// it: on a machine that is not idle, the rest of what a flood costs is paid by those calls. While there
// is nobody to protect, it is all of it. Pure logic over times that are passed in.
//
// Threads: belongs to its loop's thread.
//
//   if (share.may_work(now)) { began = Clock::now(); ...; share.spent(Clock::now() - began); }
//   else wake_me_at(share.ready_at());
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/clock.h"

namespace headrace {

class UntrustedShare {
 public:
  // What untrusted work may take at once, before the turn of others comes.
  static constexpr Nanoseconds kSlice = Microseconds(150);
  // For how long a trusted connection that was heard is expected to be heard again.
  static constexpr Nanoseconds kProtected = std::chrono::seconds(1);

  // 1 to 100; 100: trusted connections are not put first.
  explicit UntrustedShare(uint32_t percent)
      : percent_(std::clamp<uint32_t>(percent, 1, 100)), credit_(kMostCredit) {}

  // A trusted connection has something to say.
  void protect(TimePoint now) {
    if (protected_until_ == TimePoint{}) filled_ = now, credit_ = kMostCredit;
    protected_until_ = now + kProtected;
  }

  bool may_work(TimePoint now) {
    if (percent_ == 100 || now >= protected_until_) {
      protected_until_ = {};
      return true;
    }
    const Nanoseconds fresh = std::max(now - filled_, Nanoseconds(0)) * percent_ / 100;
    credit_ = std::min(kMostCredit, credit_ + std::min(fresh, kMostCredit - kMostDebt));
    filled_ = std::max(now, filled_);
    return credit_ > Nanoseconds(0);
  }
  void spent(Nanoseconds time) { credit_ = std::max(kMostDebt, credit_ - time); }

  // After may_work() said no: when a slice's time will have come together.
  TimePoint ready_at() const {
    return std::min(protected_until_, filled_ + (kSlice - credit_) * 100 / percent_);
  }

 private:
  static constexpr Nanoseconds kMostCredit = 2 * kSlice;
  // A thread that lost its core in the middle of a slice has not spent that long.
  static constexpr Nanoseconds kMostDebt = -10 * kSlice;

  const uint32_t percent_;
  Nanoseconds credit_;
  TimePoint filled_;
  TimePoint protected_until_;
};

}  // namespace headrace
