// Stands for openvino_*.cc in a build without OpenVINO: every call says so and names the fix.
#include "backends/openvino/openvino_backend.h"

namespace headrace {
namespace {

Status missing(const std::string& path) {
  return Status::unavailable(
      "cannot load '" + path +
      "': this build has no OpenVINO backend. Run `pip install openvino` (or set "
      "OpenVINO_DIR) and build again with -DHEADRACE_OPENVINO=ON");
}

}  // namespace

struct OpenVinoBackend::Impl {};

OpenVinoBackend::OpenVinoBackend() = default;
OpenVinoBackend::~OpenVinoBackend() = default;

Result<std::pair<std::vector<TensorSpec>, std::vector<TensorSpec>>> OpenVinoBackend::inspect(
    const std::string& path, bool /*low_priority*/) const {
  return missing(path);
}

Result<std::shared_ptr<Model>> OpenVinoBackend::load(const std::string& path,
                                                     const OpenVinoOptions& /*options*/) const {
  return missing(path);
}

std::string OpenVinoBackend::version() { return "not built in"; }

std::vector<std::string> OpenVinoBackend::devices() const { return {}; }

}  // namespace headrace
