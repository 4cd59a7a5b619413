#include "bindings/metadata.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>

#include "bindings/python_status.h"
#include "rpc/grpc_codec.h"

namespace py = pybind11;

namespace headrace {

// `-bin` values are base64 on the wire, several joined by commas; Python sees bytes.
py::list metadata_to_python(const Metadata& metadata) {
  py::list result;
  for (const auto& [name, value] : metadata) {
    if (!name.ends_with("-bin")) {
      result.append(py::make_tuple(
          name, py::reinterpret_steal<py::str>(PyUnicode_DecodeLatin1(
                    value.data(), static_cast<py::ssize_t>(value.size()), nullptr))));
      continue;
    }
    for (std::size_t start = 0; start <= value.size();) {
      const std::size_t comma = std::min(value.find(',', start), value.size());
      const auto decoded = base64_decode(std::string_view(value).substr(start, comma - start));
      if (decoded) result.append(py::make_tuple(name, py::bytes(*decoded)));
      start = comma + 1;
    }
  }
  return result;
}

Metadata metadata_from_python(const py::iterable& pairs) {
  Metadata metadata;
  for (const py::handle item : pairs) {
    const auto pair = item.cast<std::pair<std::string, py::object>>();
    const std::string& name = pair.first;
    const bool valid_name =
        !name.empty() && !name.starts_with("grpc-") &&
        name.find_first_not_of("0123456789abcdefghijklmnopqrstuvwxyz_-.") == std::string::npos;
    if (!valid_name) {
      raise_unless_ok(Status::invalid_argument("'" + name + "' is no valid metadata key"));
    }
    if (name.ends_with("-bin")) {
      metadata.emplace_back(name, base64_encode(pair.second.cast<std::string>()));
      continue;
    }
    const auto value = pair.second.cast<std::string>();
    for (const char c : value) {
      if (c < 0x20 || c > 0x7E) {
        raise_unless_ok(Status::invalid_argument("metadata '" + name + "' is not printable ASCII"));
      }
    }
    metadata.emplace_back(name, value);
  }
  return metadata;
}

}  // namespace headrace
