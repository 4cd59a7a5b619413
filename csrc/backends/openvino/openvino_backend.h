// OpenVINO backend: ONNX (.onnx) and OpenVINO IR (.xml) models on the CPU, from the runtime inside
// the openvino wheel. One compiled model a version, one infer request an instance; an instance runs
// on its own thread with `threads` intra-op threads.
//
// Threads: OpenVinoBackend and its Models are shared; see backend.h for Instances.
// Precision: f32 unless asked otherwise (OpenVINO's own default is bf16 on AMX machines, which is off by
// 1e-2). The CPU plugin computes INT64 as INT32 and FP64 as FP32.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "backends/backend.h"

namespace headrace {

struct OpenVinoOptions {
  std::string device = "CPU";
  uint32_t instances = 1;  // how many instances will run at the same time
  uint32_t threads = 1;    // intra-op threads an instance
  // Compiled models are kept here and found again at the next start; empty: not kept.
  std::string cache_dir;
  // Passed on to compile_model as they are, after ours ("INFERENCE_PRECISION_HINT": "bf16").
  std::map<std::string, std::string> properties;
};

class OpenVinoBackend {
 public:
  OpenVinoBackend();
  ~OpenVinoBackend();

  // Reads the signature only: nothing is compiled. Errors: NOT_FOUND (no such file),
  // INVALID_ARGUMENT (not a model, or one with a datatype the protocol lacks), each naming the file.
  Result<std::pair<std::vector<TensorSpec>, std::vector<TensorSpec>>> inspect(
      const std::string& path) const;
  // Reads and compiles. Blocks for as long as that takes; never on an I/O thread.
  Result<std::shared_ptr<Model>> load(const std::string& path, const OpenVinoOptions& options) const;

  // "2026.4.1-..." and the devices found, for `headrace doctor`.
  static std::string version();
  std::vector<std::string> devices() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace headrace
