// What the TensorRT backend needs of TensorRT and CUDA, as an interface: nvinfer_engine.cc implements it in a
// library of its own (libheadrace_tensorrt.so), so that neither is needed to build or start Headrace, and so
// that the state machine above it (tensorrt_instance.h) is tested without a GPU.
//
// Threads: an Engine is shared; a Context belongs to one thread at a time. Nothing throws.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "core/model_spec.h"
#include "core/tensor.h"

namespace headrace {

// The shapes that one optimisation profile takes: min <= shape <= max, best for `best`. An input each.
struct TensorRtProfile {
  struct Range {
    Shape min, best, max;
  };
  std::vector<Range> inputs;
};

struct TensorRtSignature {
  std::vector<TensorSpec> inputs, outputs;  // dims of the engine, -1 = dynamic
  std::vector<TensorRtProfile> profiles;
  std::string description;    // "TensorRT 11.1 on NVIDIA H200, 2 profiles"
  int64_t context_bytes = 0;  // device memory that each context takes
  int64_t weights_bytes = 0;  // that the engine takes
};

enum class TensorRtMemory : uint8_t { kPinned, kDevice };

// Work that was recorded once and is queued as a whole.
class TensorRtGraph {
 public:
  virtual ~TensorRtGraph() = default;
};

// An execution context and its stream. Everything but the memory and synchronize() is queued and returns at
// once; what went wrong on the device may be told by any later call.
class TensorRtContext {
 public:
  virtual ~TensorRtContext() = default;  // waits for the stream

  // Aligned to 256. RESOURCE_EXHAUSTED when there is none.
  virtual Result<std::byte*> allocate(TensorRtMemory kind, std::size_t bytes) = 0;
  virtual void release(TensorRtMemory kind, std::byte* memory) noexcept = 0;

  virtual Status select_profile(std::size_t profile) = 0;
  virtual Status set_input_shape(std::size_t input, const Shape& shape) = 0;
  // Of the input shapes that are set; UNIMPLEMENTED where it depends on the inputs' values.
  virtual Result<Shape> output_shape(std::size_t output) = 0;
  virtual Status bind_input(std::size_t input, std::byte* device) = 0;
  virtual Status bind_output(std::size_t output, std::byte* device) = 0;

  virtual Status upload(std::byte* device, const std::byte* pinned, std::size_t bytes) = 0;
  virtual Status download(std::byte* pinned, const std::byte* device, std::size_t bytes) = 0;
  virtual Status enqueue() = 0;
  virtual Status synchronize() = 0;

  // What is queued in between is recorded, not run. end_capture() ends it in every case.
  virtual Status begin_capture() = 0;
  virtual Result<std::unique_ptr<TensorRtGraph>> end_capture() = 0;
  virtual Status launch(TensorRtGraph& graph) = 0;
};

class TensorRtEngine {
 public:
  virtual ~TensorRtEngine() = default;
  virtual const TensorRtSignature& signature() const = 0;
  virtual Result<std::unique_ptr<TensorRtContext>> make_context() = 0;
};

// What the library executes with, and where: an engine is of exactly these.
struct TensorRtDevice {
  std::string runtime;  // "tensorrt" or "tensorrt_rtx", as the Python packages that build engines
  std::string version;  // "11.1.0"
  std::string gpu;      // "NVIDIA H200"
  int compute_major = 0, compute_minor = 0;
};

// libheadrace_tensorrt.so has three functions. Both sides are built from one tree: a number says so.
inline constexpr int kTensorRtAbi = 2;
using TensorRtAbiFunction = int();                       // headrace_tensorrt_abi
using TensorRtDeviceFunction = Status(TensorRtDevice*);  // headrace_tensorrt_device
using TensorRtOpenFunction =
    Status(const std::string& path,
           std::shared_ptr<TensorRtEngine>* engine);  // headrace_tensorrt_open

}  // namespace headrace
