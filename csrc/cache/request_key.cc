#include "cache/request_key.h"

#include <cstring>
#include <string_view>

// Its header alone: nothing is linked.
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace headrace {
namespace {

// Calls visit(pointer, bytes) for each part. Lengths come before what they count, so that no two
// requests have the same parts in different places.
template <class Visit>
void for_each_part(uint64_t owner, const Request& request, const Visit& visit) {
  const auto number = [&](uint64_t value) { visit(&value, sizeof(value)); };
  const auto text = [&](std::string_view value) {
    number(value.size());
    visit(value.data(), value.size());
  };
  number(owner);
  number(request.inputs.size());
  for (const InputTensor& input : request.inputs) {
    text(input.name);
    number(static_cast<uint64_t>(input.tensor.dtype) << 32 | input.tensor.shape.size());
    visit(input.tensor.shape.begin(), input.tensor.shape.size() * sizeof(int64_t));
    number(input.tensor.data.size());
    visit(input.tensor.data.data(), input.tensor.data.size());
  }
  for (const RequestedOutput& output : request.outputs) {
    text(output.name);
    number(static_cast<uint64_t>(output.classification));
  }
}

}  // namespace

uint64_t hash_key(uint64_t owner, const Request& request, uint64_t seed) {
  uint64_t hash = seed;
  for_each_part(owner, request, [&](const void* data, std::size_t size) {
    hash = XXH3_64bits_withSeed(data, size, hash);
  });
  return hash;
}

std::size_t key_size(const Request& request) {
  std::size_t total = 0;
  for_each_part(0, request, [&](const void*, std::size_t size) { total += size; });
  return total;
}

BufferRef key_of(uint64_t owner, const Request& request) {
  BufferRef key = BufferRef::allocate(key_size(request));
  std::byte* at = key.data();
  for_each_part(owner, request, [&](const void* data, std::size_t size) {
    if (size != 0) std::memcpy(at, data, size);
    at += size;
  });
  return key;
}

bool matches(std::span<const std::byte> key, uint64_t owner, const Request& request) {
  bool same = true;
  for_each_part(owner, request, [&](const void* data, std::size_t size) {
    same = same && size <= key.size() && (size == 0 || std::memcmp(key.data(), data, size) == 0);
    if (same) key = key.subspan(size);
  });
  return same && key.empty();
}

}  // namespace headrace
