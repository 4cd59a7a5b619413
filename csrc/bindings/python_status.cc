#include "bindings/python_status.h"

#include <string>

namespace py = pybind11;

namespace headrace {

void raise_unless_ok(const Status& status) {
  if (status.ok()) return;
  const py::object make = py::module_::import("headrace.errors").attr("error_from_code");
  const py::object error = make(static_cast<int>(status.code()),
                                py::bytes(status.message()).attr("decode")("utf-8", "replace"));
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
  throw py::error_already_set();
}

Nanoseconds nanoseconds_of(double seconds) {
  if (!(seconds > 0)) return Nanoseconds(0);
  constexpr double kMost = 9e9;  // 285 years: near the 2^63 ns there are
  if (seconds >= kMost) return Nanoseconds::max();
  return std::chrono::duration_cast<Nanoseconds>(std::chrono::duration<double>(seconds));
}

Status status_of_exception(const py::error_already_set& error, StatusCode otherwise,
                           const std::string& prefix) {
  try {
    const py::object& value = error.value();
    if (py::hasattr(value, "code") && py::hasattr(value, "details")) {
      const py::object code = value.attr("code");
      if (py::isinstance<py::int_>(code)) {
        // -1 for what does not fit.
        const long number = PyLong_AsLong(code.ptr());
        PyErr_Clear();
        if (number > 0 && number <= static_cast<long>(StatusCode::kUnauthenticated)) {
          return {static_cast<StatusCode>(number), py::str(value.attr("details"))};
        }
      }
    }
    const std::string type = py::str(error.type().attr("__name__"));
    return {otherwise, prefix + type + ": " + std::string(py::str(value))};
  } catch (const py::error_already_set&) {
    return {otherwise, prefix + "an exception that cannot be printed"};
  }
}

}  // namespace headrace
