#include "base/quota.h"

#include <doctest/doctest.h>

#include <thread>
#include <vector>

using namespace headrace;
using namespace std::chrono_literals;

TEST_CASE("a bucket gives its burst at once, then its rate") {
  Quota bucket(100, 5);
  TimePoint now{1h};
  for (int i = 0; i < 5; ++i) CHECK_FALSE(bucket.take(now));
  CHECK(bucket.take(now) == 10ms);
  CHECK(bucket.take(now + 4ms) == 6ms);
  int taken = 0;
  for (int i = 0; i < 1000; ++i, now += 1ms) taken += bucket.take(now) ? 0 : 1;
  CHECK(taken == doctest::Approx(100).epsilon(0.02));
  now += 1h;
  for (int i = 0; i < 5; ++i) CHECK_FALSE(bucket.take(now));
  CHECK(bucket.take(now));
}

TEST_CASE("buckets of extreme rates") {
  Quota rare(1e-6, 1);
  const TimePoint now{1h};
  CHECK_FALSE(rare.take(now));
  CHECK(rare.take(now) > 100h);
  Quota fast(1e12, 1e9);
  for (int i = 0; i < 1000; ++i) CHECK_FALSE(fast.take(now));
}

TEST_CASE("threads share a bucket: together they get what it holds, no more") {
  Quota bucket(1, 1000);
  const TimePoint now{1h};
  std::atomic<int> taken{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        if (!bucket.take(now)) ++taken;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(taken == 1000);
}
