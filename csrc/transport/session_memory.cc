#include "transport/session_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace headrace {

SessionPages::~SessionPages() {
  for (std::byte* slab : slabs_) ::munmap(slab, kPerSlab * kBytes);
}

std::byte* SessionPages::take() {
  if (free_.empty()) {
    void* slab = ::mmap(nullptr, kPerSlab * kBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (slab == MAP_FAILED) return nullptr;
    // A huge page would be resident as a whole.
    ::madvise(slab, kPerSlab * kBytes, MADV_NOHUGEPAGE);
    slabs_.push_back(static_cast<std::byte*>(slab));
    free_.reserve(slabs_.size() * kPerSlab);
    for (std::size_t i = kPerSlab; i-- > 0;) free_.push_back(slabs_.back() + i * kBytes);
  }
  std::byte* pages = free_.back();
  free_.pop_back();
  return pages;
}

void SessionPages::give(std::byte* pages) {
  ::madvise(pages, kBytes, MADV_DONTNEED);
  free_.push_back(pages);
}

SessionMemory::SessionMemory(SessionPages& pages)
    : pages_(pages),
      memory_(pages.take()),
      allocator_{this, allocate, release, allocate_zeroed, reallocate} {}

SessionMemory::~SessionMemory() {
  if (memory_ != nullptr) pages_.give(memory_);
}

void SessionMemory::release_idle() {
  // But for its last bytes, which share their page.
  if (taken_[0]) ::madvise(memory_, 16 * 1024, MADV_DONTNEED);
}

void* SessionMemory::place(std::size_t size) {
  if (memory_ == nullptr) return nullptr;
  for (std::size_t i = 0; i < kPlaces; ++i) {
    if (taken_[i] || size < kLayout[i].least || size > kLayout[i].most) continue;
    taken_[i] = true;
    size_[i] = size;
    return memory_ + kLayout[i].at;
  }
  return nullptr;
}

bool SessionMemory::owns(const void* block) const {
  const auto* at = static_cast<const std::byte*>(block);
  return memory_ != nullptr && at >= memory_ && at < memory_ + SessionPages::kBytes;
}

std::size_t SessionMemory::place_of(const void* block) const {
  const auto at = static_cast<std::size_t>(static_cast<const std::byte*>(block) - memory_);
  std::size_t i = 0;
  while (kLayout[i].at != at) ++i;
  return i;
}

void* SessionMemory::allocate(std::size_t size, void* self) {
  if (size >= 1024) {
    if (void* block = static_cast<SessionMemory*>(self)->place(size)) return block;
  }
  return std::malloc(size);
}

void* SessionMemory::allocate_zeroed(std::size_t count, std::size_t size, void* self) {
  // The library multiplies small constants.
  if (count * size >= 1024) {
    auto& memory = *static_cast<SessionMemory*>(self);
    // Used before, as by a table that grew and shrank, it has to be cleared; untouched pages are zeros.
    if (void* block = memory.place(count * size)) {
      if (memory.used_[memory.place_of(block)]) std::memset(block, 0, count * size);
      return block;
    }
  }
  return std::calloc(count, size);
}

void* SessionMemory::reallocate(void* block, std::size_t size, void* self) {
  if (block == nullptr) return allocate(size, self);  // as the frame buffer is
  const auto& memory = *static_cast<SessionMemory*>(self);
  if (!memory.owns(block)) return std::realloc(block, size);
  void* larger = std::malloc(size);
  if (larger == nullptr) return nullptr;
  std::memcpy(larger, block, std::min(size, memory.size_[memory.place_of(block)]));
  release(block, self);
  return larger;
}

void SessionMemory::release(void* block, void* self) {
  auto& memory = *static_cast<SessionMemory*>(self);
  if (!memory.owns(block)) return std::free(block);
  const std::size_t i = memory.place_of(block);
  memory.taken_[i] = false;
  memory.used_[i] = true;
}

}  // namespace headrace
