// The small text formats of gRPC over HTTP/2 (grpc/grpc doc/PROTOCOL-HTTP2.md): grpc-timeout,
// percent-encoded grpc-message, base64 of `-bin` metadata. Pure functions.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/clock.h"

namespace headrace {

// "100m" -> 100 ms. One to eight digits and a unit H M S m u n; nullopt otherwise.
std::optional<Nanoseconds> parse_grpc_timeout(std::string_view text);

// 0x20-0x7E stay, but '%' and a space at either end; all else becomes %XX, upper case.
std::string percent_encode(std::string_view text);

// Accepts padded and unpadded; nullopt when it is not base64.
std::optional<std::string> base64_decode(std::string_view text);
// Unpadded, as gRPC asks for.
std::string base64_encode(std::string_view bytes);

}  // namespace headrace
