#include "serving/core_planner.h"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <random>

using namespace headrace;

namespace {

// A cgroup file system in a folder of its own, gone afterwards.
class FakeCgroups {
 public:
  FakeCgroups()
      : root_(std::filesystem::temp_directory_path() /
              ("headrace-cgroup-" + std::to_string(std::random_device{}()))) {
    std::filesystem::create_directories(root_);
  }
  ~FakeCgroups() { std::filesystem::remove_all(root_); }
  FakeCgroups& write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text << "\n";
    return *this;
  }
  std::string root() const { return root_.string(); }
  // As a process in `groups` (lines of /proc/self/cgroup) sees it.
  std::optional<uint32_t> cores(const std::string& groups) {
    write("self", groups);
    return cgroup_cores(root(), root() + "/self");
  }

 private:
  std::filesystem::path root_;
};

std::vector<uint32_t> threads(uint32_t cores, const std::vector<InstanceDemand>& demands) {
  std::vector<uint32_t> result;
  for (const InstancePlan& plan : plan_cores(cores, demands)) result.push_back(plan.threads);
  return result;
}

using Threads = std::vector<uint32_t>;

}  // namespace

TEST_CASE("cgroup v2: quota over period, rounded up, none for max") {
  CHECK(FakeCgroups().write("cpu.max", "max 100000").cores("0::/") == std::nullopt);
  CHECK(FakeCgroups().write("cpu.max", "150000 100000").cores("0::/") == 2);
  CHECK(FakeCgroups().write("cpu.max", "200000 100000").cores("0::/") == 2);
  CHECK(FakeCgroups().write("cpu.max", "1000 100000").cores("0::/") == 1);
  CHECK(FakeCgroups().write("cpu.max", "6400000 100000").cores("0::/") == 64);
}

TEST_CASE("cgroup v2: the tightest of the group and those above it") {
  FakeCgroups cgroups;
  cgroups.write("cpu.max", "max 100000");
  cgroups.write("kube/cpu.max", "300000 100000");
  cgroups.write("kube/pod/cpu.max", "500000 100000");
  CHECK(cgroups.cores("0::/kube/pod") == 3);
  CHECK(cgroups.cores("0::/other") == std::nullopt);
  CHECK(cgroups.cores("0::/../../kube") == std::nullopt);
}

TEST_CASE("cgroup v1: cfs quota, -1 is none") {
  FakeCgroups cgroups;
  cgroups.write("cpu/cpu.cfs_quota_us", "-1").write("cpu/cpu.cfs_period_us", "100000");
  CHECK(cgroups.cores("4:cpu,cpuacct:/") == std::nullopt);
  cgroups.write("cpu/docker/cpu.cfs_quota_us", "250000");
  cgroups.write("cpu/docker/cpu.cfs_period_us", "100000");
  CHECK(cgroups.cores("7:memory:/x\n4:cpu,cpuacct:/docker/\n") == 3);
}

TEST_CASE("files that are missing or no numbers set no quota") {
  CHECK(FakeCgroups().cores("") == std::nullopt);
  CHECK(FakeCgroups().cores("nonsense\n0:\n::\n") == std::nullopt);
  CHECK(FakeCgroups().write("cpu.max", "").cores("0::/") == std::nullopt);
  CHECK(FakeCgroups().write("cpu.max", "a b").cores("0::/") == std::nullopt);
  CHECK(FakeCgroups().write("cpu.max", "100000 0").cores("0::/") == std::nullopt);
  CHECK(FakeCgroups().write("cpu.max", "1e300 1").cores("0::/") == 1000000);
}

TEST_CASE("available_cores is at least one, and no more than a quota allows") {
  FakeCgroups cgroups;
  const uint32_t affinity = available_cores(cgroups.root());
  CHECK(affinity >= 1);
  cgroups.write("cpu.max", "100000 100000");
  CHECK(available_cores(cgroups.root()) == 1);
  cgroups.write("cpu.max", "max 100000");
  CHECK(available_cores(cgroups.root()) == affinity);
}

TEST_CASE("cores are shared evenly, at least one each, what is over goes to the first models") {
  CHECK(threads(8, {{"a"}}) == Threads{8});
  CHECK(threads(8, {{"a", 2}}) == Threads{4});
  CHECK(threads(8, {{"a"}, {"b"}, {"c"}}) == Threads{3, 3, 2});
  CHECK(threads(9, {{"a", 3}, {"b", 2}}) == Threads{2, 1});
  CHECK(threads(4, {{"a", 3}, {"b", 1}, {"c", 2}}) == Threads{1, 1, 1});
  CHECK(threads(0, {{"a"}}) == Threads{1});
  CHECK(threads(4, {}) == Threads{});
}

TEST_CASE("explicit demands come first") {
  CHECK(threads(8, {{"a", 1, 6}, {"b"}}) == Threads{6, 2});
  CHECK(threads(8, {{"a", 2, 5}, {"b"}}) == Threads{5, 1});
  CHECK(threads(8, {{"a", 4000000000, 4000000000}, {"b"}}) == Threads{4000000000, 1});
}

TEST_CASE("property: planned instances never oversubscribe when there is a core for each") {
  std::mt19937 random(5);
  for (int i = 0; i < 500; ++i) {
    std::vector<InstanceDemand> demands(1 + random() % 5);
    uint32_t instances = 0;
    for (InstanceDemand& demand : demands) {
      demand.instances = 1 + random() % 4;
      instances += demand.instances;
    }
    const uint32_t cores = 1 + random() % 64;
    const std::vector<InstancePlan> plan = plan_cores(cores, demands);
    CHECK(oversubscribed(cores, plan) == (instances > cores));
  }
}
