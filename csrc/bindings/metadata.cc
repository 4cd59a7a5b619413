#include "bindings/metadata.h"

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <utility>

#include "bindings/python_status.h"
#include "rpc/grpc_codec.h"

namespace py = pybind11;

namespace headrace {
namespace {

// What grpcio's metadata consists of: a tuple (key, value) with these attributes. A struct sequence is
// made in a tenth of the time of a Python class.
PyTypeObject* metadatum_type() {
  static PyTypeObject* const type = [] {
    static std::array<PyStructSequence_Field, 3> fields = {
        {{"key", nullptr}, {"value", nullptr}, {nullptr, nullptr}}};
    static PyStructSequence_Desc description = {"headrace.grpc.Metadatum", nullptr, fields.data(),
                                                2};
    return PyStructSequence_NewType(&description);
  }();
  if (type == nullptr) throw py::error_already_set();
  return type;
}

py::object metadatum(const std::string& key, py::object value) {
  auto item = py::reinterpret_steal<py::object>(PyStructSequence_New(metadatum_type()));
  if (!item || !value) throw py::error_already_set();
  PyStructSequence_SetItem(item.ptr(), 0, py::str(key).release().ptr());
  PyStructSequence_SetItem(item.ptr(), 1, value.release().ptr());
  return item;
}

// The characters of a str (UTF-8) or bytes; they live as long as it.
std::string_view characters(PyObject* object) {
  py::ssize_t size = 0;
  if (PyUnicode_Check(object)) {
    const char* text = PyUnicode_AsUTF8AndSize(object, &size);
    if (text == nullptr) throw py::error_already_set();
    return {text, static_cast<std::size_t>(size)};
  }
  char* bytes = nullptr;
  if (PyBytes_AsStringAndSize(object, &bytes, &size) != 0) throw py::error_already_set();
  return {bytes, static_cast<std::size_t>(size)};
}

bool valid_key(std::string_view key) {
  return !key.empty() && !key.starts_with("grpc-") &&
         std::all_of(key.begin(), key.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
                  c == '.';
         });
}

}  // namespace

py::tuple metadata_to_python(const Metadata& metadata) {
  py::list result;
  for (const auto& [name, value] : metadata) {
    if (!name.ends_with("-bin")) {
      result.append(
          metadatum(name, py::reinterpret_steal<py::object>(PyUnicode_DecodeLatin1(
                              value.data(), static_cast<py::ssize_t>(value.size()), nullptr))));
      continue;
    }
    // base64 on the wire, several joined by commas
    for (std::size_t start = 0; start <= value.size();) {
      const std::size_t comma = std::min(value.find(',', start), value.size());
      const auto decoded = base64_decode(std::string_view(value).substr(start, comma - start));
      if (decoded) result.append(metadatum(name, py::bytes(*decoded)));
      start = comma + 1;
    }
  }
  return py::reinterpret_steal<py::tuple>(PyList_AsTuple(result.ptr()));
}

Metadata metadata_from_python(const py::iterable& pairs) {
  Metadata metadata;
  for (const py::handle item : pairs) {
    const auto pair = py::reinterpret_steal<py::object>(
        PySequence_Fast(item.ptr(), "metadata consists of (key, value) pairs"));
    if (!pair) throw py::error_already_set();
    if (PySequence_Fast_GET_SIZE(pair.ptr()) != 2) {
      throw py::value_error("metadata consists of (key, value) pairs");
    }
    const std::string_view key = characters(PySequence_Fast_GET_ITEM(pair.ptr(), 0));
    const std::string_view value = characters(PySequence_Fast_GET_ITEM(pair.ptr(), 1));
    if (!valid_key(key)) {
      raise_unless_ok(
          Status::invalid_argument("'" + std::string(key) + "' is no valid metadata key"));
    }
    if (key.ends_with("-bin")) {
      metadata.emplace_back(key, base64_encode(value));
      continue;
    }
    if (!std::all_of(value.begin(), value.end(), [](char c) { return c >= 0x20 && c <= 0x7E; })) {
      raise_unless_ok(
          Status::invalid_argument("metadata '" + std::string(key) + "' is not printable ASCII"));
    }
    metadata.emplace_back(key, value);
  }
  return metadata;
}

}  // namespace headrace
