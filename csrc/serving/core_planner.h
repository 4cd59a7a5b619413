// Core planner: divides the cores this process may use over the instances of all models, so that
// instances x threads never exceeds them (oversubscribed CPU runtimes are slower than one thread).
// Pure functions; available_cores() reads the machine.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace headrace {

// Cores this process may use: the least of the scheduler's affinity mask and cgroup_cores(), at
// least 1. `cgroup_root` is for tests.
uint32_t available_cores(const std::string& cgroup_root = "/sys/fs/cgroup");

// The CPU quota (v2 cpu.max, v1 cpu.cfs_quota_us) of this process's cgroup and those above it, the
// least of them, rounded up to cores, at least 1; nullopt where none is set. `self_cgroup` lists
// the groups
// (/proc/self/cgroup), as paths under `cgroup_root`.
std::optional<uint32_t> cgroup_cores(const std::string& cgroup_root,
                                     const std::string& self_cgroup = "/proc/self/cgroup");

struct InstanceDemand {
  std::string model;
  uint32_t instances = 1;
  uint32_t threads = 0;  // threads an instance asked for in its configuration; 0 = plan it
};

struct InstancePlan {
  std::string model;
  uint32_t instances = 1;
  uint32_t threads = 1;  // intra-op threads an instance
};

// Cores that are left after explicit demands are shared evenly over the remaining instances, at
// least one each; cores that do not divide evenly go to the first models.
std::vector<InstancePlan> plan_cores(uint32_t cores, const std::vector<InstanceDemand>& demands);

// Whether the plan asks for more threads than there are cores (then the control plane warns).
bool oversubscribed(uint32_t cores, const std::vector<InstancePlan>& plan);

}  // namespace headrace
