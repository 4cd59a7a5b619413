// OpenVINO backend: ONNX (.onnx) and OpenVINO IR (.xml + .bin) models on the CPU, from the runtime
// inside the openvino wheel.
//
//   OpenVinoBackend backend;
//   std::shared_ptr<Model> model = *backend.load("model.onnx", {.instances = 2, .threads = 1});
//   std::unique_ptr<Instance> instance = *model->make_instance();   // then as in backend.h
//
// Threads: OpenVinoBackend and its Models are shared; see backend.h for Instances. run() works on
// the calling thread. An instance may outlive its Model and the backend.
// ---------------------------------------------------------------------------------------------
// Measured on OpenVINO 2026.4.1, 2-core Sapphire Rapids (AVX-512, AMX):
//
// Instances. Each has its own compiled model (one stream): two threads run a 16-32-4 MLP in 13 us
// each. Streams of one shared compiled model hop to a worker thread, two context switches a run: 28
// us each. Above 16 MiB of weights they do share one, stream by stream: the hop is lost in the run,
// while a copy of the packed weights an instance is not (134 MB of weights: 130 MB more).
//
// Precision. f32 unless asked otherwise: OpenVINO's own default here is bf16, which moves magika's
// scores by 2e-3 and OCR's by 5e-2; in f32 they are within 4e-7 and 2e-6 of onnxruntime.
//
// Datatypes. All are taken and answered. FP32, INT32, INT16, UINT16 and BOOL are exact; FP16 and
// BF16 are computed in f32; UINT8 and INT8 arithmetic saturates where ONNX wraps. INT64 (even by
// Identity) and UINT64 keep their low 32 bits only, FP64 becomes FP32. BYTES go through Concat,
// Gather, Identity, Reshape, Squeeze, Unsqueeze, Shape and Transpose; models with other operators
// on strings are refused.
//
// Shapes. Every combination of input shapes is inferred through the graph before its first run,
// since the runtime itself does not check (shape_check.h). Zero-size tensors and scalars work. A
// run whose shape differs from the run before costs extra: 12 - 30 us for the MLP, 3 ms for a 6 ms
// OCR classifier, nothing for magika; requests kept per shape do not help, for the graph belongs to
// the stream, not the request.
//
// Cache. Compiled models are found again by their content, weights included; a damaged or
// unwritable cache is passed over.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "backends/backend.h"
#include "kernels/int8_isa.h"

namespace headrace {

// Where models run that are only a chain of linear layers (kernels/linear_chain.h) of which our INT8
// kernels can compute some: kFaster: without OpenVINO for as many rows as that measures faster.
enum class DirectChains : uint8_t { kNever, kFaster, kAlways };

struct OpenVinoOptions {
  std::string device = "CPU";
  uint32_t instances = 1;  // how many instances will run at the same time
  uint32_t threads = 1;    // intra-op threads an instance
  // Compiled models are kept here and found again at the next start; empty: not kept.
  std::string cache_dir = {};
  // While others serve: they have the processors first.
  bool low_priority = false;
  // Shapes come from our own code, which knows the graph: none is inferred through it before its first
  // run. For networks whose shapes change from run to run (the decoder of speech).
  bool trusted_shapes = false;
  // Which linear layers run on our INT8 kernels instead of OpenVINO's operators (int8_rewrite.h), CPU
  // only. "off": none. "exact": those that the model itself quantises, where OpenVINO's own sums would
  // saturate (no VNNI). "dynamic": all, float ones too. "auto": those that measure faster. Compiled
  // models with such layers are not kept in cache_dir: it would lack their weights.
  std::string int8 = "exact";
  // Other than the defaults: for tests and benchmarks.
  Isa int8_isa = best_isa();
  DirectChains direct_chains = DirectChains::kFaster;
  // Passed on to compile_model as they are, after ours ("INFERENCE_PRECISION_HINT": "bf16").
  std::map<std::string, std::string> properties = {};
};

class OpenVinoBackend {
 public:
  OpenVinoBackend();
  ~OpenVinoBackend();

  // Reads the signature only: nothing is compiled. Errors: NOT_FOUND (no such file),
  // INVALID_ARGUMENT (not a model, or one with a datatype the protocol lacks), each naming the
  // file.
  Result<std::pair<std::vector<TensorSpec>, std::vector<TensorSpec>>> inspect(
      const std::string& path, bool low_priority = false) const;
  // Reads and compiles. Blocks for as long as that takes; never on an I/O thread.
  Result<std::shared_ptr<Model>> load(const std::string& path,
                                      const OpenVinoOptions& options) const;

  // "2026.4.1-..." and the devices found, for `headrace doctor`.
  static std::string version();
  std::vector<std::string> devices() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace headrace
