#include "bindings/connection_limits.h"

#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>

#include "bindings/python_status.h"

namespace py = pybind11;

namespace headrace {
namespace {

using Member = std::variant<uint32_t ConnectionLimits::*, bool ConnectionLimits::*,
                            Milliseconds ConnectionLimits::*>;
struct Field {
  std::string_view name;
  Member member;
};

constexpr auto kFields = std::to_array<Field>({
    {"max_connections", &ConnectionLimits::max_connections},
    {"max_connections_per_peer", &ConnectionLimits::max_connections_per_peer},
    {"untrusted_percent", &ConnectionLimits::untrusted_percent},
    {"max_tls_handshakes", &ConnectionLimits::max_tls_handshakes},
    {"max_concurrent_streams", &ConnectionLimits::max_concurrent_streams},
    {"max_header_list_bytes", &ConnectionLimits::max_header_list_bytes},
    {"max_header_fields", &ConnectionLimits::max_header_fields},
    {"max_continuations", &ConnectionLimits::max_continuations},
    {"max_received_bytes", &ConnectionLimits::max_received_bytes},
    {"untrusted_received_bytes", &ConnectionLimits::untrusted_received_bytes},
    {"glitch_burst", &ConnectionLimits::glitch_burst},
    {"glitch_rate", &ConnectionLimits::glitch_rate},
    {"reset_burst", &ConnectionLimits::reset_burst},
    {"reset_rate", &ConnectionLimits::reset_rate},
    {"max_queued_frames", &ConnectionLimits::max_queued_frames},
    {"ping_max_strikes", &ConnectionLimits::ping_max_strikes},
    {"ping_min_interval_s", &ConnectionLimits::ping_min_interval},
    {"permit_keepalive_without_calls", &ConnectionLimits::permit_keepalive_without_calls},
    {"preface_timeout_s", &ConnectionLimits::preface_timeout},
    {"header_timeout_s", &ConnectionLimits::header_timeout},
    {"body_timeout_s", &ConnectionLimits::body_timeout},
    {"body_min_rate", &ConnectionLimits::body_min_rate},
    {"idle_timeout_s", &ConnectionLimits::idle_timeout},
    {"write_timeout_s", &ConnectionLimits::write_timeout},
    {"stall_timeout_s", &ConnectionLimits::stall_timeout},
    {"stall_bytes", &ConnectionLimits::stall_bytes},
    {"first_window_timeout_s", &ConnectionLimits::first_window_timeout},
    {"window_timeout_s", &ConnectionLimits::window_timeout},
    {"keepalive_time_s", &ConnectionLimits::keepalive_time},
    {"keepalive_timeout_s", &ConnectionLimits::keepalive_timeout},
    {"max_age_s", &ConnectionLimits::max_age},
    {"max_age_grace_s", &ConnectionLimits::max_age_grace},
});

// A year: longer would be a mistake, and sums stay far from the clock's end.
constexpr double kMostSeconds = 365.0 * 24 * 3600;

[[noreturn]] void refuse(std::string_view name, const std::string& why) {
  raise_unless_ok(Status::invalid_argument("limit '" + std::string(name) + "' " + why));
  std::abort();  // not reached: that was an error
}

struct Reader {
  ConnectionLimits& limits;
  std::string_view name;
  py::handle value;

  void operator()(uint32_t ConnectionLimits::*member) const {
    if (!py::isinstance<py::int_>(value) || py::isinstance<py::bool_>(value)) {
      refuse(name, "must be a whole number");
    }
    const auto number = PyLong_AsLongLong(value.ptr());
    if (PyErr_Occurred() != nullptr) PyErr_Clear();
    if (number < 0 || number > std::numeric_limits<int32_t>::max()) {
      refuse(name, "must be 0 to 2147483647");
    }
    limits.*member = static_cast<uint32_t>(number);
  }
  void operator()(bool ConnectionLimits::*member) const {
    if (!py::isinstance<py::bool_>(value)) refuse(name, "must be true or false");
    limits.*member = value.cast<bool>();
  }
  void operator()(Milliseconds ConnectionLimits::*member) const {
    const bool number = py::isinstance<py::float_>(value) || py::isinstance<py::int_>(value);
    if (!number || py::isinstance<py::bool_>(value)) refuse(name, "must be seconds");
    const auto seconds = value.cast<double>();
    if (!(seconds >= 0 && seconds <= kMostSeconds)) {
      refuse(name, "must be 0 (never) to 31536000 seconds");
    }
    // Never to "never" by rounding.
    limits.*member = Milliseconds(static_cast<int64_t>(std::ceil(seconds * 1000)));
  }
};

}  // namespace

ConnectionLimits limits_from_python(const py::dict& values) {
  ConnectionLimits limits;
  for (const auto& [key, value] : values) {
    const auto name = key.cast<std::string>();
    const Field* found = nullptr;
    for (const Field& field : kFields) {
      if (field.name == name) found = &field;
    }
    if (found == nullptr) refuse(name, "is not known");
    std::visit(Reader{limits, name, value}, found->member);
  }
  return limits;
}

py::dict default_limits() {
  const ConnectionLimits limits;
  py::dict values;
  for (const Field& field : kFields) {
    std::visit(
        [&](auto member) {
          const auto value = limits.*member;
          const py::str name{std::string(field.name)};
          if constexpr (std::is_same_v<std::remove_const_t<decltype(value)>, Milliseconds>) {
            values[name] = static_cast<double>(value.count()) / 1000;
          } else {
            values[name] = value;
          }
        },
        field.member);
  }
  return values;
}

}  // namespace headrace
