#include "core/trace_context.h"

#include <algorithm>
#include <span>

namespace headrace {
namespace {

constexpr std::size_t kTraceAt = 3;
constexpr std::size_t kParentAt = kTraceAt + 32 + 1;
constexpr std::size_t kFlagsAt = kParentAt + 16 + 1;
constexpr std::size_t kSize = kFlagsAt + 2;

// Upper-case digits are not allowed.
int digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

bool read_hex(std::string_view text, std::span<uint8_t> bytes) {
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const int high = digit(text[2 * i]);
    const int low = digit(text[2 * i + 1]);
    if (high < 0 || low < 0) return false;
    bytes[i] = static_cast<uint8_t>(high << 4 | low);
  }
  return true;
}

bool all_zero(std::span<const uint8_t> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte == 0; });
}

}  // namespace

std::optional<TraceParent> parse_traceparent(std::string_view text) {
  if (text.size() < kSize || text[2] != '-' || text[kParentAt - 1] != '-' ||
      text[kFlagsAt - 1] != '-') {
    return std::nullopt;
  }
  std::array<uint8_t, 1> version{};
  std::array<uint8_t, 1> flags{};
  TraceParent parent;
  if (!read_hex(text, version) || !read_hex(text.substr(kTraceAt), parent.trace_id) ||
      !read_hex(text.substr(kParentAt), parent.parent_id) ||
      !read_hex(text.substr(kFlagsAt), flags)) {
    return std::nullopt;
  }
  const bool longer = text.size() > kSize;
  if (version[0] == 0xff || (longer && (version[0] == 0 || text[kSize] != '-'))) {
    return std::nullopt;
  }
  if (all_zero(parent.trace_id) || all_zero(parent.parent_id)) return std::nullopt;
  parent.sampled = (flags[0] & 1) != 0;
  return parent;
}

}  // namespace headrace
