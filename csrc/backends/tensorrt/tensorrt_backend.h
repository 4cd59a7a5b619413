// TensorRT backend: engines (.plan, .engine) on NVIDIA GPUs. TensorRT and CUDA are in a library of their own,
// libheadrace_tensorrt.so, which the first load() opens; where it is missing, load() says so (UNAVAILABLE).
//
//   TensorRtBackend backend;
//   std::shared_ptr<Model> model = *backend.load("model.plan", {});
//
// Threads: any; see backend.h for Instances. The library stays open for as long as the process lives.
#pragma once

#include <memory>
#include <string>

#include "backends/backend.h"
#include "backends/tensorrt/tensorrt_instance.h"

namespace headrace {

struct TensorRtLoadOptions {
  TensorRtOptions instance;
  int64_t device_memory_limit = 0;  // bytes of a version with all its instances; 0: none
};

class TensorRtBackend {
 public:
  // `library`: found by the dynamic linker when it has no slash.
  explicit TensorRtBackend(std::string library = "libheadrace_tensorrt.so");
  // UNAVAILABLE, saying what is missing: the library, or a GPU.
  Result<TensorRtDevice> device() const;
  // NOT_FOUND, INVALID_ARGUMENT (no engine of this TensorRT and GPU), UNAVAILABLE, RESOURCE_EXHAUSTED.
  Result<std::shared_ptr<Model>> load(const std::string& path,
                                      const TensorRtLoadOptions& options) const;

 private:
  std::string library_;
};

// A Model over an engine, however it was opened.
std::shared_ptr<Model> tensorrt_model(std::shared_ptr<TensorRtEngine> engine,
                                      const TensorRtLoadOptions& options);

}  // namespace headrace
