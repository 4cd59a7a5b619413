// TraceContext: which trace a request belongs to, as W3C Trace Context names it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace headrace {

struct TraceContext {
  std::array<uint8_t, 16> trace_id{};
  std::array<uint8_t, 8> parent_id{};  // the caller's span; zeros: the request begins its trace
  std::array<uint8_t, 8> span_id{};    // of the request in this server
};

struct TraceParent {
  std::array<uint8_t, 16> trace_id{};
  std::array<uint8_t, 8> parent_id{};
  bool sampled = false;
};

// The `traceparent` header: "00-<32 hex digits>-<16 hex digits>-<2 hex digits>"; a later version's
// may go on behind a dash. nullopt: not valid, to be ignored (https://www.w3.org/TR/trace-context/).
std::optional<TraceParent> parse_traceparent(std::string_view text);

}  // namespace headrace
