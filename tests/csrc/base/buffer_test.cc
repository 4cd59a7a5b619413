#include "base/buffer.h"

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

using namespace headrace;

TEST_CASE("an empty BufferRef holds nothing") {
  const BufferRef none;
  CHECK_FALSE(none);
  CHECK(none.size() == 0);
  CHECK(none.data() == nullptr);
  CHECK(none.view().empty());
  CHECK_FALSE(none.unique());
}

TEST_CASE("a buffer is aligned to 64 bytes and has the size asked for, also 0") {
  for (const std::size_t size : {0, 1, 63, 64, 65, 100000}) {
    BufferRef buffer = BufferRef::allocate(size);
    CHECK(buffer);
    CHECK(buffer.size() == size);
    CHECK(reinterpret_cast<uintptr_t>(buffer.data()) % 64 == 0);
    std::memset(buffer.data(), 7, size);
  }
}

TEST_CASE("copies share the bytes, and the last one frees them") {
  BufferRef first = BufferRef::allocate(4);
  std::memcpy(first.data(), "abcd", 4);
  CHECK(first.unique());
  BufferRef second = first;
  CHECK_FALSE(first.unique());
  CHECK(second.data() == first.data());
  first.reset();
  CHECK_FALSE(first);
  CHECK(second.unique());
  CHECK(second.view() == "abcd");
  BufferRef third = std::move(second);
  CHECK(third.unique());
  BufferRef& same = third;
  third = same;  // assigned to itself, it is kept
  CHECK(third.view() == "abcd");
}

TEST_CASE("owners on several threads come and go") {
  BufferRef shared = BufferRef::allocate(8);
  std::memset(shared.data(), 1, 8);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([copy = shared] {
      for (int i = 0; i < 1000; ++i) {
        const BufferRef another = copy;
        if (another.size() != 8) std::abort();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_FALSE(threads.empty());
  threads.clear();
  CHECK(shared.unique());
}
