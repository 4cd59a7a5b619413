#include "base/fifo.h"

#include <doctest/doctest.h>

#include <deque>
#include <memory>
#include <random>
#include <set>
#include <string>

using namespace headrace;

TEST_CASE("a Fifo behaves as a deque does, whatever the order of operations") {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    Fifo<std::string> fifo;
    std::deque<std::string> model;
    const unsigned push_weight =
        1 + random() % 9;  // of ten: queues that grow and queues that empty
    for (int step = 0; step < 300; ++step) {
      if (random() % 10 < push_weight) {
        const std::string item = std::to_string(random());
        fifo.push(item);
        model.push_back(item);
      } else if (!model.empty()) {
        fifo.pop();
        model.pop_front();
      } else if (random() % 20 == 0) {
        fifo.clear();
      }
      REQUIRE(fifo.size() == model.size());
      REQUIRE(fifo.empty() == model.empty());
      if (!model.empty()) {
        REQUIRE(fifo.front() == model.front());
        REQUIRE(fifo.back() == model.back());
      }
      REQUIRE(std::equal(fifo.begin(), fifo.end(), model.begin(), model.end()));
    }
  }
}

TEST_CASE("a popped item is released at once, not when its memory is used again") {
  Fifo<std::shared_ptr<int>> fifo;
  const auto first = std::make_shared<int>(1);
  const auto second = std::make_shared<int>(2);
  fifo.push(first);
  fifo.push(second);
  fifo.pop();
  CHECK(first.use_count() == 1);
  CHECK(second.use_count() == 2);
  fifo.clear();
  CHECK(second.use_count() == 1);
}

TEST_CASE("a queue that is never empty does not grow without bound") {
  Fifo<std::unique_ptr<int>> fifo;  // move-only items work
  std::set<const void*> places;
  for (int i = 0; i < 4; ++i) fifo.push(std::make_unique<int>(i));
  for (int i = 4; i < 100000; ++i) {
    fifo.push(std::make_unique<int>(i));
    places.insert(&fifo.back());
    REQUIRE(*fifo.front() == i - 4);
    fifo.pop();
  }
  CHECK(fifo.size() == 4);
  CHECK(places.size() <= 64);  // the same few slots over and over
}
