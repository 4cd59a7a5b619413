#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>

#include "bindings/bindings.h"
#include "bindings/python_status.h"
#include "kernels/int8_linear.h"

namespace py = pybind11;
using namespace py::literals;

namespace headrace {
namespace {

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Bytes = py::array_t<int8_t, py::array::c_style>;

template <class Array>
std::span<const typename Array::value_type> span_of(const Array& array, py::ssize_t dimensions,
                                                    const char* what) {
  if (array.ndim() != dimensions) {
    throw py::value_error(std::string(what) + ": expected " + std::to_string(dimensions) +
                          " dimensions, not " + std::to_string(array.ndim()));
  }
  return {array.data(), static_cast<std::size_t>(array.size())};
}

LinearActivation activation_of(const std::string& name) {
  if (name == "none") return LinearActivation::kNone;
  if (name == "relu") return LinearActivation::kRelu;
  if (name == "gelu") return LinearActivation::kGeluErf;
  if (name == "gelu_tanh") return LinearActivation::kGeluTanh;
  if (name == "silu") return LinearActivation::kSilu;
  if (name == "sigmoid") return LinearActivation::kSigmoid;
  if (name == "tanh") return LinearActivation::kTanh;
  throw py::value_error(
      "activation: one of none, relu, gelu, gelu_tanh, silu, sigmoid, tanh, not " + name);
}

std::span<const float> bias_of(const std::optional<Floats>& bias) {
  return bias ? span_of(*bias, 1, "bias") : std::span<const float>();
}

PackedLinear pack_floats(const Floats& weights, const std::optional<Floats>& bias,
                         const std::string& activation) {
  const std::span<const float> values = span_of(weights, 2, "weights");
  return value_or_raise(PackedLinear::pack(values, static_cast<std::size_t>(weights.shape(1)),
                                           static_cast<std::size_t>(weights.shape(0)), true,
                                           bias_of(bias),
                                           {.activation = activation_of(activation)}));
}

PackedLinear pack_bytes(const Bytes& weights, const Floats& scales,
                        const std::optional<Floats>& bias, const std::string& activation) {
  const std::span<const int8_t> values = span_of(weights, 2, "weights");
  const std::span<const float> by_channel = span_of(scales, 1, "scales");
  QuantisedWeights quantised;
  quantised.outputs = static_cast<std::size_t>(weights.shape(0));
  quantised.inputs = static_cast<std::size_t>(weights.shape(1));
  if (by_channel.size() != quantised.outputs) {
    throw py::value_error("scales: expected one an output channel");
  }
  quantised.values.assign(values.begin(), values.end());
  quantised.scales.assign(by_channel.begin(), by_channel.end());
  return value_or_raise(PackedLinear::pack(quantised, bias_of(bias), nullptr,
                                           {.activation = activation_of(activation)}));
}

Floats run(const PackedLinear& layer, const Floats& x) {
  span_of(x, 2, "x");
  if (static_cast<std::size_t>(x.shape(1)) != layer.inputs()) {
    throw py::value_error("x: expected " + std::to_string(layer.inputs()) + " columns, not " +
                          std::to_string(x.shape(1)));
  }
  const auto rows = static_cast<std::size_t>(x.shape(0));
  Floats y({x.shape(0), static_cast<py::ssize_t>(layer.outputs())});
  if (rows == 0) return y;
  const float* from = x.data();
  float* to = y.mutable_data();
  const py::gil_scoped_release release;
  AlignedBytes scratch(linear_scratch_bytes(layer, rows));
  linear(layer, from, rows, to, scratch.data());
  return y;
}

}  // namespace

void bind_int8(py::module_& module) {
  py::class_<PackedLinear>(module, "Int8Linear", py::is_final())
      .def(py::init(&pack_floats), "weights"_a, "bias"_a = py::none(), py::kw_only(),
           "activation"_a = "none")
      .def_static("from_quantized", &pack_bytes, "weights"_a, "scales"_a, "bias"_a = py::none(),
                  py::kw_only(), "activation"_a = "none")
      .def("run", &run, "x"_a)
      .def_property_readonly("inputs", &PackedLinear::inputs)
      .def_property_readonly("outputs", &PackedLinear::outputs)
      .def_property_readonly("isa", [](const PackedLinear& layer) { return isa_name(layer.isa()); })
      .def_property_readonly("memory_bytes", &PackedLinear::memory_bytes);
}

}  // namespace headrace
