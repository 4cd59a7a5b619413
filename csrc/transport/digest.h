// SHA-256, and comparing secrets in a time that tells nothing about them. OpenSSL's.
//
// Threads: pure functions.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

namespace headrace {

using Sha256 = std::array<std::byte, 32>;

Sha256 sha256(std::string_view text);
bool equal_in_constant_time(const Sha256& a, const Sha256& b);

}  // namespace headrace
