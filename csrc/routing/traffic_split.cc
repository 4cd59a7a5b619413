#include "routing/traffic_split.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <variant>

namespace headrace {
namespace {

// splitmix64's finaliser (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// FNV-1a, 64 bits, then mixed: every bit of the result depends on every byte.
uint64_t hash_of(std::string_view bytes, uint64_t salt) {
  uint64_t hash = 0xcbf29ce484222325 ^ salt;
  for (const char byte : bytes) {
    hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3;
  }
  return mixed(hash);
}

uint64_t random_bits() {
  thread_local uint64_t state = std::random_device{}() * uint64_t{0x9e3779b97f4a7c15};
  return mixed(state += 0x9e3779b97f4a7c15);
}

uint64_t hash_of(const Parameter& parameter, uint64_t salt) {
  return std::visit(
      [&](const auto& value) {
        if constexpr (std::is_same_v<std::decay_t<decltype(value)>, std::string_view>) {
          return hash_of(value, salt);
        } else {
          char bytes[sizeof(value)];
          std::memcpy(bytes, &value, sizeof(value));
          return hash_of(std::string_view(bytes, sizeof(value)), salt);
        }
      },
      parameter.value);
}

}  // namespace

TrafficSplit::TrafficSplit(std::vector<Arm> arms, std::string key, std::string_view salt)
    : arms_(std::move(arms)), key_(std::move(key)), salt_(hash_of(salt, 0)) {
  double sum = 0;
  for (const Arm& arm : arms_) sum += arm.share;
  double below = 0;
  for (const Arm& arm : arms_) {
    below += arm.share;
    // 2^64 itself is out of range.
    const double at = std::ldexp(below / sum, 64);
    upto_.push_back(at >= std::ldexp(1.0, 64) ? UINT64_MAX : static_cast<uint64_t>(at));
  }
  // What rounding left over, and UINT64_MAX itself, are the last one's that has a share.
}

const Arm& TrafficSplit::choose(const Request& request) const {
  uint64_t at = 0;
  bool found = false;
  if (!key_.empty()) {
    for (const Parameter& parameter : request.parameters) {
      if (parameter.key != key_) continue;
      at = hash_of(parameter, salt_);
      found = true;
      break;
    }
  }
  if (!found) at = request.id.empty() ? random_bits() : hash_of(request.id, salt_);
  std::size_t last = 0;
  for (std::size_t i = 0; i < arms_.size(); ++i) {
    if (arms_[i].share <= 0) continue;
    if (at < upto_[i]) return arms_[i];
    last = i;
  }
  return arms_[last];
}

}  // namespace headrace
