// FrameScanner: sees the 9-byte heads of HTTP/2 frames go by in a stream of bytes, whatever pieces
// it comes in, before a library parses them. It judges nothing.
//
// Threads: belongs to its connection's I/O thread.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace headrace {

// RFC 9113 section 4.1.
struct FrameHead {
  uint32_t length = 0;
  uint8_t type = 0;
  uint8_t flags = 0;
  uint32_t stream = 0;
};

class FrameScanner {
 public:
  static constexpr std::size_t kPrefaceBytes = 24;  // the client's "PRI * HTTP/2.0..."
  static constexpr std::size_t kHeadBytes = 9;

  // Calls on_head(FrameHead) for every head that is complete with these bytes; it answers whether to
  // go on. False: it did not.
  template <class OnHead>
  bool scan(std::span<const std::byte> bytes, OnHead&& on_head) {
    std::size_t at = 0;
    while (at < bytes.size()) {
      if (skip_ != 0) {
        const std::size_t n = std::min(skip_, bytes.size() - at);
        skip_ -= n;
        at += n;
        continue;
      }
      const std::size_t n = std::min(kHeadBytes - held_, bytes.size() - at);
      std::memcpy(head_.data() + held_, bytes.data() + at, n);
      held_ += n;
      at += n;
      if (held_ != kHeadBytes) break;
      held_ = 0;
      last_ = {uint32_t{head_[0]} << 16 | uint32_t{head_[1]} << 8 | head_[2], head_[3], head_[4],
               (uint32_t{head_[5]} << 24 | uint32_t{head_[6]} << 16 | uint32_t{head_[7]} << 8 |
                head_[8]) &
                   0x7fffffff};
      skip_ = last_.length;
      if (!on_head(last_)) return false;
    }
    return true;
  }

  // Part of a head or of a payload is still to come.
  bool in_head() const { return held_ != 0; }
  bool in_payload() const { return skip_ != 0; }
  // The head seen last.
  const FrameHead& last() const { return last_; }

 private:
  std::size_t skip_ = kPrefaceBytes;  // of the preface or a payload
  std::size_t held_ = 0;
  std::array<uint8_t, kHeadBytes> head_{};
  FrameHead last_;
};

}  // namespace headrace
