// What makes two requests the same question to one model version: inputs (name, dtype, shape, bytes)
// and the outputs asked for, in the order the client gave them. Id, priority, timeout and parameters do
// not count: a model does not see them.
//
// Pure functions; any thread. The hash reads every input byte (XXH3, some 10 GB/s) and allocates
// nothing. It is seeded, so that clients cannot make requests collide, and it only finds candidates:
// equality is decided on all the bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/buffer.h"
#include "core/request.h"

namespace headrace {

// `owner` tells apart servables that share a cache.
uint64_t hash_key(uint64_t owner, const Request& request, uint64_t seed);
// Bytes that key_of() would take.
std::size_t key_size(const Request& request);
// All that counts, in one block.
BufferRef key_of(uint64_t owner, const Request& request);
// Whether `key` is key_of(owner, request).
bool matches(std::span<const std::byte> key, uint64_t owner, const Request& request);

}  // namespace headrace
