// TlsOptions and what a Server's listeners can be told, for Python.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>

#include "server/server.h"

namespace headrace {

void bind_tls_options(pybind11::module_& module);

// Server::add_listener and reload_tls without the GIL, raising headrace.errors. With the GIL.
uint16_t add_listener(Server& server, const std::string& address,
                      const std::optional<TlsOptions>& tls, uint32_t unix_mode);
void reload_tls(Server& server);

// {"ok": 3, "no_alpn": 0, ...}
pybind11::dict handshakes_by_result(const ServerCounters& counters);

}  // namespace headrace
