// TensorRtInstance: runs batches on one execution context. For each batch it chooses the optimisation profile
// by the shapes, and keeps pinned and device memory that grows to the largest batch. Copies in, execution
// and copies out are queued on the context's stream; from the second run of the same shapes on they are one
// CUDA graph. An error of the device leaves nothing to be trusted: the instance then answers UNAVAILABLE until it is
// dropped and another is made.
//
// Threads: one at a time.
// ---------------------------------------------------------------------------------------------
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "backends/backend.h"
#include "backends/tensorrt/engine.h"

namespace headrace {

// Device and pinned memory of all instances of a model; `limit` (bytes on the device) 0: none.
struct TensorRtMeter {
  std::atomic<int64_t> device_bytes{0};
  std::atomic<int64_t> pinned_bytes{0};
  int64_t limit = 0;
};

struct TensorRtOptions {
  bool graphs = true;
  std::size_t max_graphs = 32;  // an instance; the one not used for longest goes
};

// The profile that takes these shapes with the least room to spare; nullopt: none does.
std::optional<std::size_t> choose_profile(const TensorRtSignature& signature,
                                          const std::vector<Shape>& shapes);

class TensorRtInstance final : public Instance {
 public:
  static Result<std::unique_ptr<TensorRtInstance>> create(std::shared_ptr<TensorRtEngine> engine,
                                                          std::shared_ptr<TensorRtMeter> meter,
                                                          const TensorRtOptions& options);
  ~TensorRtInstance() override;

  Result<std::span<std::byte>> input(std::size_t index, const Shape& shape,
                                     std::size_t bytes) override;
  Status omit(std::size_t index) override;  // INVALID_ARGUMENT: engines have no optional inputs
  // INVALID_ARGUMENT: an input is missing, or no profile takes the shapes. RESOURCE_EXHAUSTED: no memory.
  // Both leave the instance as it was. INTERNAL: the device failed; UNAVAILABLE after that.
  Status run() override;
  Result<BackendOutput> output(std::size_t index) override;

  std::size_t graph_count() const;

 private:
  struct Buffer {
    std::byte* pinned = nullptr;
    std::byte* device = nullptr;
    std::size_t pinned_size = 0, device_size = 0;
    std::size_t bytes = 0;  // of the batch at hand
  };
  // What was run with some shapes.
  struct Bucket {
    std::size_t profile = 0;
    std::vector<Shape> shapes;
    std::unique_ptr<TensorRtGraph> graph;
    bool refused = false;  // the runtime cannot record it
    uint64_t last_used = 0;
  };

  TensorRtInstance(std::shared_ptr<TensorRtEngine> engine, std::shared_ptr<TensorRtMeter> meter,
                   const TensorRtOptions& options);
  Status grow(TensorRtMemory kind, Buffer& buffer, std::size_t bytes);
  Status prepare(std::size_t profile);
  Status queue_work();
  Status execute();
  Bucket* find_bucket();
  void add_bucket();
  Status fail(const Status& cause);

  std::shared_ptr<TensorRtEngine> engine_;  // outlives the context
  std::shared_ptr<TensorRtMeter> meter_;
  TensorRtOptions options_;
  std::unique_ptr<TensorRtContext> context_;
  std::vector<Buffer> inputs_, outputs_;
  std::vector<Shape> shapes_, output_shapes_;
  std::vector<bool> given_;
  // What the context is set to; nullopt: nothing to rely on.
  std::optional<std::size_t> profile_;
  std::vector<Shape> set_shapes_;
  bool has_run_ = false;
  std::vector<Bucket> buckets_;
  uint64_t clock_ = 0;
  Status broken_;
};

}  // namespace headrace
