// What became of the requests that were traced, as Python sees it.
#pragma once

#include <pybind11/pybind11.h>

#include "server/server.h"

namespace headrace {

// ([a tuple a record, see _ext.pyi], dropped since the start). Takes and releases the GIL itself.
pybind11::tuple drain_traces(Server& server);

}  // namespace headrace
