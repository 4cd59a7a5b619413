#include "base/memory_limit.h"

#include <algorithm>
#include <fstream>

namespace headrace {
namespace {

// v1 says "none" with a number near 2^63.
constexpr uint64_t kNone = uint64_t{1} << 60;

void least_up(const std::string& root, std::string path, const char* file,
              std::optional<uint64_t>& least) {
  for (;;) {
    while (!path.empty() && path.back() == '/') path.pop_back();
    uint64_t limit = 0;  // "max" in v2 is no number
    if ((std::ifstream(root + path + file) >> limit) && limit < kNone) {
      least = std::min(least.value_or(limit), limit);
    }
    if (path.empty()) return;
    path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  }
}

}  // namespace

std::optional<uint64_t> cgroup_memory(const std::string& cgroup_root,
                                      const std::string& self_cgroup) {
  std::optional<uint64_t> least;
  std::ifstream groups(self_cgroup);
  // "0::/user.slice" (v2) or "8:memory:/docker/..." (v1)
  for (std::string line; std::getline(groups, line);) {
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    std::string path = line.substr(second + 1);
    // A group outside of our cgroup namespace shows as "/../..": not visible from here.
    if (path.find("..") != std::string::npos) path.clear();
    if (controllers == ",,") least_up(cgroup_root, path, "/memory.max", least);
    if (controllers.find(",memory,") != std::string::npos) {
      least_up(cgroup_root + "/memory", path, "/memory.limit_in_bytes", least);
    }
  }
  return least;
}

}  // namespace headrace
