// ModelVersion: one loaded version of a model: its signature, queue, instances and statistics. It
// checks each request against the signature on the I/O thread (so a malformed request costs no
// queue), queues it, and answers it from an instance thread.
//
// Life: create -> warm_up (each instance, on the loader's thread) -> start -> [serves] -> close.
// Threads: submit() from any I/O thread; the rest from the control plane, one call at a time.
// Invariants: after start() every submitted request is answered exactly once, also through close()
// and backend failures; no instance thread is left after close().
//
//   Result<std::shared_ptr<ModelVersion>> version = ModelVersion::create(spec, options, model);
//   (*version)->warm_up(inputs);
//   (*version)->start();
// ---------------------------------------------------------------------------------------------
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "backends/backend.h"
#include "batching/batcher.h"
#include "core/servable.h"
#include "serving/model_statistics.h"
#include "serving/reaper.h"

namespace headrace {

struct ModelVersionOptions {
  BatchPolicy batch;
  uint32_t instances = 1;
};

class ModelVersion final : public Servable {
 public:
  // `spec` must name every input of the model and some or all of its outputs, in any order, with
  // its dtypes and dims it can take. Errors: INVALID_ARGUMENT naming the first tensor that does not
  // fit; what make_instance() answered.
  static Result<std::shared_ptr<ModelVersion>> create(ModelSpec spec, ModelVersionOptions options,
                                                      std::shared_ptr<Model> model, Reaper& reaper);
  ~ModelVersion() override;  // close(kRefuse)

  // Runs the inputs (by name, batch dimension included) once on every instance, before start().
  Status warm_up(const std::vector<InputTensor>& inputs);
  void start();

  void submit(RequestPtr request) override;
  const ModelSpec& spec() const override { return *spec_; }

  // Stops taking requests; drains or refuses what is queued; waits for the instance threads.
  // True when everything was answered before `deadline`; past it, what is still queued is refused
  // (a batch that is executing is always waited for).
  bool close(Batcher::Close how, TimePoint deadline = kNever);

  const Model& model() const { return *model_; }
  StatisticsValues statistics() const { return statistics_.read(); }
  std::size_t pending() const;
  // Submitted and not yet answered.
  std::size_t in_flight() const { return in_flight_.load(std::memory_order_acquire); }
  std::size_t instances() const { return instances_.size(); }

 private:
  ModelVersion(ModelSpec spec, ModelVersionOptions options, std::shared_ptr<Model> model, Reaper& reaper);
  void run_instance(Instance& instance);
  void execute(Batch& batch, Instance& instance);
  void finish(RequestPtr request, Status status, FailureReason reason);

  std::shared_ptr<const ModelSpec> spec_;
  std::shared_ptr<Model> model_;
  Reaper& reaper_;
  ModelStatistics statistics_;
  std::atomic<std::size_t> in_flight_{0};
  std::unique_ptr<Batcher> batcher_;
  std::vector<std::unique_ptr<Instance>> instances_;
  std::vector<std::thread> threads_;  // last: they use everything above
};

// Checks a request against the signature and binds its inputs (`input_of`, `rows`). Texts are
// Triton's, prefixed "[request id: <id>] ". Exposed for tests.
Status check_request(const ModelSpec& spec, Request& request);

}  // namespace headrace
