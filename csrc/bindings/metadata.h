// Metadata between Python and the wire.
#pragma once

#include <pybind11/pybind11.h>

#include "rpc/call.h"

namespace headrace {

// Tuples (key, value), which also have these attributes: str values, bytes for keys that end in -bin.
// With the GIL.
pybind11::tuple metadata_to_python(const Metadata& metadata);

// From any iterable of pairs. What could break the protocol never leaves: keys are gRPC's Header-Name, values
// printable ASCII. Raises INVALID_ARGUMENT naming what is wrong. With the GIL.
Metadata metadata_from_python(const pybind11::iterable& pairs);

}  // namespace headrace
