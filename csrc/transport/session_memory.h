// SessionMemory: where one nghttp2 session keeps the blocks that make most of its size: its frame buffer
// (16 KiB), its table of streams (4 KiB) and the two of HPACK (1 KiB each). Each session takes all of them
// when it is made, and an idle connection uses none: here they are pages of their own, which cost memory
// when they are written to and are given back. Everything else is malloc's. 10,000 idle connections are
// some 60 MB less with it.
//
// SessionPages: the pool of such pages. Threads: as the connections, one at a time.
//
//   SessionPages pages;                        // outlives them
//   SessionMemory memory(pages);
//   nghttp2_session_server_new3(&session, callbacks, user, option, memory.allocator());
//   ...
//   nghttp2_session_del(session);              // before `memory` ends
#pragma once

#include <nghttp2/nghttp2.h>

#include <cstddef>
#include <vector>

namespace headrace {

class SessionPages {
 public:
  // Of one session.
  static constexpr std::size_t kBytes = 24 * 1024;

  SessionPages() = default;
  ~SessionPages();
  SessionPages(const SessionPages&) = delete;
  SessionPages& operator=(const SessionPages&) = delete;

  // kBytes of zeros, aligned to a page; null when there is no memory.
  std::byte* take();
  void give(std::byte* pages);

 private:
  static constexpr std::size_t kPerSlab = 64;

  std::vector<std::byte*> slabs_;
  std::vector<std::byte*> free_;
};

class SessionMemory {
 public:
  explicit SessionMemory(SessionPages& pages);
  ~SessionMemory();
  SessionMemory(const SessionMemory&) = delete;
  SessionMemory& operator=(const SessionMemory&) = delete;

  nghttp2_mem* allocator() { return &allocator_; }
  // Gives the frame buffer's memory back until the next frame. Only when the session has nothing to send:
  // nghttp2_session_mem_send() answered 0, and no stream is open.
  void release_idle();

 private:
  // The places, of blocks that are asked for by size.
  struct Place {
    std::size_t at;
    std::size_t least;
    std::size_t most;
  };
  static constexpr std::size_t kPlaces = 4;
  static constexpr Place kLayout[kPlaces] = {
      {0, 16 * 1024, 16 * 1024 + 64},   // frame buffer
      {16 * 1024 + 64, 1024, 1024},     // HPACK, of what is sent
      {17 * 1024 + 64, 1024, 1024},     // and received
      {20 * 1024, 4 * 1024, 4 * 1024},  // streams
  };

  static void* allocate(std::size_t size, void* self);
  static void* allocate_zeroed(std::size_t count, std::size_t size, void* self);
  static void* reallocate(void* block, std::size_t size, void* self);
  static void release(void* block, void* self);

  void* place(std::size_t size);
  bool owns(const void* block) const;
  // Which place a block of ours is at.
  std::size_t place_of(const void* block) const;

  SessionPages& pages_;
  std::byte* const memory_;  // null: all is malloc's
  bool taken_[kPlaces] = {};
  bool used_[kPlaces] = {};  // and given back
  std::size_t size_[kPlaces] = {};
  nghttp2_mem allocator_;
};

}  // namespace headrace
