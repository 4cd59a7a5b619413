// ConnectionLimits from Python: a dict of the fields that are not to be the default's. Durations are called
// `<field>_s` and are seconds.
#pragma once

#include <pybind11/pybind11.h>

#include "transport/connection_limits.h"

namespace headrace {

// With the GIL. Raises InvalidArgumentError naming a field that is unknown or makes no sense.
ConnectionLimits limits_from_python(const pybind11::dict& values);
// All fields, with the defaults.
pybind11::dict default_limits();

}  // namespace headrace
