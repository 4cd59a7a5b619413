#include "transport/session_memory.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <set>
#include <vector>

using namespace headrace;

namespace {

struct Blocks {
  explicit Blocks(SessionPages& pages) : memory(pages), mem(memory.allocator()) {}
  ~Blocks() {
    for (void* block : all) mem->free(block, mem->mem_user_data);
  }
  std::byte* malloc(std::size_t size) {
    void* block = mem->malloc(size, mem->mem_user_data);
    REQUIRE(block != nullptr);
    std::memset(block, 0xab, size);
    all.insert(block);
    return static_cast<std::byte*>(block);
  }
  std::byte* calloc(std::size_t count, std::size_t size) {
    void* block = mem->calloc(count, size, mem->mem_user_data);
    REQUIRE(block != nullptr);
    const auto* bytes = static_cast<std::byte*>(block);
    CHECK(std::all_of(bytes, bytes + count * size, [](std::byte b) { return b == std::byte{0}; }));
    std::memset(block, 0xcd, count * size);
    all.insert(block);
    return static_cast<std::byte*>(block);
  }
  std::byte* realloc(std::byte* block, std::size_t size) {
    void* other = mem->realloc(block, size, mem->mem_user_data);
    REQUIRE(other != nullptr);
    all.erase(block);
    all.insert(other);
    return static_cast<std::byte*>(other);
  }
  void free(std::byte* block) {
    mem->free(block, mem->mem_user_data);
    all.erase(block);
  }
  SessionMemory memory;
  nghttp2_mem* mem;
  std::set<void*> all;
};

bool all_are(const std::byte* block, std::size_t size, int value) {
  return std::all_of(block, block + size, [&](std::byte b) { return b == std::byte(value); });
}

}  // namespace

TEST_CASE("blocks of a session: apart from each other, zeroed where asked, whatever is asked for") {
  SessionPages pages;
  for (int round = 0; round < 3; ++round) {
    std::vector<std::unique_ptr<Blocks>> sessions;
    for (int i = 0; i < 100; ++i) {
      sessions.push_back(std::make_unique<Blocks>(pages));
      Blocks& blocks = *sessions.back();
      // As nghttp2 does, and more of each than there are places.
      std::byte* frame = blocks.realloc(nullptr, 16'394);
      std::memset(frame, 0xab, 16'394);
      std::byte* table = blocks.malloc(1024);
      std::byte* other = blocks.malloc(1024);
      std::byte* streams = blocks.calloc(256, 16);
      std::byte* more = blocks.malloc(1024);
      blocks.malloc(16'394);
      blocks.calloc(256, 16);
      blocks.calloc(1, 2928);
      blocks.malloc(1);
      CHECK(all_are(frame, 16'394, 0xab));
      CHECK(all_are(table, 1024, 0xab));
      CHECK(all_are(other, 1024, 0xab));
      CHECK(all_are(more, 1024, 0xab));
      CHECK(all_are(streams, 4096, 0xcd));
      // Used before: zeroed again.
      blocks.free(streams);
      CHECK(blocks.calloc(256, 16) == streams);
      table = blocks.realloc(table, 4000);
      CHECK(all_are(table, 1024, 0xab));
      table = blocks.realloc(table, 100);
      CHECK(all_are(table, 100, 0xab));
      blocks.memory.release_idle();
      CHECK(all_are(frame, 16 * 1024, 0));
      CHECK(all_are(frame + 16 * 1024, 10, 0xab));
      CHECK(all_are(other, 1024, 0xab));
    }
  }
}
