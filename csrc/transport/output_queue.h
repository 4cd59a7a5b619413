// OutputQueue: bytes on their way to a socket. Small pieces are copied together into chunks, large
// ones are kept by reference, and everything leaves with writev.
//
// Threads: belongs to its connection's I/O thread.
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <utility>

#include "base/buffer.h"
#include "base/fifo.h"

namespace headrace {

class OutputQueue {
 public:
  bool empty() const { return segments_.empty(); }
  // Bytes queued.
  std::size_t size() const { return size_; }

  void append_copy(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      if (!chunk_ || used_ == chunk_.size()) {
        chunk_ = BufferRef::allocate(kChunkBytes);
        used_ = 0;
      }
      const std::size_t n = std::min(bytes.size(), chunk_.size() - used_);
      std::byte* at = chunk_.data() + used_;
      std::memcpy(at, bytes.data(), n);
      used_ += n;
      size_ += n;
      if (!segments_.empty() && segments_.back().end() == at) {
        segments_.back().length += n;
      } else {
        segments_.push({chunk_, at, n});
      }
      bytes = bytes.subspan(n);
    }
  }

  void append_view(BufferRef owner, std::span<const std::byte> bytes) {
    if (bytes.empty()) return;
    size_ += bytes.size();
    segments_.push({std::move(owner), bytes.data(), bytes.size()});
  }

  // Fills at most `capacity` entries, from the front; returns how many.
  int front(struct iovec* vectors, int capacity) const {
    int n = 0;
    for (const Segment& segment : segments_) {
      if (n == capacity) break;
      // iovec is not const-correct; writev reads only.
      vectors[n++] = {const_cast<std::byte*>(segment.data), segment.length};
    }
    return n;
  }

  // `written` bytes left from the front.
  void pop(std::size_t written) {
    size_ -= written;
    while (written != 0) {
      Segment& segment = segments_.front();
      const std::size_t n = std::min(written, segment.length);
      segment.data += n;
      segment.length -= n;
      written -= n;
      if (segment.length == 0) segments_.pop();
    }
    if (segments_.empty() && chunk_.unique()) used_ = 0;
  }

  // Gives an idle connection's chunk back.
  void release_idle() {
    if (segments_.empty()) chunk_.reset();
  }

 private:
  static constexpr std::size_t kChunkBytes = 16 * 1024;
  struct Segment {
    BufferRef owner;
    const std::byte* data = nullptr;
    std::size_t length = 0;
    const std::byte* end() const { return data + length; }
  };

  Fifo<Segment> segments_;
  BufferRef chunk_;
  std::size_t used_ = 0;
  std::size_t size_ = 0;
};

}  // namespace headrace
