#include "transport/output_queue.h"

#include <doctest/doctest.h>

#include <array>
#include <random>
#include <string>

#include "wire_client.h"

using namespace headrace;
using namespace headrace::test;

TEST_CASE("what goes in comes out, copied or by reference, in any sizes and with partial writes") {
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) {
    OutputQueue queue;
    std::string expected;
    std::string got;
    for (int step = 0; step < 60; ++step) {
      const std::size_t size = random() % 8 == 0 ? random() % 40000 : random() % 300;
      const std::string text = pattern(size, random());
      if (random() % 3 != 0) {
        queue.append_copy(bytes_of(text));
      } else {
        BodyPiece piece = piece_of(text);
        queue.append_view(std::move(piece.owner), piece.bytes);
      }
      expected += text;
      while (!queue.empty() && random() % 2 == 0) {
        std::array<struct iovec, 4> vectors;
        const int n = queue.front(vectors.data(), 1 + static_cast<int>(random() % 4));
        REQUIRE(n > 0);
        const std::size_t part = random() % (vectors[0].iov_len + 1);
        got.append(static_cast<const char*>(vectors[0].iov_base), part);
        queue.pop(part);
      }
      REQUIRE(queue.size() == expected.size() - got.size());
    }
    got += take_all(queue, 1 + random() % 20000);
    REQUIRE(got == expected);
    REQUIRE(queue.size() == 0);
    queue.release_idle();
  }
}

TEST_CASE("small copies share one segment; empty ones make none") {
  OutputQueue queue;
  queue.append_copy({});
  queue.append_view(buffer_of("x"), {});
  CHECK(queue.empty());
  for (int i = 0; i < 1000; ++i) queue.append_copy(bytes_of("0123456789"));
  std::array<struct iovec, 8> vectors;
  CHECK(queue.front(vectors.data(), 8) == 1);
  CHECK(vectors[0].iov_len == 10000);
}

TEST_CASE("a view keeps its bytes alive until they left, and no longer") {
  OutputQueue queue;
  BufferRef owner = buffer_of("hello");
  queue.append_view(owner, owner.span());
  CHECK_FALSE(owner.unique());
  queue.pop(4);
  CHECK_FALSE(owner.unique());
  queue.pop(1);
  CHECK(owner.unique());
}

TEST_CASE("a chunk is written again only once nothing points into it") {
  OutputQueue queue;
  queue.append_copy(bytes_of("first"));
  queue.pop(5);
  queue.append_copy(bytes_of("second"));
  queue.pop(3);
  queue.append_copy(bytes_of("third"));  // the queue is not empty: behind what is left
  CHECK(take_all(queue) == "ondthird");
}
