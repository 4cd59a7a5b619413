// The messages of the probes: requests that name something, answers that are one number.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/buffer.h"
#include "base/status.h"
#include "rpc/call.h"

namespace headrace {

// The two string fields of ModelReadyRequest; HealthCheckRequest has the first only.
struct NameAndVersion {
  std::string_view name;
  std::string_view version;
};

// Views into `message`. Errors: INTERNAL.
Result<NameAndVersion> decode_name_and_version(std::string_view message);

// A message whose only field is number 1, a bool or an enum, after Call::kPrefixBytes of room.
BufferRef encode_number(uint32_t value);

// Ends the call with it.
void respond_number(Call& call, uint32_t value);

}  // namespace headrace
