#include <pybind11/stl.h>

#include "backends/callback/callback_backend.h"
#include "backends/openvino/openvino_backend.h"
#include "backends/tensorrt/tensorrt_backend.h"
#include "bindings/bindings.h"
#include "bindings/numpy_tensor.h"
#include "bindings/python_status.h"

namespace py = pybind11;
using namespace py::literals;

namespace headrace {
namespace {

// A Python callable held by C++: dropped with the GIL, from whatever thread.
std::shared_ptr<py::object> hold(py::object object) {
  return {new py::object(std::move(object)), [](py::object* held) {
            const py::gil_scoped_acquire gil;
            delete held;
          }};
}

// Whether this thread is in a Python model's code.
struct Running {
  Running() { running_python_model = true; }
  ~Running() { running_python_model = false; }
};

Status call_python(const py::object& callable, const std::vector<TensorSpec>& input_specs,
                   const std::vector<TensorSpec>& output_specs,
                   const std::vector<std::optional<CallbackInput>>& inputs,
                   std::vector<BackendOutput>& outputs) {
  const Running running;
  const py::gil_scoped_acquire gil;
  try {
    py::dict arguments;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (!inputs[i]) continue;
      Result<py::object> array = array_of(inputs[i]->tensor, inputs[i]->owner, true);
      if (!array) return array.error();
      arguments[py::str(input_specs[i].name)] = *std::move(array);
    }
    const py::object answer = callable(arguments);
    if (!py::hasattr(answer, "__getitem__") || !py::hasattr(answer, "__contains__")) {
      return Status::internal("the model answered a " +
                              std::string(py::str(py::type::of(answer).attr("__name__"))) +
                              ", expected a mapping of output names to arrays");
    }
    for (const TensorSpec& spec : output_specs) {
      if (!answer.contains(spec.name)) {
        return Status::internal("the model's answer lacks output '" + spec.name + "'");
      }
      Result<BackendOutput> output =
          tensor_of(answer[py::str(spec.name)], spec.dtype, "output '" + spec.name + "'");
      if (!output) return Status::internal(output.error().message());
      outputs.push_back(*std::move(output));
    }
    return {};
  } catch (const py::error_already_set& error) {
    return status_of_exception(error, StatusCode::kInternal, "");
  }
}

std::shared_ptr<Model> callback_model(const std::vector<py::object>& callables,
                                      std::vector<TensorSpec> inputs,
                                      std::vector<TensorSpec> outputs, std::string description,
                                      const py::object& remake) {
  const auto callback_of = [inputs, outputs](py::object callable) -> Callback {
    return [held = hold(std::move(callable)), inputs, outputs](const auto& in, auto& out) {
      return call_python(*held, inputs, outputs, in, out);
    };
  };
  std::vector<Callback> callbacks;
  for (const py::object& callable : callables) callbacks.push_back(callback_of(callable));
  RemakeCallback remade;
  if (!remake.is_none()) {
    remade = [callback_of, held = hold(remake)](std::size_t index) -> Result<Callback> {
      const Running running;
      const py::gil_scoped_acquire gil;
      try {
        return callback_of((*held)(index));
      } catch (const py::error_already_set& error) {
        return status_of_exception(error, StatusCode::kInternal, "");
      }
    };
  }
  return make_callback_model(std::move(inputs), std::move(outputs), std::move(callbacks),
                             std::move(description), std::move(remade));
}

}  // namespace

void bind_backends(py::module_& module) {
  py::class_<Model, std::shared_ptr<Model>>(module, "Model")
      .def_property_readonly("inputs", &Model::inputs)
      .def_property_readonly("outputs", &Model::outputs)
      .def_property_readonly("description", &Model::description);
  py::class_<OpenVinoBackend>(module, "OpenVinoBackend")
      .def(py::init<>(), py::call_guard<py::gil_scoped_release>())
      .def_static("version", &OpenVinoBackend::version)
      .def("devices", &OpenVinoBackend::devices, py::call_guard<py::gil_scoped_release>())
      .def(
          "inspect",
          [](const OpenVinoBackend& self, const std::string& path, bool low_priority) {
            auto result = [&] {
              const py::gil_scoped_release release;
              return self.inspect(path, low_priority);
            }();
            return value_or_raise(std::move(result));
          },
          "path"_a, py::kw_only(), "low_priority"_a = false)
      .def(
          "load",
          [](const OpenVinoBackend& self, const std::string& path, std::string device,
             uint32_t instances, uint32_t threads, std::string cache_dir, bool low_priority,
             bool trusted_shapes, std::string int8, std::map<std::string, std::string> properties) {
            OpenVinoOptions options;
            options.device = std::move(device);
            options.instances = instances;
            options.threads = threads;
            options.cache_dir = std::move(cache_dir);
            options.low_priority = low_priority;
            options.trusted_shapes = trusted_shapes;
            options.int8 = std::move(int8);
            options.properties = std::move(properties);
            auto result = [&] {
              const py::gil_scoped_release release;
              return self.load(path, options);
            }();
            return value_or_raise(std::move(result));
          },
          "path"_a, py::kw_only(), "device"_a = "CPU", "instances"_a = 1, "threads"_a = 1,
          "cache_dir"_a = "", "low_priority"_a = false, "trusted_shapes"_a = false,
          "int8"_a = "exact", "properties"_a = std::map<std::string, std::string>());
  py::class_<TensorRtBackend>(module, "TensorRtBackend")
      .def(py::init<std::string>(), "library"_a = "libheadrace_tensorrt.so")
      .def("device",
           [](const TensorRtBackend& self) {
             auto result = [&] {
               const py::gil_scoped_release release;
               return self.device();
             }();
             const TensorRtDevice device = value_or_raise(std::move(result));
             return py::dict("runtime"_a = device.runtime, "version"_a = device.version,
                             "gpu"_a = device.gpu,
                             "compute_capability"_a = std::to_string(device.compute_major) + "." +
                                                      std::to_string(device.compute_minor));
           })
      .def(
          "load",
          [](const TensorRtBackend& self, const std::string& path, bool graphs,
             int64_t device_memory_limit) {
            TensorRtLoadOptions options;
            options.instance.graphs = graphs;
            options.device_memory_limit = device_memory_limit;
            auto result = [&] {
              const py::gil_scoped_release release;
              return self.load(path, options);
            }();
            return value_or_raise(std::move(result));
          },
          "path"_a, py::kw_only(), "graphs"_a = true, "device_memory_limit"_a = 0);
  module.def("callback_model", &callback_model, "callables"_a, "inputs"_a, "outputs"_a,
             py::kw_only(), "description"_a = "Python callable", "remake"_a = py::none());
}

}  // namespace headrace
