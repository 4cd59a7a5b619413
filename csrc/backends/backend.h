// Backend: a runtime that executes models. Three steps: a backend loads an artifact into a Model;
// the Model makes Instances; an Instance runs batches. Backends know tensors, not requests: batching
// gathers rows into the memory an Instance offers and splits what it answers.
//
// Threads: Model is immutable and shared. An Instance belongs to one thread at a time. No exception
// leaves a backend.
//
//   std::unique_ptr<Instance> instance = *model.make_instance();
//   std::span<std::byte> memory = *instance->input(0, Shape{8, 16}, 8 * 16 * 4);
//   ...fill memory...
//   Status status = instance->run();
//   TensorView logits = *instance->output(0);     // valid until the next input()
// ---------------------------------------------------------------------------------------------
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "base/status.h"
#include "core/model_spec.h"
#include "core/tensor.h"

namespace headrace {

// An output of a run. `owner` is set when the bytes may be kept by taking a reference; when it is
// empty they belong to the Instance and are overwritten by its next run, so they must be copied.
struct BackendOutput {
  TensorView tensor;
  BufferRef owner;
};

class Instance {
 public:
  virtual ~Instance() = default;

  // Memory for input `index` (of Model::inputs()) of the next run: `bytes` bytes, aligned to 64
  // where the runtime allows. `shape` is the whole batch's. Filled by the caller before run().
  virtual Result<std::span<std::byte>> input(std::size_t index, const Shape& shape,
                                             std::size_t bytes) = 0;
  // Input `index` of the next run is read from where it lies: nothing is copied where the runtime can do so.
  // `tensor` stays as it is until the run has ended.
  virtual Status lend(std::size_t index, const TensorView& tensor) {
    Result<std::span<std::byte>> memory = input(index, tensor.shape, tensor.data.size());
    if (!memory) return memory.error();
    std::copy(tensor.data.begin(), tensor.data.end(), memory->begin());
    return {};
  }
  // The next run has no input `index` (an optional input that every request of the batch left out).
  virtual Status omit(std::size_t index) = 0;
  virtual Status run() = 0;
  // Output `index` (of Model::outputs()) of the last run, valid until the next input() or omit().
  virtual Result<BackendOutput> output(std::size_t index) = 0;
};

class Model {
 public:
  virtual ~Model() = default;
  // The artifact's own signature, batch dimension included, -1 = dynamic.
  virtual const std::vector<TensorSpec>& inputs() const = 0;
  virtual const std::vector<TensorSpec>& outputs() const = 0;
  // For people: runtime, device, precision, threads ("OpenVINO 2026.4.1 CPU f32, 1 thread").
  virtual std::string description() const = 0;
  // Any thread; again, too, in the place of an instance that was dropped because it was sick.
  virtual Result<std::unique_ptr<Instance>> make_instance() = 0;
  // Whether a short run may take place on an I/O thread: it waits for no lock of the interpreter, no
  // other process, no device.
  virtual bool runs_anywhere() const { return false; }
};

}  // namespace headrace
