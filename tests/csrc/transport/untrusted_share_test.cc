#include "transport/untrusted_share.h"

#include <doctest/doctest.h>

using namespace headrace;
using namespace std::chrono_literals;

namespace {

// How much of `time` was worked in pieces of `piece`, with a trusted connection heard all the while.
Nanoseconds worked(UntrustedShare& share, Nanoseconds time, Nanoseconds piece) {
  TimePoint now{1h};
  const TimePoint end = now + time;
  Nanoseconds sum{0};
  while (now < end) {
    share.protect(now);
    if (share.may_work(now)) {
      now += piece;
      sum += piece;
      share.spent(piece);
    } else {
      REQUIRE(share.ready_at() > now);
      now = share.ready_at();
    }
  }
  return sum;
}

}  // namespace

TEST_CASE("while somebody is to be protected, untrusted work has its share, however it is cut") {
  for (const uint32_t percent : {1U, 25U, 50U, 99U}) {
    for (const Nanoseconds piece : {Nanoseconds(20us), Nanoseconds(150us), Nanoseconds(1ms)}) {
      CAPTURE(percent);
      UntrustedShare share(percent);
      const double part = static_cast<double>(worked(share, 10s, piece).count()) / 10e9;
      CHECK(part == doctest::Approx(percent / 100.0).epsilon(0.03));
    }
  }
  UntrustedShare all(100);
  CHECK(worked(all, 1s, 100us) == 1s);
}

TEST_CASE("with nobody to protect, it has all of the time; protection ends by itself") {
  UntrustedShare share(25);
  TimePoint now{1h};
  for (int i = 0; i < 1000; ++i) {
    REQUIRE(share.may_work(now));
    share.spent(1ms);
    now += 1ms;
  }
  // What was spent before does not count.
  share.protect(now);
  CHECK(share.may_work(now));
  share.spent(10ms);
  CHECK_FALSE(share.may_work(now));
  CHECK(share.ready_at() <= now + UntrustedShare::kProtected);
  CHECK_FALSE(share.may_work(now + 1us));
  CHECK(share.may_work(now + UntrustedShare::kProtected));
}

TEST_CASE("a slice that took very long is not paid for in full") {
  UntrustedShare share(25);
  const TimePoint now{1h};
  share.protect(now);
  REQUIRE(share.may_work(now));
  share.spent(10s);
  CHECK_FALSE(share.may_work(now));
  CHECK(share.ready_at() - now < 10ms);
}
