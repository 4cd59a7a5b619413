#include <pybind11/stl.h>

#include <condition_variable>
#include <deque>
#include <mutex>

#include "bindings/bindings.h"
#include "bindings/numpy_tensor.h"
#include "bindings/python_status.h"
#include "routing/fallback_chain.h"
#include "routing/guarded.h"
#include "routing/hedged.h"

namespace py = pybind11;
using namespace py::literals;

namespace headrace {
namespace {

// One for the process, for ever: requests of any server may wait for it until the very end.
Alarms& alarms() {
  static auto* const instance = new Alarms();
  return *instance;
}

// Cases on their way to a thread of Python's, which asks for them.
class QueueingDesk final : public HumanDesk {
 public:
  bool take(std::shared_ptr<Case> taken) noexcept override {
    {
      const std::lock_guard lock(mutex_);
      if (closed_ || cases_.size() >= kBound) return false;
      cases_.push_back(std::move(taken));
    }
    come_.notify_one();
    return true;
  }
  std::shared_ptr<Case> next(TimePoint until) {
    std::unique_lock lock(mutex_);
    come_.wait_until(lock, until, [this] { return closed_ || !cases_.empty(); });
    if (cases_.empty()) return nullptr;
    std::shared_ptr<Case> first = std::move(cases_.front());
    cases_.pop_front();
    return first;
  }
  // What is queued may still be taken out; whoever waits is told at once.
  void close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    come_.notify_all();
  }

