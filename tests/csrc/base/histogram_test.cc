#include "base/histogram.h"

#include <doctest/doctest.h>

#include <random>

using namespace headrace;

TEST_CASE("every value lies in its bucket's bounds, which are at most 25 % apart") {
  std::mt19937_64 random(1);
  std::uniform_int_distribution<int> bits(0, 41);
  for (int i = 0; i < 20000; ++i) {
    const uint64_t value = random() & ((uint64_t{1} << bits(random)) - 1);
    if (value >= Histogram::upper_bound(Histogram::kBuckets - 1)) continue;
    const std::size_t bucket = Histogram::bucket_of(value);
    CHECK(value < Histogram::upper_bound(bucket));
    if (bucket > 0) CHECK(value >= Histogram::upper_bound(bucket - 1));
    if (value >= 4) {
      CHECK(static_cast<double>(Histogram::upper_bound(bucket)) <=
            1.25 * static_cast<double>(value) + 1);
    }
  }
}

TEST_CASE("bounds ascend, and what is too long falls into the last bucket") {
  for (std::size_t i = 1; i < Histogram::kBuckets; ++i) {
    CHECK(Histogram::upper_bound(i) > Histogram::upper_bound(i - 1));
  }
  CHECK(Histogram::bucket_of(UINT64_MAX) == Histogram::kBuckets - 1);
}

TEST_CASE("a histogram counts and sums; n equal values at once are n values") {
  Histogram one_by_one;
  Histogram at_once;
  for (int i = 0; i < 5; ++i) one_by_one.record(1000);
  at_once.record(1000, 5);
  at_once.record(7, 0);
  CHECK(one_by_one.read().count == 5);
  CHECK(one_by_one.read().sum_ns == 5000);
  CHECK(at_once.read().buckets == one_by_one.read().buckets);
  CHECK(at_once.read().sum_ns == 5000);
}
