#include <pybind11/stl.h>

#include <condition_variable>
#include <mutex>
#include <thread>

#include "base/low_priority.h"
#include "bindings/bindings.h"
#include "bindings/numpy_tensor.h"
#include "bindings/python_status.h"
#include "serving/core_planner.h"
#include "serving/model_version.h"

namespace py = pybind11;
using namespace py::literals;

namespace headrace {
namespace {

// One for the process, for ever: model versions of any server may use it until the very end.
Reaper& reaper() {
  static auto* const instance = new Reaper();
  return *instance;
}

// Inputs for a request, in wire form; `kept` owns the bytes the tensors view, `names` the names.
struct Inputs {
  std::vector<InputTensor> tensors;
  std::vector<BufferRef> kept;
  std::vector<std::string> names;
};

Inputs inputs_of(const ModelSpec& spec, const py::dict& arrays) {
  Inputs inputs;
  inputs.names.reserve(arrays.size());
  for (const auto& [key, value] : arrays) {
    inputs.names.push_back(py::str(key));
    const std::string& name = inputs.names.back();
    const std::optional<std::size_t> index = spec.find_input(name);
    if (!index) {
      // The model version's to refuse, with the protocol's text.
      inputs.tensors.push_back({name, {}});
      continue;
    }
    const DType dtype = spec.inputs[*index].dtype;
    BackendOutput tensor = value_or_raise(tensor_of(value, dtype, "input '" + name + "'"));
    inputs.kept.push_back(std::move(tensor.owner));
    inputs.tensors.push_back({name, tensor.tensor});
  }
  return inputs;
}

// A request made in this process: what it views, and its answer. It lives until both the caller and the
// request's holder are done with it, whoever is last.
class PendingInfer final : public Completion, public std::enable_shared_from_this<PendingInfer> {
 public:
  PendingInfer(Inputs inputs, std::vector<std::string> outputs)
      : inputs_(std::move(inputs)), outputs_(std::move(outputs)) {}

  RequestPtr make_request() {
    self_ = shared_from_this();
    request_ = new Request(*this);
    request_->inputs = inputs_.tensors;
    for (const std::string& name : outputs_) request_->outputs.push_back({name, 0});
    return RequestPtr(request_);
  }

  void complete(RequestPtr request) noexcept override {
    const std::shared_ptr<PendingInfer> self = std::move(self_);
    const std::lock_guard lock(mutex_);
    answered_ = std::move(request);
    done_.notify_all();
  }

  // Null when the answer did not come in time; the request is then cancelled.
  Request* wait_until(TimePoint deadline) {
    std::unique_lock lock(mutex_);
    const auto come = [this] { return answered_ != nullptr; };
    if (deadline == kNever) {
      done_.wait(lock, come);
    } else if (!done_.wait_until(lock, deadline, come)) {
      request_->cancel();
      return nullptr;
    }
    return answered_.get();
  }

