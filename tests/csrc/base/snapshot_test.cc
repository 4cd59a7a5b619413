#include "base/snapshot.h"

#include <doctest/doctest.h>

#include <atomic>
#include <thread>
#include <vector>

using namespace headrace;

TEST_CASE("a reader sees the value published last, and keeps the old one until it looks again") {
  Snapshot<int> snapshot(std::make_shared<const int>(1));
  SnapshotReader<int> reader(snapshot);
  const int& first = reader.get();
  CHECK(first == 1);
  snapshot.publish(std::make_shared<const int>(2));
  CHECK(first == 1);
  CHECK(reader.get() == 2);
  CHECK(*snapshot.load() == 2);
}

TEST_CASE("a value goes when its last reader left it") {
  auto value = std::make_shared<const int>(1);
  const std::weak_ptr<const int> watch = value;
  Snapshot<int> snapshot(std::move(value));
  SnapshotReader<int> reader(snapshot);
  reader.get();
  snapshot.publish(std::make_shared<const int>(2));
  CHECK_FALSE(watch.expired());
  reader.get();
  CHECK(watch.expired());
}

TEST_CASE("readers on other threads see only whole values, in the order published") {
  struct Pair {
    int a = 0;
    int b = 0;
  };
  Snapshot<Pair> snapshot;
  std::atomic<bool> torn{false};
  std::vector<std::thread> readers;
  for (int t = 0; t < 3; ++t) {
    readers.emplace_back([&] {
      SnapshotReader<Pair> reader(snapshot);
      for (int last = 0; last < 2000;) {
        const Pair& pair = reader.get();
        if (pair.a != pair.b || pair.a < last) torn = true;
        last = pair.a;
      }
    });
  }
  for (int i = 1; i <= 2000; ++i) snapshot.publish(std::make_shared<const Pair>(Pair{i, i}));
  for (std::thread& reader : readers) reader.join();
  CHECK_FALSE(torn);
}
