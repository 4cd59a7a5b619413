#include "serving/model_version.h"

#include <pthread.h>

#include <algorithm>
#include <exception>
#include <new>
#include <utility>

#include "batching/gather_split.h"
#include "core/classification.h"
#include "serving/check_request.h"
#include "serving/finite.h"
#include "serving/signature.h"

namespace headrace {
namespace {

FailureReason reason_of(const Status& refusal) {
  return refusal.code() == StatusCode::kCancelled ? FailureReason::kCancelled
                                                  : FailureReason::kRejected;
}

// Classification of what the requests asked for, after split.
Status classify_outputs(const Batch& batch, const ModelSpec& spec) {
  for (const RequestPtr& request : batch.requests) {
    for (std::size_t i = 0; i < request->outputs.size(); ++i) {
      const int64_t k = request->outputs[i].classification;
      if (k <= 0) continue;
      const TensorSpec& output = spec.outputs[*spec.find_output(request->outputs[i].name)];
      Status status = classify(output, spec.batching(), k, request->response.outputs[i]);
      if (!status) return status;
    }
  }
  return {};
}

// Takes back the request of a warm-up, which nobody waits for.
class Discard final : public Completion {
 public:
  void complete(RequestPtr) noexcept override {}
};

Status check_finite(const Batch& batch, const ModelSpec& spec) {
  for (const RequestPtr& request : batch.requests) {
    for (const OutputTensor& output : request->response.outputs) {
      if (all_finite(output.tensor)) continue;
      return Status::internal("model '" + spec.name + "', version " + spec.version_text +
                              ": output '" + std::string(output.name) +
                              "' has a value that is not finite");
    }
  }
  return {};
}

}  // namespace

Result<std::shared_ptr<ModelVersion>> ModelVersion::create(ModelSpec spec,
                                                           ModelVersionOptions options,
                                                           std::shared_ptr<Model> model,
                                                           Reaper& reaper) {
  if (Status status = bind_signature(spec, *model); !status) return status;
  if (Status status = check_policy(options.batch, spec); !status) return status;
  if (options.instances == 0) {
    return Status::invalid_argument("model '" + spec.name + "', at least one instance is needed");
  }
  const uint32_t count = options.instances;
  const HealthPolicy health = options.health;
  std::shared_ptr<ModelVersion> version(
      new ModelVersion(std::move(spec), std::move(options), std::move(model), reaper));
  for (uint32_t i = 0; i < count; ++i) {
    Result<std::unique_ptr<Instance>> instance = version->model_->make_instance();
    if (!instance) return instance.error();
    version->instances_.push_back(std::move(*instance));
    version->health_.emplace_back(health, i + 1);
  }
  return version;
}

ModelVersion::ModelVersion(ModelSpec spec, ModelVersionOptions options,
                           std::shared_ptr<Model> model, Reaper& reaper)
    : spec_(std::make_shared<const ModelSpec>(std::move(spec))),
      model_(std::move(model)),
      reaper_(reaper),
      statistics_(options.batch.latency_budget),
      admission_(options.admission, options.instances, options.batch.max_rows),
      on_instance_event_(std::move(options.on_instance_event)),
      rebuild_pushback_(options.health.backoff),
      probe_idle_(options.health.probe) {
  if (options.batch.preserve_ordering && options.instances > 1) {
    gate_ = std::make_unique<ReleaseGate>(
        [this](std::vector<RequestPtr>& requests) { deliver(requests); });
  }
  const auto refused = [this](RequestPtr request, Status status) {
    const FailureReason reason = reason_of(status);
    if (status.code() == StatusCode::kDeadlineExceeded) {
      admission_.learn(request->times.queued, request->times.expected, Clock::now());
    }
    refuse(std::move(request), std::move(status), reason);
  };
  batcher_ = std::make_unique<Batcher>(std::move(options.batch), refused, options.instances);
  reaper_.add(*batcher_);
}

ModelVersion::~ModelVersion() { close(Batcher::Close::kRefuse); }

Status ModelVersion::warm_up(const std::vector<InputTensor>& inputs) {
  std::vector<Instance*> instances;
  for (const std::unique_ptr<Instance>& instance : instances_) instances.push_back(instance.get());
  if (Status status = run_sample(inputs, instances); !status) return status;
  std::size_t bytes = 0;
  for (const InputTensor& input : inputs) bytes += input.tensor.data.size();
  if (bytes <= ProbeSample::kMostBytes && (!sample_ || bytes < sample_->bytes())) {
    sample_.emplace(inputs);
    sample_proven_ = true;
  }
  return {};
}

Status ModelVersion::run_sample(const std::vector<InputTensor>& inputs,
                                std::span<Instance* const> instances) {
  Discard discard;
  Batch batch;
  batch.requests.emplace_back(new Request(discard));
  Request& request = *batch.requests.front();
  request.id = "warm-up";
  request.inputs = inputs;
  if (Status status = check_request(*spec_, request); !status) return status;
  batch.rows = request.rows;
  for (Instance* instance : instances) {
    RequestTimes times;
    if (Status status = run_batch(batch, *instance, times); !status) return status;
  }
  return {};
}

void ModelVersion::start() {
  if (!sample_) sample_ = ProbeSample::zeros(*spec_);
  threads_.reserve(instances_.size());
  for (std::size_t i = 0; i < instances_.size(); ++i) {
    // The lock holds the new thread's end back until it is counted.
    const std::lock_guard lock(mutex_);
    threads_.emplace_back([this, i] { run_instance(i); });
    ++running_;
    // At most 15 characters; the number matters more than the name's end.
    const std::string number = std::to_string(i);
    const std::string name = spec_->name.substr(0, 14 - number.size()) + ':' + number;
    pthread_setname_np(threads_.back().native_handle(), name.c_str());
  }
}

Status ModelVersion::refusal(Request& request, std::span<const RequestPtr> before, TimePoint now) {
  const BatchPolicy& policy = batcher_->policy();
  const std::size_t level = policy.level_of(request.priority);
  Load load = batcher_->load(level, now);
  for (const RequestPtr& other : before) {
    if (policy.level_of(other->priority) <= level) {
      load.rows_ahead += policy.max_rows <= 1 ? 1 : other->rows;
    }
  }
  return admission_.decide(policy, batcher_->cost(), load, request.deadline, request.times.arrived,
                           request.rows, now, request.times.expected);
}

bool ModelVersion::admit(RequestPtr& request, std::span<const RequestPtr> before, TimePoint now) {
  request->times.queued = now;
  if (request->times.arrived == TimePoint{}) request->times.arrived = now;
  if (closed_.load(std::memory_order_relaxed)) {
    statistics_.record_failure(FailureReason::kRejected, request->times, now);
    answer(std::move(request), Batcher::stopping());
    return false;
  }
  const std::size_t others = in_flight_.fetch_add(1, std::memory_order_relaxed);
  request->spec = spec_;
  request->response.model_name = spec_->name;
  request->response.model_version = spec_->version_text;
  if (Status status = admission_.decide_in_flight(others); !status) {
    refuse(std::move(request), std::move(status), FailureReason::kRejected);
    return false;
  }
  // Before its tensors are looked at, as one row; then with its rows.
  const bool timed = admission_.applies(batcher_->policy(), request->deadline);
  if (timed) {
    if (Status status = refusal(*request, before, now); !status) {
      refuse(std::move(request), std::move(status), FailureReason::kRejected);
      return false;
    }
  }
  if (Status status = check_request(*spec_, *request); !status) {
    refuse(std::move(request), std::move(status), FailureReason::kOther);
    return false;
  }
  if (timed && request->rows > 1) {
    if (Status status = refusal(*request, before, now); !status) {
      refuse(std::move(request), std::move(status), FailureReason::kRejected);
      return false;
    }
  }
  return true;
}

void ModelVersion::submit(RequestPtr request) {
  if (!admit(request, {}, Clock::now())) return;
  const TimePoint expire_at = batcher_->push(std::move(request));
  if (expire_at != kNever) reaper_.wake_at(*batcher_, expire_at);
}

void ModelVersion::submit_together(std::span<RequestPtr> requests) {
  const TimePoint now = Clock::now();
  std::size_t admitted = 0;
  std::size_t largest = 0;
  for (RequestPtr& request : requests) {
    if (!admit(request, requests.first(admitted), now)) continue;
    largest = std::max(largest, request->message.size());
    std::swap(requests[admitted++], request);
  }
  if (admitted == 0) return;
  const auto rows = static_cast<std::size_t>(batcher_->policy().max_rows);
  const bool here =
      model_->runs_anywhere() && short_runs_.allows(largest * std::min(admitted, rows), now);
  const TimePoint expire_at = batcher_->push(requests.first(admitted), !here);
  if (expire_at != kNever) reaper_.wake_at(*batcher_, expire_at);
  if (here) run_here(admitted);
}

void ModelVersion::run_here(std::size_t requests) {
  thread_local Batch batch;  // keeps the capacity of its vector
  Batcher::Loan loan;
  std::size_t done = 0;
  // No more than was brought: others' requests are the instance's work.
  bool suspect = false;  // then its own thread is to see to it
  while (done < requests && !suspect && batcher_->borrow(batch, loan)) {
    done += batch.requests.size();
    serve(batch, loan.instance, true);
    suspect = health_[loan.instance].suspect();
  }
  batcher_->give_back(loan, suspect);
}

bool ModelVersion::close(Batcher::Close how, TimePoint deadline) {
  closed_.store(true, std::memory_order_relaxed);
  batcher_->close(threads_.empty() ? Batcher::Close::kRefuse : how);
  bool in_time = true;
  if (!threads_.empty()) {
    std::unique_lock lock(mutex_);
    closing_.notify_all();
    const auto ended = [&] { return running_ == 0; };
    if (deadline == kNever) {
      thread_ended_.wait(lock, ended);
    } else {
      in_time = thread_ended_.wait_until(lock, deadline, ended);
    }
    lock.unlock();
    if (!in_time) batcher_->close(Batcher::Close::kRefuse);
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }
  reaper_.remove(*batcher_);
  // Left now are only submit() calls on their way out with a refusal: no longer than microseconds.
  while (in_flight_.load(std::memory_order_acquire) != 0) std::this_thread::yield();
  return in_time;
}

AdmissionValues ModelVersion::admission() const {
  const BatchPolicy& policy = batcher_->policy();
  const CostModel& cost = batcher_->cost();
  AdmissionValues values;
  for (std::size_t i = 0; i < kRefusals; ++i) {
    values.refused[i] = admission_.refused(static_cast<Refusal>(i));
  }
  values.correction = admission_.correction();
  values.concurrency_limit = admission_.concurrency_limit();
  values.batches = cost.batches();
  values.batch_fixed = cost.fixed();
  values.batch_row = cost.per_row();
  values.batch_limit = batch_limit(policy, &cost);
  values.batch_p95 = cost.p95(values.batch_limit);
  const std::size_t lowest = policy.level_of(policy.priority_levels);
  const auto next = estimate(policy, cost, batcher_->load(lowest, Clock::now()), 1);
  if (next) values.estimated_wait = next->wait;
  return values;
}

std::size_t ModelVersion::pending() const { return batcher_->pending(); }

void ModelVersion::serve(Batch& batch, std::size_t instance, bool on_io_thread) {
  std::size_t bytes = 0;
  for (const RequestPtr& request : batch.requests) bytes += request->message.size();
  // On an I/O thread by CPU time: that it was not scheduled says nothing about the model.
  const Nanoseconds cpu = on_io_thread ? thread_cpu_time() : Nanoseconds{0};
  const Status status = execute(batch, *instances_[instance]);
  const TimePoint now = Clock::now();
  if (status) {
    health_[instance].succeeded();
  } else if (blames_instance(status)) {
    health_[instance].failed(status, now);
  }
  Nanoseconds took = now - batch.taken;
  if (on_io_thread && took > ShortRuns::kShort) took = thread_cpu_time() - cpu;
  short_runs_.record(bytes, took, now, on_io_thread);
  // Of short batches some samples are enough.
  if (took > ShortRuns::kShort || !batcher_->cost().learned() || batch.sequence % 8 == 0) {
    batcher_->executed(batch.rows, took);
  }
  const RequestTimes& times = batch.requests.front()->times;
  if (times.expected != TimePoint{}) admission_.learn(times.queued, times.expected, batch.taken);
  if (gate_ != nullptr) {
    gate_->release(batch.sequence, std::move(batch.requests));
  } else {
    deliver(batch.requests);
  }
  batch.clear();
}

void ModelVersion::run_instance(std::size_t number) {
  Batch batch;
  InstanceHealth& health = health_[number];
  for (;;) {
    const TimePoint idle_until =
        probe_idle_ > Nanoseconds{0} ? saturating_add(Clock::now(), probe_idle_) : kNever;
    const bool pulled = batcher_->pull(batch, number, idle_until);
    if (pulled) {
      serve(batch, number, false);
    } else if (!health.suspect()) {
      if (Clock::now() < idle_until) break;  // the version closes
      probe_idle(number);
    }
    if (health.suspect() && !recover(number)) break;
  }
  const std::lock_guard lock(mutex_);
  --running_;
  thread_ended_.notify_all();
}

Status ModelVersion::execute(Batch& batch, Instance& instance) {
  RequestTimes times;
  times.batched = batch.taken;
  Status status = run_batch(batch, instance, times);
  if (status) {
    succeed(batch, times);
    return {};
  }
  if (batch.requests.size() == 1) {
    fail(*batch.requests.front(), status, FailureReason::kBackend);
    return status;
  }

  // One request may have spoilt the batch for all: each gets the answer that it gets alone.
  const Status together = status;
  bool served = false;
  Batch alone;
  for (RequestPtr& request : batch.requests) {
    if (request->cancelled()) {
      fail(*request, Status::cancelled(""), FailureReason::kCancelled);
      continue;
    }
    alone.rows = request->rows;
    alone.requests.push_back(std::move(request));
    status = run_batch(alone, instance, times);
    if (status) {
      served = true;
      succeed(alone, times);
    } else {
      fail(*alone.requests.front(), std::move(status), FailureReason::kBackend);
    }
    request = std::move(alone.requests.front());
    alone.clear();
  }
  return served ? Status() : together;
}

Status ModelVersion::run_batch(Batch& batch, Instance& instance, RequestTimes& times) noexcept try {
  Status status = gather(batch, *spec_, instance);
  times.input_done = Clock::now();
  if (status) status = instance.run();
  times.infer_done = Clock::now();
  if (status) status = split(batch, *spec_, instance);
  if (status && finite_outputs_.load(std::memory_order_relaxed)) {
    status = check_finite(batch, *spec_);
  }
  if (status) status = classify_outputs(batch, *spec_);
  times.done = Clock::now();
  return status;
} catch (const std::bad_alloc&) {
  return Status::resource_exhausted("model '" + spec_->name + "': out of memory");
} catch (const std::exception& e) {
  return Status::internal("model '" + spec_->name + "': " + e.what());
} catch (...) {
  return Status::internal("model '" + spec_->name + "': the backend threw an unknown exception");
}

void ModelVersion::succeed(Batch& batch, const RequestTimes& times) {
  statistics_.record_batch(batch.rows, batch.requests.size(), times);
  for (const RequestPtr& request : batch.requests) {
    request->times.batched = times.batched;
    request->times.input_done = times.input_done;
    request->times.infer_done = times.infer_done;
    request->times.done = times.done;
    request->batch_rows = batch.rows;
    statistics_.record_success(request->times);
    if (admission_.limits_concurrency()) {
      admission_.answered(times.done - request->times.queued, times.done - times.batched,
                          in_flight(), times.done);
    }
  }
}

void ModelVersion::fail(Request& request, Status status, FailureReason reason) {
  statistics_.record_failure(reason, request.times, Clock::now());
  request.response.outputs.clear();
  request.response.status = std::move(status);
}

void ModelVersion::deliver(std::vector<RequestPtr>& requests) {
  in_flight_.fetch_sub(requests.size(), std::memory_order_release);
  for (RequestPtr& request : requests) answer(std::move(request));
  requests.clear();
}

void ModelVersion::refuse(RequestPtr request, Status status, FailureReason reason) {
  statistics_.record_failure(reason, request->times, Clock::now());
  answer(std::move(request), std::move(status));
  in_flight_.fetch_sub(1, std::memory_order_release);
}

}  // namespace headrace
