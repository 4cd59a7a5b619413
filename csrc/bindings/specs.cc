#include <pybind11/stl.h>

#include <algorithm>

#include "batching/admission.h"
#include "batching/batch_policy.h"
#include "bindings/bindings.h"
#include "bindings/python_status.h"
#include "core/model_spec.h"
#include "serving/instance_health.h"

namespace py = pybind11;
using namespace py::literals;

namespace headrace {
namespace {

DType dtype_or_raise(const std::string& name) {
  const DType dtype = dtype_from_name(name);
  if (dtype == DType::kInvalid) {
    raise_unless_ok(Status::invalid_argument("'" + name + "' is no datatype of the protocol"));
  }
  return dtype;
}

TensorSpec make_tensor_spec(std::string name, const std::string& datatype,
                            std::vector<int64_t> dims, bool optional,
                            std::vector<std::string> labels,
                            std::optional<std::vector<int64_t>> reshape) {
  TensorSpec spec;
  spec.name = std::move(name);
  spec.dtype = dtype_or_raise(datatype);
  spec.dims = std::move(dims);
  spec.optional = optional;
  spec.labels = std::move(labels);
  spec.reshape = std::move(reshape);
  return spec;
}

ModelSpec make_model_spec(std::string name, int64_t version, int64_t max_batch_size,
                          std::vector<TensorSpec> inputs, std::vector<TensorSpec> outputs) {
  ModelSpec spec;
  spec.name = std::move(name);
  spec.version = version;
  spec.version_text = std::to_string(version);
  spec.max_batch_size = max_batch_size;
  spec.inputs = std::move(inputs);
  spec.outputs = std::move(outputs);
  return spec;
}

QueuePolicy make_queue_policy(const std::string& action, uint64_t default_timeout_us,
                              bool allow_timeout_override, uint32_t max_queue_size) {
  QueuePolicy policy;
  if (action == "DELAY") {
    policy.timeout_action = QueuePolicy::TimeoutAction::kDelay;
  } else if (action != "REJECT") {
    raise_unless_ok(
        Status::invalid_argument("timeout_action is REJECT or DELAY, not '" + action + "'"));
  }
  policy.default_timeout = Microseconds(default_timeout_us);
  policy.allow_timeout_override = allow_timeout_override;
  policy.max_queue_size = max_queue_size;
  return policy;
}

BatchPolicy make_batch_policy(int64_t max_rows, std::vector<int64_t> preferred,
                              uint64_t max_queue_delay_us, bool preserve_ordering,
                              uint64_t priority_levels, uint64_t default_priority_level,
                              const std::optional<QueuePolicy>& default_queue_policy,
                              std::map<uint64_t, QueuePolicy> priority_queue_policy,
                              uint64_t latency_budget_us) {
  BatchPolicy policy;
  policy.latency_budget = Microseconds(latency_budget_us);
  policy.max_rows = std::max<int64_t>(1, max_rows);
  policy.preferred_batch_size = std::move(preferred);
  std::sort(policy.preferred_batch_size.begin(), policy.preferred_batch_size.end());
  policy.max_queue_delay = Microseconds(max_queue_delay_us);
  policy.preserve_ordering = preserve_ordering;
  policy.priority_levels = priority_levels;
  policy.default_priority_level = default_priority_level;
  if (default_queue_policy) policy.default_queue_policy = *default_queue_policy;
  policy.priority_queue_policy = std::move(priority_queue_policy);
  return policy;
}

AdmissionPolicy make_admission_policy(bool by_deadline, bool by_budget, uint64_t queue_target_us,
                                      uint64_t queue_interval_us, bool adaptive_concurrency) {
  return {by_deadline, by_budget, Microseconds(queue_target_us), Microseconds(queue_interval_us),
          adaptive_concurrency};
}

HealthPolicy make_health_policy(uint32_t failures, double backoff_s, double backoff_max_s,
                                double probe_s) {
  return {failures, nanoseconds_of(backoff_s), nanoseconds_of(std::max(backoff_s, backoff_max_s)),
          nanoseconds_of(probe_s)};
}

}  // namespace

void bind_specs(py::module_& module) {
  py::class_<TensorSpec>(module, "TensorSpec")
      .def(py::init(&make_tensor_spec), "name"_a, "datatype"_a, "dims"_a, py::kw_only(),
           "optional"_a = false, "labels"_a = std::vector<std::string>(), "reshape"_a = py::none())
      .def_readonly("name", &TensorSpec::name)
      .def_property_readonly("datatype",
                             [](const TensorSpec& s) { return std::string(dtype_name(s.dtype)); })
      .def_readonly("dims", &TensorSpec::dims)
      .def_readonly("optional", &TensorSpec::optional)
      .def("__repr__", [](const TensorSpec& s) {
        return "TensorSpec('" + s.name + "', '" + std::string(dtype_name(s.dtype)) + "', " +
               std::string(py::str(py::cast(s.dims))) + ")";
      });
  py::class_<ModelSpec>(module, "ModelSpec")
      .def(py::init(&make_model_spec), "name"_a, "version"_a, "max_batch_size"_a, "inputs"_a,
           "outputs"_a);
  py::class_<QueuePolicy>(module, "QueuePolicy")
      .def(py::init(&make_queue_policy), py::kw_only(), "timeout_action"_a = "REJECT",
           "default_timeout_us"_a = 0, "allow_timeout_override"_a = false, "max_queue_size"_a = 0);
  py::class_<BatchPolicy>(module, "BatchPolicy")
      .def(py::init(&make_batch_policy), py::kw_only(), "max_rows"_a = 1,
           "preferred_batch_size"_a = std::vector<int64_t>(), "max_queue_delay_us"_a = 0,
           "preserve_ordering"_a = false, "priority_levels"_a = 0, "default_priority_level"_a = 0,
           "default_queue_policy"_a = py::none(),
           "priority_queue_policy"_a = std::map<uint64_t, QueuePolicy>(),
           "latency_budget_us"_a = 0);
  py::class_<AdmissionPolicy>(module, "AdmissionPolicy")
      .def(py::init(&make_admission_policy), py::kw_only(), "by_deadline"_a = true,
           "by_budget"_a = true, "queue_target_us"_a = 0, "queue_interval_us"_a = 100000,
           "adaptive_concurrency"_a = false);
  py::class_<HealthPolicy>(module, "HealthPolicy")
      .def(py::init(&make_health_policy), py::kw_only(), "failures"_a = 5, "backoff_s"_a = 1.0,
           "backoff_max_s"_a = 60.0, "probe_s"_a = 0.0);
}

}  // namespace headrace
