// ModelVersion: one loaded version of a model: its signature, queue, instances and statistics. It
// checks each request against the signature on the I/O thread (so a malformed request costs no
// queue), queues it, and answers it from an instance thread.
//
// Life: create -> warm_up (each instance, on the loader's thread) -> start -> [serves] -> close.
// Short models (ShortRuns) are executed by the I/O thread that brings the requests, with an instance
// that waits (Batcher::borrow).
// Threads: submit() from any I/O thread; the rest from the control plane, one call at a time, never
// from an instance thread (it would wait for itself).
// Invariants: after start() every submitted request is answered exactly once, also through close()
// and backend failures; no instance thread is left after close(), and no submitted request
// unanswered. A request that makes its batch fail fails alone: its batch-mates are executed again,
// each by itself.
// An instance that fails again and again, and its probe too (InstanceHealth), leaves service: its
// thread drops it and makes another, while the other instances serve on. While none is left, requests
// are refused (UNAVAILABLE naming the fault) and ready() is false.
//
//   Result<std::shared_ptr<ModelVersion>> version = ModelVersion::create(spec, options, model);
//   (*version)->warm_up(inputs);
//   (*version)->start();
// ---------------------------------------------------------------------------------------------
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "backends/backend.h"
#include "batching/admission.h"
#include "batching/batcher.h"
#include "core/servable.h"
#include "serving/instance_health.h"
#include "serving/model_statistics.h"
#include "serving/probe_sample.h"
#include "serving/reaper.h"
#include "serving/release_gate.h"
#include "serving/short_runs.h"

namespace headrace {

// What becomes of a sick instance.
struct InstanceEvent {
  enum class Kind : uint8_t {
    kQuarantined,    // it left service; `reason`: its fault
    kRebuildFailed,  // or the new one's probe did; `reason`: why
    kReturned,       // a new one serves in its place; `reason`: of the old one's
  };
  Kind kind;
  std::size_t instance;
  std::size_t in_service;  // of the version's, after it
  Status reason;
};

struct ModelVersionOptions {
  BatchPolicy batch;
  uint32_t instances = 1;
  AdmissionPolicy admission{};
  HealthPolicy health{};
  // Called by instance threads, one at a time each; must not block.
  std::function<void(const InstanceEvent&)> on_instance_event{};
};

struct HealthValues {
  std::size_t instances = 0;
  std::size_t in_service = 0;
  uint64_t quarantines = 0;
  std::string fault;  // of the last that left service or could not be rebuilt; empty: all serve
};

// What admission goes by, now, and what it has done.
struct AdmissionValues {
  std::array<uint64_t, kRefusals> refused{};  // by Refusal
  Nanoseconds estimated_wait{0};              // of a request of the lowest priority
  double correction = 1;
  uint64_t batches = 0;  // that the cost model has seen
  Nanoseconds batch_fixed{0};
  Nanoseconds batch_row{0};
  Nanoseconds batch_p95{0};           // of the largest
  int64_t batch_limit = 1;            // rows of the largest
  std::size_t concurrency_limit = 0;  // 0: not limited
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
  // They are checked like a request's. The smallest that succeed are what instances are probed with;
  // without any, zeros. Errors: the check's, or the backend's.
  Status warm_up(const std::vector<InputTensor>& inputs);
  // Starts the instance threads. Requests submitted before wait in the queue. Throws
  // std::system_error when the system gives no thread; close() is then still right.
  void start();

  void submit(RequestPtr request) override;
  void submit_together(std::span<RequestPtr> requests) override;
  const ModelSpec& spec() const override { return *spec_; }
  bool ready() const noexcept override { return batcher_->in_service() > 0; }

  // Stops taking requests; drains or refuses what is queued; waits for the instance threads.
  // True when everything was answered before `deadline`; past it, what is still queued is refused
  // (a batch that is executing is always waited for). Without start(), what is queued is refused.
  // Again: nothing left to do.
  bool close(Batcher::Close how, TimePoint deadline = kNever);

  // Whether an answer with a NaN or an infinity in it is a failure (INTERNAL naming the output) from
  // now on. Any time, any thread.
  void require_finite_outputs(bool required) {
    finite_outputs_.store(required, std::memory_order_relaxed);
  }

