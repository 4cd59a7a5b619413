#include "serving/core_planner.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <thread>

namespace headrace {
namespace {

std::optional<uint32_t> cores_of(double quota, double period) {
  // A negative quota means none; !(> 0) also catches what was no number.
  if (!(quota > 0) || !(period > 0)) return std::nullopt;
  return static_cast<uint32_t>(std::clamp(std::ceil(quota / period), 1.0, 1e6));
}

std::optional<uint32_t> read_v2(const std::string& folder) {
  std::ifstream file(folder + "/cpu.max");
  std::string quota;  // "max" or microseconds
  double period = 0;
  if (!(file >> quota >> period) || quota == "max") return std::nullopt;
  double microseconds = 0;
  std::istringstream(quota) >> microseconds;
  return cores_of(microseconds, period);
}

std::optional<uint32_t> read_v1(const std::string& folder) {
  double quota = 0;
  double period = 0;
  if (!(std::ifstream(folder + "/cpu.cfs_quota_us") >> quota) ||
      !(std::ifstream(folder + "/cpu.cfs_period_us") >> period)) {
    return std::nullopt;
  }
  return cores_of(quota, period);
}

// The least quota from the group up to the root: a parent's binds its children.
template <class Read>
void least_up(const std::string& root, std::string path, const Read& read,
              std::optional<uint32_t>& least) {
  for (;;) {
    while (!path.empty() && path.back() == '/') path.pop_back();
    if (const std::optional<uint32_t> cores = read(root + path)) {
      least = least ? std::min(*least, *cores) : *cores;
    }
    if (path.empty()) return;
    path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  }
}

}  // namespace

std::optional<uint32_t> cgroup_cores(const std::string& cgroup_root,
                                     const std::string& self_cgroup) {
  std::string v2_path;
  std::string v1_path;
  std::ifstream groups(self_cgroup);
  for (std::string line; std::getline(groups, line);) {
    // "0::/user.slice" (v2) or "4:cpu,cpuacct:/docker/..." (v1)
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    std::string controllers = line.substr(first, second - first + 1);  // ":cpu,cpuacct:"
    std::replace(controllers.begin(), controllers.end(), ':', ',');
    std::string path = line.substr(second + 1);
    // A group outside of our cgroup namespace shows as "/../..": not visible from here.
    if (path.find("..") != std::string::npos) path.clear();
    if (controllers == ",,") v2_path = path;
    if (controllers.find(",cpu,") != std::string::npos) v1_path = path;
  }

  std::optional<uint32_t> least;
  least_up(cgroup_root, v2_path, read_v2, least);
  least_up(cgroup_root + "/cpu", v1_path, read_v1, least);
  least_up(cgroup_root + "/cpu,cpuacct", v1_path, read_v1, least);
  return least;
}

uint32_t available_cores(const std::string& cgroup_root) {
  uint32_t cores = std::max(1U, std::thread::hardware_concurrency());
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  // Fails on machines of more than CPU_SETSIZE cores: then all of them count.
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
    cores = std::max(1U, static_cast<uint32_t>(CPU_COUNT(&allowed)));
  }
  return std::min(cores, cgroup_cores(cgroup_root).value_or(cores));
}

std::vector<InstancePlan> plan_cores(uint32_t cores, const std::vector<InstanceDemand>& demands) {
  uint64_t asked = 0;    // cores of explicit demands
  uint64_t sharing = 0;  // instances that share the rest
  for (const InstanceDemand& demand : demands) {
    (demand.threads == 0 ? sharing : asked) +=
        uint64_t{demand.instances} * std::max(1U, demand.threads);
  }
  const uint64_t left = cores > asked ? cores - asked : 0;
  const uint64_t each = sharing == 0 ? 1 : std::max<uint64_t>(1, left / sharing);
  uint64_t spare = left > each * sharing ? left - each * sharing : 0;

  std::vector<InstancePlan> plan;
  plan.reserve(demands.size());
  for (const InstanceDemand& demand : demands) {
    uint64_t threads = demand.threads;
    if (threads == 0) {
      threads = each;
      // Instances of a model are alike: it gets one more each, or none.
      if (demand.instances > 0 && spare >= demand.instances) {
        ++threads;
        spare -= demand.instances;
      }
    }
    plan.push_back({demand.model, demand.instances, static_cast<uint32_t>(threads)});
  }
  return plan;
}

bool oversubscribed(uint32_t cores, const std::vector<InstancePlan>& plan) {
  uint64_t threads = 0;
  for (const InstancePlan& model : plan) threads += uint64_t{model.instances} * model.threads;
  return threads > cores;
}

}  // namespace headrace
