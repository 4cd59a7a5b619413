#include "process_usage.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <system_error>

namespace loadgen {
namespace {

void add_process(pid_t pid, ProcessUsage& usage) {
  const std::string folder = "/proc/" + std::to_string(pid);
  std::ifstream stat(folder + "/stat");
  std::string text;
  if (!std::getline(stat, text)) return;
  // Field 2 is the name in parentheses and may hold anything; fields are counted from after it.
  const std::size_t close = text.rfind(')');
  if (close == std::string::npos) return;
  std::istringstream fields(text.substr(close + 1));
  std::string word;
  double user = 0, system = 0, child_user = 0, child_system = 0;
  for (int field = 3; field <= 20 && fields >> word; ++field) {
    if (field == 14) user = std::stod(word);
    if (field == 15) system = std::stod(word);
    if (field == 16) child_user = std::stod(word);
    if (field == 17) child_system = std::stod(word);
    if (field == 20) usage.threads += std::stoi(word);
  }
  const auto ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  usage.user_s += (user + child_user) / ticks;
  usage.system_s += (system + child_system) / ticks;
  ++usage.processes;

  std::ifstream statm(folder + "/statm");
  double size_pages = 0, rss_pages = 0;
  if (statm >> size_pages >> rss_pages) {
    usage.rss_mib += rss_pages * static_cast<double>(sysconf(_SC_PAGESIZE)) / (1024.0 * 1024.0);
  }

  std::error_code error;
  for (const auto& task : std::filesystem::directory_iterator(folder + "/task", error)) {
    std::ifstream children(task.path() / "children");
    pid_t child = 0;
    while (children >> child) add_process(child, usage);
  }
}

}  // namespace

ProcessUsage read_process_usage(pid_t root) {
  ProcessUsage usage;
  add_process(root, usage);
  return usage;
}

double read_machine_busy_s() {
  std::ifstream stat("/proc/stat");
  std::string word;
  stat >> word;
  // user nice system idle iowait irq softirq steal; guest times are within user and nice.
  double busy = 0, value = 0;
  for (int i = 0; i < 8 && stat >> value; ++i) {
    if (i != 3 && i != 4) busy += value;
  }
  return busy / static_cast<double>(sysconf(_SC_CLK_TCK));
}

}  // namespace loadgen
