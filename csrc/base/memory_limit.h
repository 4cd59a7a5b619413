// What this process's cgroup lets it have of the machine's memory.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace headrace {

// Bytes: the least limit (cgroup v2 memory.max, v1 memory.limit_in_bytes) from this process's group up
// to the root. nullopt: there is none. Parameters are for tests.
std::optional<uint64_t> cgroup_memory(const std::string& cgroup_root = "/sys/fs/cgroup",
                                      const std::string& self_cgroup = "/proc/self/cgroup");

}  // namespace headrace
