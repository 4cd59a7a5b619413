#include "base/memory_limit.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

using namespace headrace;

namespace {

class Folder {
 public:
  Folder()
      : path_(std::filesystem::temp_directory_path() /
              ("memory_limit_" + std::to_string(::getpid()))) {
    std::filesystem::create_directories(path_);
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  void write(const std::string& file, const std::string& text) const {
    std::filesystem::create_directories((path_ / file).parent_path());
    std::ofstream(path_ / file) << text;
  }
  std::optional<uint64_t> limit() const {
    return cgroup_memory(path_.string(), (path_ / "self").string());
  }

 private:
  std::filesystem::path path_;
};

}  // namespace

TEST_CASE("v2: the least limit up to the root; max is none") {
  const Folder folder;
  folder.write("self", "0::/pod/one\n");
  CHECK(folder.limit() == std::nullopt);
  folder.write("pod/one/memory.max", "max\n");
  CHECK(folder.limit() == std::nullopt);
  folder.write("pod/memory.max", "536870912\n");
  CHECK(folder.limit() == 536870912);
  folder.write("pod/one/memory.max", "1048576\n");
  CHECK(folder.limit() == 1048576);
}

TEST_CASE("v1, and a group that cannot be seen from here") {
  const Folder folder;
  folder.write("self", "9:name=systemd:/\n8:memory:/docker/x\n4:cpu,cpuacct:/\n");
  folder.write("memory/docker/x/memory.limit_in_bytes", "9223372036854771712\n");
  CHECK(folder.limit() == std::nullopt);
  folder.write("memory/docker/x/memory.limit_in_bytes", "1073741824\n");
  CHECK(folder.limit() == 1073741824);
  folder.write("self", "8:memory:/../..\n");
  CHECK(folder.limit() == std::nullopt);
  folder.write("memory/memory.limit_in_bytes", "2147483648\n");
  CHECK(folder.limit() == 2147483648);
}
