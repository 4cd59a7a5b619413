#include "batching/cost_model.h"

#include <doctest/doctest.h>

#include <random>
#include <thread>
#include <vector>

using namespace headrace;
using namespace std::chrono_literals;

namespace {

double ms(Nanoseconds time) { return std::chrono::duration<double, std::milli>(time).count(); }

// Batches that take 2 ms + 0.5 ms a row.
Nanoseconds cost_of(int64_t rows) { return 2ms + rows * 500us; }

}  // namespace

TEST_CASE("nothing is known before the first batches") {
  CostModel cost;
  CHECK_FALSE(cost.learned());
  CHECK(cost.mean(4) == 0ns);
  for (uint64_t i = 0; i < CostModel::kLearned; ++i) {
    CHECK_FALSE(cost.learned());
    cost.record(4, 4ms);
  }
  CHECK(cost.learned());
  CHECK(cost.batches() == CostModel::kLearned);
  CHECK(cost.typical_rows() == 4);
}

TEST_CASE("of one size: itself; larger ones in proportion, smaller ones no cheaper") {
  CostModel cost;
  for (int i = 0; i < 50; ++i) cost.record(4, 4ms);
  CHECK(ms(cost.mean(4)) == doctest::Approx(4));
  CHECK(ms(cost.mean(8)) == doctest::Approx(8));
  CHECK(ms(cost.mean(1)) == doctest::Approx(4));
  CHECK(cost.fixed() == 0ns);
}

TEST_CASE("sizes never seen lie on the line through the others") {
  CostModel cost;
  for (int i = 0; i < 100; ++i) {
    const int64_t rows = 1 + i % 12;
    cost.record(rows, cost_of(rows));
  }
  for (const int64_t rows : {1, 7, 12, 24, 64}) {
    CAPTURE(rows);
    CHECK(ms(cost.mean(rows)) == doctest::Approx(ms(cost_of(rows))).epsilon(0.02));
  }
  CHECK(ms(cost.fixed()) == doctest::Approx(2).epsilon(0.02));
  CHECK(ms(cost.per_row()) == doctest::Approx(0.5).epsilon(0.02));
}

TEST_CASE("a size that is not on the line is known by itself") {
  CostModel cost;
  for (int i = 0; i < 200; ++i) {
    const int64_t rows = 1 + i % 8;
    cost.record(rows, rows == 8 ? 3ms : cost_of(rows));  // a kernel made for 8
  }
  CHECK(ms(cost.mean(8)) == doctest::Approx(3));
  CHECK(ms(cost.mean(7)) == doctest::Approx(5.5));
}

TEST_CASE("a model that is slow at first, an outlier, and one that becomes slow for good") {
  CostModel cost;
  cost.record(1, 900ms);
  cost.record(1, 40ms);
  for (int i = 0; i < 30; ++i) cost.record(1, 2ms);
  CHECK(ms(cost.mean(1)) == doctest::Approx(2).epsilon(0.1));
  cost.record(1, 10s);
  CHECK(ms(cost.mean(1)) < 3);
  for (int i = 0; i < 60; ++i) cost.record(1, 40ms);
  CHECK(ms(cost.mean(1)) == doctest::Approx(40).epsilon(0.1));
  for (int i = 0; i < 60; ++i) cost.record(1, 2ms);
  CHECK(ms(cost.mean(1)) == doctest::Approx(2).epsilon(0.1));
}

TEST_CASE("the p95 lies above 95 % of the batches") {
  CostModel cost;
  std::mt19937 random(7);
  std::lognormal_distribution<double> noise(0, 0.3);
  uint64_t above = 0;
  constexpr int kBatches = 20000;
  for (int i = 0; i < kBatches; ++i) {
    const auto rows = static_cast<int64_t>(1 + random() % 8);
    const Nanoseconds took = std::chrono::duration_cast<Nanoseconds>(cost_of(rows) * noise(random));
    if (i >= 1000 && took > cost.p95(rows)) ++above;
    cost.record(rows, took);
  }
  CHECK(static_cast<double>(above) / (kBatches - 1000) == doctest::Approx(0.05).epsilon(0.4));
}

TEST_CASE("the largest batch within a budget") {
  CostModel cost;
  for (int i = 0; i < 200; ++i) {
    const int64_t rows = 1 + i % 16;
    cost.record(rows, cost_of(rows));
  }
  CHECK(cost.largest_within(6ms, 64) == 8);
  CHECK(cost.largest_within(6ms, 4) == 4);
  CHECK(cost.largest_within(1h, 64) == 64);
  // Not even one row fits: what costs about the same does no harm. 2.5 ms * 1.25 is 2 rows.
  CHECK(cost.largest_within(1us, 64) == 2);
  CHECK(cost.largest_within(1us, 1) == 1);
}

TEST_CASE("the batch that is as fast as the largest") {
  CostModel shares;  // 2 ms + 0.5 ms a row
  CostModel linear;
  for (int i = 0; i < 200; ++i) {
    const int64_t rows = 1 + i % 32;
    shares.record(rows, cost_of(rows));
    linear.record(rows, rows * 500us);
  }
  CHECK(linear.efficient(32) == 1);
  CHECK(shares.efficient(32) >= 24);  // a tenth fewer rows a second than 32 would do with 16
  CHECK(shares.efficient(1) == 1);
  CHECK(linear.fresh(32));
  for (int i = 0; i < 600; ++i) linear.record(1, 500us);
  CHECK_FALSE(linear.fresh(32));
}

TEST_CASE("any sizes and times, from many threads") {
  CostModel cost;
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      for (int i = 0; i < 5000; ++i) {
        const auto rows = static_cast<int64_t>(random() >> (random() % 64));
        cost.record(rows, Nanoseconds(static_cast<int64_t>(random() % 1000000000)));
        const auto asked = static_cast<int64_t>(1 + random() % 4096);
        CHECK(cost.mean(asked) >= 0ns);
        CHECK(cost.p95(asked) >= cost.mean(asked) / 2);
        const int64_t most = cost.largest_within(Nanoseconds(random() % 1000000), asked);
        CHECK((most >= 1 && most <= asked));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(cost.batches() > 0);
}