 private:
  static constexpr std::size_t kBound = 1024;
  std::mutex mutex_;
  std::condition_variable come_;
  std::deque<std::shared_ptr<Case>> cases_;  // guarded by mutex_
  bool closed_ = false;                      // guarded by mutex_
};

Triggers triggers_named(const std::optional<std::vector<std::string>>& names) {
  if (!names) return usual_triggers();
  Triggers triggers;
  for (const std::string& name : *names) {
    const std::optional<Trigger> trigger = trigger_named(name);
    if (!trigger) {
      raise_unless_ok(Status::invalid_argument("'" + name + "' is no trigger of a fallback"));
    }
    triggers.set(static_cast<std::size_t>(*trigger));
  }
  return triggers;
}

using Names = std::optional<std::vector<std::string>>;

ChainStep step_to(std::string name, std::shared_ptr<Link> link, const Names& on, double timeout_s) {
  ChainStep step;
  step.name = std::move(name);
  step.target = std::move(link);
  step.on = triggers_named(on);
  step.timeout = nanoseconds_of(timeout_s);
  return step;
}

ChainStep step_by_rule(std::string name, const std::shared_ptr<Servable>& servable,
                       const py::dict& arrays, const Names& on) {
  ChainStep step;
  step.name = std::move(name);
  step.on = triggers_named(on);
  const ModelSpec& spec = servable->spec();
  std::vector<Rule::Tensor> tensors;
  for (const auto& [key, value] : arrays) {
    Rule::Tensor& tensor = tensors.emplace_back();
    tensor.name = py::str(key);
    const std::optional<std::size_t> index = spec.find_output(tensor.name);
    if (!index) continue;  // the rule's to refuse
    BackendOutput row = value_or_raise(
        tensor_of(value, spec.outputs[*index].dtype, "rule for output '" + tensor.name + "'"));
    tensor.row = row.tensor;
    tensor.owner = std::move(row.owner);
  }
  step.rule =
      value_or_raise(Rule::make(std::make_shared<const ModelSpec>(spec), std::move(tensors)));
  return step;
}

ChainStep step_to_person(std::string name, std::shared_ptr<QueueingDesk> desk, std::string queue,
                         double wait_s, bool payload, const Names& on) {
  ChainStep step;
  step.name = std::move(name);
  step.desk = std::move(desk);
  step.queue = std::move(queue);
  step.timeout = nanoseconds_of(wait_s);
  step.payload = payload;
  step.on = triggers_named(on);
  return step;
}

Accept make_accept(std::string output, double confidence, const std::string& activation,
                   const std::string& measure) {
  Accept accept;
  accept.output = std::move(output);
  accept.threshold = static_cast<float>(confidence);
  if (activation == "softmax") {
    accept.activation = Activation::kSoftmax;
  } else if (activation == "sigmoid") {
    accept.activation = Activation::kSigmoid;
  } else if (activation != "none") {
    throw py::value_error("no activation '" + activation + "'");
  }
  if (measure == "margin") {
    accept.measure = Measure::kMargin;
  } else if (measure != "probability") {
    throw py::value_error("no measure '" + measure + "'");
  }
  return accept;
}

std::shared_ptr<FallbackChain> make_chain(std::shared_ptr<Servable> first, std::string name,
                                          std::vector<ChainStep> steps,
                                          std::optional<Accept> accept, double budget_s) {
  ChainOptions options;
  options.name = std::move(name);
  options.steps = std::move(steps);
  options.accept = std::move(accept);
  options.budget = nanoseconds_of(budget_s);
  return value_or_raise(FallbackChain::make(std::move(first), std::move(options), alarms()));
}

std::shared_ptr<Guarded> make_guarded(std::shared_ptr<Servable> servable, double failure_rate,
                                      uint32_t min_requests, uint32_t consecutive, double window_s,
                                      double open_s, double open_max_s, uint32_t probes) {
  BreakerOptions options;
  options.failure_rate = failure_rate;
  options.min_requests = min_requests;
  options.consecutive = consecutive;
  options.window = nanoseconds_of(window_s);
  options.open_for = nanoseconds_of(open_s);
  options.open_for_max = nanoseconds_of(open_max_s);
  options.probes = std::max<uint32_t>(1, probes);
  return Guarded::make(std::move(servable), options);
}

std::shared_ptr<Hedged> make_hedged(std::shared_ptr<Servable> servable, double after_s,
                                    double budget) {
  HedgeOptions options;
  options.after = nanoseconds_of(after_s);
  options.budget = budget;
  return Hedged::make(std::move(servable), std::move(options), alarms());
}

const char* state_name(CircuitBreaker::State state) {
  constexpr const char* kNames[] = {"closed", "open", "half_open"};
  return kNames[static_cast<std::size_t>(state)];
}

py::dict arrays_of(const Case& filed) {
  py::dict arrays;
  for (const InputTensor& input : filed.inputs) {
    // Views into the request's message, which the array cannot keep: a copy.
    BufferRef copy = BufferRef::allocate(input.tensor.data.size());
    std::copy(input.tensor.data.begin(), input.tensor.data.end(), copy.data());
    TensorView tensor = input.tensor;
    tensor.data = std::as_const(copy).span();
    arrays[py::str(std::string(input.name))] =
        value_or_raise(array_of(tensor, std::move(copy), false));
  }
  return arrays;
}

py::dict suggestion_of(const Case& filed) {
  py::dict arrays;
  for (const OutputTensor& output : filed.suggestion) {
    arrays[py::str(std::string(output.name))] =
        value_or_raise(array_of(output.tensor, output.owner, false));
  }
  return arrays;
}

void resolve(const Case& filed, const py::dict& arrays) {
  std::vector<OutputTensor> outputs;
  std::vector<std::string> names;
  names.reserve(arrays.size());
  for (const auto& [key, value] : arrays) {
    const std::string& name = names.emplace_back(py::str(key));
    const std::optional<std::size_t> index = filed.spec->find_output(name);
    if (!index) {
      raise_unless_ok(Status::invalid_argument("model '" + filed.spec->name + "' has no output '" +
                                               name + "'"));
    }
    BackendOutput tensor = value_or_raise(
        tensor_of(value, filed.spec->outputs[*index].dtype, "output '" + name + "'"));
    outputs.push_back({name, tensor.tensor, std::move(tensor.owner)});
  }
  raise_unless_ok(check_decision(*filed.spec, filed.rows, outputs));
  const py::gil_scoped_release release;
  filed.listener->resolved(std::move(outputs));
}

// (name, datatype, dims with the batch dimension) of what a decision is to be.
std::vector<std::tuple<std::string, std::string, std::vector<int64_t>>> outputs_of(
    const Case& filed) {
  std::vector<std::tuple<std::string, std::string, std::vector<int64_t>>> outputs;
  for (const TensorSpec& output : filed.spec->outputs) {
    std::vector<int64_t> dims;
    if (filed.spec->batching()) dims.push_back(filed.rows);
    dims.insert(dims.end(), output.dims.begin(), output.dims.end());
    outputs.emplace_back(output.name, std::string(dtype_name(output.dtype)), std::move(dims));
  }
  return outputs;
}

}  // namespace

