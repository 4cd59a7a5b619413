// Buffer: a block of bytes with a reference count, so that views into a wire message or a batch's
// output can outlive the function that made them without a copy.
//
// Threads: the count is atomic; the bytes belong to one thread until they are shared, and are
// read-only after that.
//
//   BufferRef message = BufferRef::allocate(n);
//   std::memcpy(message.data(), p, n);
//   BufferRef other = message;               // same bytes, one more owner
#pragma once

#include <sys/mman.h>

#include <atomic>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <new>
#include <span>
#include <string_view>
#include <utility>

namespace headrace {

class BufferRef {
 public:
  BufferRef() = default;
  BufferRef(const BufferRef& other) noexcept : block_(other.block_) {
    if (block_ != nullptr) block_->references.fetch_add(1, std::memory_order_relaxed);
  }
  BufferRef(BufferRef&& other) noexcept : block_(std::exchange(other.block_, nullptr)) {}
  BufferRef& operator=(BufferRef other) noexcept {
    std::swap(block_, other.block_);
    return *this;
  }
  ~BufferRef() { reset(); }

  // `size` uninitialised bytes, aligned to 64 (a cache line, an AVX-512 register).
  // Throws std::bad_alloc: callers bound `size` first.
  static BufferRef allocate(std::size_t size) {
    // Aligned by hand within a plain allocation: glibc's aligned allocation bypasses its thread cache.
    void* memory = ::operator new(sizeof(Block) + size + kAlignment - alignof(std::max_align_t));
    const auto address = reinterpret_cast<std::uintptr_t>(memory);
    void* aligned = reinterpret_cast<void*>((address + kAlignment - 1) & ~(kAlignment - 1));
    BufferRef ref;
    ref.block_ = new (aligned) Block{size, memory};
    return ref;
  }

  // The same from pages of its own, which go back to the system with the last owner: for large blocks that
  // are rare. They cost nothing before they are written to, and a page fault each then.
  static BufferRef map(std::size_t size) {
    const std::size_t mapped = sizeof(Block) + size;
    void* memory =
        ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    BufferRef ref;
    ref.block_ = new (memory) Block{size, memory, mapped};
    return ref;
  }

  std::byte* data() { return bytes(); }
  const std::byte* data() const { return bytes(); }
  std::size_t size() const { return block_ == nullptr ? 0 : block_->size; }
  std::span<std::byte> span() { return {bytes(), size()}; }
  std::span<const std::byte> span() const { return {bytes(), size()}; }
  std::string_view view() const { return {reinterpret_cast<const char*>(bytes()), size()}; }
  explicit operator bool() const { return block_ != nullptr; }

  // Forgets the bytes from `size` on; their memory is kept. Only owner only.
  void shrink(std::size_t size) {
    assert(unique() && size <= block_->size);
    block_->size = size;
  }

  // Whether this is the only owner: then the bytes may be written again.
  bool unique() const {
    return block_ != nullptr && block_->references.load(std::memory_order_acquire) == 1;
  }

  void reset() noexcept {
    Block* block = std::exchange(block_, nullptr);
    if (block != nullptr && block->references.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      void* memory = block->memory;
      const std::size_t mapped = block->mapped;
      block->~Block();
      if (mapped != 0) {
        ::munmap(memory, mapped);
      } else {
        ::operator delete(memory);
      }
    }
  }

 private:
  static constexpr std::uintptr_t kAlignment = 64;
  struct alignas(kAlignment) Block {
    Block(std::size_t n, void* m, std::size_t length = 0) : size(n), memory(m), mapped(length) {}
    std::atomic<std::size_t> references{1};
    std::size_t size;
    void* memory;        // what operator new answered, or mmap:
    std::size_t mapped;  // so much
  };

  std::byte* bytes() const {
    return block_ == nullptr ? nullptr : reinterpret_cast<std::byte*>(block_) + sizeof(Block);
  }

  Block* block_ = nullptr;
};

}  // namespace headrace