  const Model& model() const { return *model_; }
  StatisticsValues statistics() const { return statistics_.read(); }
  AdmissionValues admission() const;
  HealthValues health() const;
  std::size_t pending() const;
  // Submitted and not yet answered.
  std::size_t in_flight() const { return in_flight_.load(std::memory_order_acquire); }
  std::size_t instances() const { return instances_.size(); }

 private:
  ModelVersion(ModelSpec spec, ModelVersionOptions options, std::shared_ptr<Model> model,
               Reaper& reaper);
  void run_instance(std::size_t number);
  // Counts the request in and checks it; `before` will be queued before it. False: it was answered.
  bool admit(RequestPtr& request, std::span<const RequestPtr> before, TimePoint now);
  // Why not to take the request, which would be late.
  Status refusal(Request& request, std::span<const RequestPtr> before, TimePoint now);
  // Executes queued batches on this thread while they are short and an instance waits.
  void run_here(std::size_t requests);
  // Executes the batch and sends its answers.
  void serve(Batch& batch, std::size_t instance, bool on_io_thread);
  // Fills the response of every request of the batch, good or bad, and counts it. OK: one at least
  // was served; otherwise why the batch failed.
  Status execute(Batch& batch, Instance& instance);
  // gather, run, split. Errors: those of the backend; INTERNAL for an exception.
  Status run_batch(Batch& batch, Instance& instance, RequestTimes& times) noexcept;
  // The same for inputs that nobody waits for.
  Status run_sample(const std::vector<InputTensor>& inputs, std::span<Instance* const> instances);

  // model_recovery.cc
  // Probes the suspect instance and, if it is sick, replaces it. On its thread. False: the version
  // is closing and the instance is gone.
  bool recover(std::size_t number);
  Status probe(Instance& instance);
  // It had nothing to do for a while: is it still well?
  void probe_idle(std::size_t number);
  Result<std::unique_ptr<Instance>> make_instance() noexcept;
  // False: the version is closing.
  bool wait_to_rebuild(TimePoint until);
  void tell(InstanceEvent::Kind kind, std::size_t instance, const Status& reason);

  void succeed(Batch& batch, const RequestTimes& times);
  void fail(Request& request, Status status, FailureReason reason);
  // Answers them and stops counting them in flight.
  void deliver(std::vector<RequestPtr>& requests);
  // Answers a request that never reached an instance, on the thread that noticed.
  void refuse(RequestPtr request, Status status, FailureReason reason);

  std::shared_ptr<const ModelSpec> spec_;
  std::shared_ptr<Model> model_;
  Reaper& reaper_;
  ModelStatistics statistics_;
  // Counted from submit() on. An instance's answers leave it before they are sent, so that who has
  // an answer finds it not counted; refusals after, so that at 0 no answer is under way outside the
  // instance threads, which close() joins.
  std::atomic<std::size_t> in_flight_{0};
  std::atomic<bool> closed_{false};  // refuses early, so that close() need not outwait new submits
  std::atomic<bool> finite_outputs_{false};
  Admission admission_;
  std::unique_ptr<ReleaseGate> gate_;  // preserve_ordering over several instances; otherwise null
  std::unique_ptr<Batcher> batcher_;
  std::vector<std::unique_ptr<Instance>> instances_;  // null while it is being rebuilt
  std::vector<InstanceHealth> health_;                // by instance, its holder's
  ShortRuns short_runs_;

  std::function<void(const InstanceEvent&)> on_instance_event_;
  const Nanoseconds rebuild_pushback_;
  const Nanoseconds probe_idle_;            // zero: never
  std::optional<ProbeSample> sample_;       // not changed after start()
  std::atomic<bool> sample_proven_{false};  // an instance ran it

  mutable std::mutex mutex_;
  std::condition_variable thread_ended_;
  std::condition_variable closing_;
  std::size_t running_ = 0;   // guarded by mutex_; instance threads
  uint64_t quarantines_ = 0;  // guarded by mutex_
  std::string fault_;         // guarded by mutex_

  std::vector<std::thread> threads_;  // last: they use everything above
};

}  // namespace headrace