 private:
  const Inputs inputs_;
  const std::vector<std::string> outputs_;
  std::shared_ptr<PendingInfer> self_;
  Request* request_ = nullptr;
  std::mutex mutex_;
  std::condition_variable done_;
  RequestPtr answered_;  // guarded by mutex_
};

py::dict infer(ModelVersion& version, const py::dict& arrays,
               const std::vector<std::string>& outputs, std::optional<double> timeout_s) {
  const auto pending = std::make_shared<PendingInfer>(inputs_of(version.spec(), arrays), outputs);
  const Request* answered = nullptr;
  {
    const py::gil_scoped_release release;
    RequestPtr request = pending->make_request();
    request->model_name = version.spec().name;
    request->times.arrived = Clock::now();
    if (timeout_s) {
      request->deadline = saturating_add(request->times.arrived, nanoseconds_of(*timeout_s));
    }
    const TimePoint deadline = request->deadline;
    version.submit(std::move(request));
    answered = pending->wait_until(deadline);
  }
  if (answered == nullptr) raise_unless_ok(Status::deadline_exceeded("Deadline Exceeded"));
  raise_unless_ok(answered->response.status);
  py::dict result;
  for (const OutputTensor& output : answered->response.outputs) {
    result[py::str(std::string(output.name))] =
        value_or_raise(array_of(output.tensor, output.owner, false));
  }
  return result;
}

py::tuple pair_of(const DurationStat& stat) { return py::make_tuple(stat.count, stat.ns); }

py::dict histogram_of(const Histogram::Values& values) {
  return py::dict(
      "count"_a = values.count, "sum"_a = values.sum_ns,
      "buckets"_a = std::vector<uint64_t>(values.buckets.begin(), values.buckets.end()));
}

py::dict health_of(const HealthValues& health) {
  return py::dict("instances"_a = health.instances, "in_service"_a = health.in_service,
                  "quarantines"_a = health.quarantines, "fault"_a = health.fault);
}

py::dict statistics_of(const StatisticsValues& values, const AdmissionValues& admission,
                       const HealthValues& health) {
  py::dict failures;
  const char* const reasons[kFailureReasons] = {"REJECTED", "CANCELED", "BACKEND", "OTHER"};
  for (std::size_t i = 0; i < kFailureReasons; ++i) failures[reasons[i]] = values.failures[i];
  py::dict batches;
  for (const auto& [size, batch] : values.batches) {
    batches[py::int_(size)] =
        py::make_tuple(batch.executions, batch.input_ns, batch.infer_ns, batch.output_ns);
  }
  py::dict result(
      "last_inference_ms"_a = values.last_inference_ms,
      "inference_count"_a = values.inference_count, "execution_count"_a = values.execution_count,
      "success"_a = pair_of(values.success), "fail"_a = pair_of(values.fail),
      "queue"_a = pair_of(values.queue), "compute_input"_a = pair_of(values.compute_input),
      "compute_infer"_a = pair_of(values.compute_infer),
      "compute_output"_a = pair_of(values.compute_output));
  result["failures"] = failures;
  result["batches"] = batches;
  result["request_ns"] = histogram_of(values.request_ns);
  result["queue_ns"] = histogram_of(values.queue_ns);
  result["infer_ns"] = histogram_of(values.infer_ns);
  result["slo"] = py::make_tuple(values.slo_requests, values.slo_good);
  py::dict refused;
  const char* const refusals[kRefusals] = {"deadline", "slo", "queue", "concurrency"};
  for (std::size_t i = 0; i < kRefusals; ++i) refused[refusals[i]] = admission.refused[i];
  result["admission"] = py::dict(
      "refused"_a = refused, "estimated_wait_ns"_a = admission.estimated_wait.count(),
      "correction"_a = admission.correction, "batches"_a = admission.batches,
      "batch_fixed_ns"_a = admission.batch_fixed.count(),
      "batch_row_ns"_a = admission.batch_row.count(),
      "batch_p95_ns"_a = admission.batch_p95.count(), "batch_limit"_a = admission.batch_limit,
      "concurrency_limit"_a = admission.concurrency_limit);
  result["health"] = health_of(health);
  return result;
}

// `told`: called with the GIL by an instance's thread.
std::function<void(const InstanceEvent&)> teller(py::object told) {
  std::shared_ptr<py::object> held(new py::object(std::move(told)), [](py::object* object) {
    const py::gil_scoped_acquire gil;
    delete object;
  });
  return [held = std::move(held)](const InstanceEvent& event) {
    static constexpr const char* kKinds[] = {"quarantined", "rebuild failed", "returned"};
    const py::gil_scoped_acquire gil;
    try {
      (*held)(kKinds[static_cast<std::size_t>(event.kind)], event.instance, event.in_service,
              event.reason.message());
    } catch (py::error_already_set& error) {
      error.discard_as_unraisable("a model version's on_instance_event");
    }
  };
}

std::shared_ptr<ModelVersion> make_version(ModelSpec spec, std::shared_ptr<Model> model,
                                           BatchPolicy policy, uint32_t instances,
                                           AdmissionPolicy admission, HealthPolicy health,
                                           py::object on_instance_event) {
  ModelVersionOptions options;
  options.batch = std::move(policy);
  options.instances = instances;
  options.admission = admission;
  options.health = health;
  if (!on_instance_event.is_none()) {
    options.on_instance_event = teller(std::move(on_instance_event));
  }
  auto result = [&] {
    const py::gil_scoped_release release;
    return ModelVersion::create(std::move(spec), std::move(options), std::move(model), reaper());
  }();
  std::shared_ptr<ModelVersion> version = value_or_raise(std::move(result));
  // The end of a version joins its instance threads, which may wait for the GIL: whoever drops the
  // last reference must not hold it meanwhile. A model that drops its own version leaves the waiting
  // to another thread.
  ModelVersion* const raw = version.get();
  return {raw, [held = std::move(version)](ModelVersion*) mutable {
            if (running_python_model) {
              std::thread([last = std::move(held)]() mutable { last.reset(); }).detach();
              return;
            }
            const auto free = [&held] {
              // A model that waits for the interpreter when it ends must not do so at low priority.
              const bool anywhere = held->model().runs_anywhere();
              anywhere ? run_at_low_priority([&held] { held.reset(); }) : held.reset();
            };
            if (PyGILState_Check() == 0) return free();
            const py::gil_scoped_release release;
            free();
          }};
}

std::vector<std::tuple<std::string, uint32_t, uint32_t>> plan(
    uint32_t cores, const std::vector<std::tuple<std::string, uint32_t, uint32_t>>& wanted) {
  std::vector<InstanceDemand> demands;
  for (const auto& [model, instances, threads] : wanted)
    demands.push_back({model, instances, threads});
  std::vector<std::tuple<std::string, uint32_t, uint32_t>> result;
  for (const InstancePlan& entry : plan_cores(cores, demands)) {
    result.emplace_back(entry.model, entry.instances, entry.threads);
  }
  return result;
}

}  // namespace

void bind_serving(py::module_& module) {
  py::class_<Servable, std::shared_ptr<Servable>>(module, "Servable")
      .def_property_readonly("ready", &Servable::ready);
  py::class_<ModelVersion, Servable, std::shared_ptr<ModelVersion>>(module, "ModelVersion")
      .def(py::init(&make_version), "spec"_a, "model"_a, py::kw_only(), "policy"_a, "instances"_a,
           "admission"_a = AdmissionPolicy{}, "health"_a = HealthPolicy{},
           "on_instance_event"_a = py::none())
      .def(
          "warm_up",
          [](ModelVersion& self, const py::dict& arrays, bool low_priority) {
            const Inputs inputs = inputs_of(self.spec(), arrays);
            Status status;
            {
              const py::gil_scoped_release release;
              const auto run = [&] { status = self.warm_up(inputs.tensors); };
              low_priority&& self.model().runs_anywhere() ? run_at_low_priority(run) : run();
            }
            raise_unless_ok(status);
          },
          "inputs"_a, py::kw_only(), "low_priority"_a = false)
      .def("start", &ModelVersion::start, py::call_guard<py::gil_scoped_release>())
      .def("infer", &infer, "inputs"_a, py::kw_only(), "outputs"_a = std::vector<std::string>(),
           "timeout_s"_a = py::none())
      .def(
          "close",
          [](ModelVersion& self, bool drain, std::optional<double> timeout_s) {
            TimePoint deadline = kNever;
            if (timeout_s) deadline = saturating_add(Clock::now(), nanoseconds_of(*timeout_s));
            return self.close(drain ? Batcher::Close::kDrain : Batcher::Close::kRefuse, deadline);
          },
          py::kw_only(), "drain"_a = true, "timeout_s"_a = py::none(),
          py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("description",
                             [](const ModelVersion& self) { return self.model().description(); })
      .def_property_readonly("instances", &ModelVersion::instances)
      .def_property_readonly("pending", &ModelVersion::pending)
      .def("require_finite_outputs", &ModelVersion::require_finite_outputs, "required"_a)
      .def_property_readonly("in_flight", &ModelVersion::in_flight)
      .def_property_readonly("health",
                             [](const ModelVersion& self) { return health_of(self.health()); })
      .def("statistics", [](const ModelVersion& self) {
        return statistics_of(self.statistics(), self.admission(), self.health());
      });
  module.def("histogram_bounds_ns", [] {
    std::vector<uint64_t> bounds;
    for (std::size_t i = 0; i < Histogram::kBuckets; ++i)
      bounds.push_back(Histogram::upper_bound(i));
    return bounds;
  });
  module.def("available_cores", [] { return available_cores(); });
  module.def("plan_cores", &plan, "cores"_a, "demands"_a);
}

}  // namespace headrace