void bind_fallback(py::module_& module) {
  py::class_<Link, std::shared_ptr<Link>>(module, "Link")
      .def(py::init<>())
      .def("point_to", &Link::point_to, "servable"_a.none(true),
           py::call_guard<py::gil_scoped_release>());
  py::class_<Guarded, Servable, std::shared_ptr<Guarded>>(module, "Guarded")
      .def(py::init(&make_guarded), "servable"_a, py::kw_only(), "failure_rate"_a = 0.5,
           "min_requests"_a = 20, "consecutive"_a = 0, "window_s"_a = 10.0, "open_s"_a = 5.0,
           "open_max_s"_a = 60.0, "probes"_a = 3)
      .def_property_readonly("state",
                             [](const Guarded& self) { return state_name(self.breaker().state()); })
      .def_property_readonly("refused",
                             [](const Guarded& self) { return self.breaker().refused(); })
      .def("changes", [](const Guarded& self) {
        py::dict changes;
        const auto counts = self.breaker().changes();
        for (std::size_t i = 0; i < counts.size(); ++i) {
          changes[state_name(static_cast<CircuitBreaker::State>(i))] = counts[i];
        }
        return changes;
      });
  py::class_<Hedged, Servable, std::shared_ptr<Hedged>>(module, "Hedged")
      .def(py::init(&make_hedged), "servable"_a, py::kw_only(), "after_s"_a = 0.0,
           "budget"_a = 0.05)
      .def("counts", [](const Hedged& self) {
        const Hedged::Values values = self.values();
        return py::dict("sent"_a = values.sent, "won"_a = values.won,
                        "no_budget"_a = values.no_budget);
      });
  py::class_<QueueingDesk, std::shared_ptr<QueueingDesk>>(module, "HumanDesk")
      .def(py::init<>())
      .def(
          "next",
          [](QueueingDesk& self, double timeout_s) {
            return self.next(saturating_add(Clock::now(), nanoseconds_of(timeout_s)));
          },
          "timeout_s"_a, py::call_guard<py::gil_scoped_release>())
      .def("close", &QueueingDesk::close);
  py::class_<Case, std::shared_ptr<Case>>(module, "Case")
      .def_readonly("queue", &Case::queue)
      .def_readonly("model", &Case::model)
      .def_readonly("version", &Case::version)
      .def_readonly("request_id", &Case::request_id)
      .def_property_readonly(
          "trigger", [](const Case& self) { return std::string(trigger_name(self.trigger)); })
      .def_readonly("confidence", &Case::confidence)
      .def_property_readonly(
          "wait_s",
          [](const Case& self) { return std::chrono::duration<double>(self.wait).count(); })
      .def_property_readonly("awaited", [](const Case& self) { return self.listener != nullptr; })
      .def_property_readonly("outputs", &outputs_of)
      .def("inputs", &arrays_of)
      .def("suggestion", &suggestion_of)
      .def(
          "filed",
          [](const Case& self, std::string ticket) {
            if (self.listener != nullptr) self.listener->filed(std::move(ticket));
          },
          "ticket"_a, py::call_guard<py::gil_scoped_release>())
      .def(
          "refused",
          [](const Case& self, std::string why) {
            if (self.listener != nullptr)
              self.listener->refused(Status::unavailable(std::move(why)));
          },
          "why"_a, py::call_guard<py::gil_scoped_release>())
      .def(
          "resolve",
          [](const Case& self, const py::dict& outputs) {
            if (self.listener != nullptr) resolve(self, outputs);
          },
          "outputs"_a);
  py::class_<ChainStep>(module, "ChainStep")
      .def_static("model", &step_to, "name"_a, "link"_a, py::kw_only(), "on"_a = py::none(),
                  "timeout_s"_a = 0.0)
      .def_static("rule", &step_by_rule, "name"_a, "servable"_a, "outputs"_a, py::kw_only(),
                  "on"_a = py::none())
      .def_static("person", &step_to_person, "name"_a, "desk"_a, "queue"_a, py::kw_only(),
                  "wait_s"_a = 0.0, "payload"_a = false, "on"_a = py::none());
  py::class_<Accept>(module, "Accept")
      .def(py::init(&make_accept), "output"_a, "confidence"_a, py::kw_only(),
           "activation"_a = "none", "measure"_a = "probability");
  py::class_<FallbackChain, Servable, std::shared_ptr<FallbackChain>>(module, "FallbackChain")
      .def(py::init(&make_chain), "first"_a, "name"_a, "steps"_a, py::kw_only(),
           "accept"_a = py::none(), "budget_s"_a = 0.0)
      .def_property("drift", &FallbackChain::drift, &FallbackChain::set_drift)
      .def_property_readonly("p95_s",
                             [](const FallbackChain& self) {
                               return std::chrono::duration<double>(self.p95()).count();
                             })
      .def("counts", [](const FallbackChain& self) {
        std::vector<std::tuple<std::string, std::string, uint64_t>> counts;
        for (const FallbackChain::Count& count : self.counts()) {
          counts.emplace_back(trigger_name(count.trigger), count.target, count.requests);
        }
        return counts;
      });
}

}  // namespace headrace
