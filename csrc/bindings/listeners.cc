#include "bindings/listeners.h"

#include <utility>

#include "bindings/python_status.h"

namespace py = pybind11;
using namespace py::literals;

namespace headrace {
namespace {

PemSource source_of(const py::bytes& pem, std::string file, const char* option) {
  PemSource source{std::string(pem), std::move(file)};
  if (!source.pem.empty() && !source.file.empty()) {
    raise_unless_ok(Status::invalid_argument(std::string("give ") + option + " or " + option +
                                             "_file, not both"));
  }
  return source;
}

ClientAuth client_auth_of(const std::string& text) {
  if (text == "none") return ClientAuth::kNone;
  if (text == "request") return ClientAuth::kRequest;
  if (text != "require") {
    raise_unless_ok(Status::invalid_argument("client_auth is '" + text +
                                             "'; it must be none, request or require"));
  }
  return ClientAuth::kRequire;
}

TlsOptions make_tls_options(const py::bytes& certificate_chain, const py::bytes& private_key,
                            const py::bytes& client_ca, std::string certificate_chain_file,
                            std::string private_key_file, std::string client_ca_file,
                            const std::string& client_auth) {
  TlsOptions options;
  options.certificate_chain =
      source_of(certificate_chain, std::move(certificate_chain_file), "certificate_chain");
  options.private_key = source_of(private_key, std::move(private_key_file), "private_key");
  options.client_ca = source_of(client_ca, std::move(client_ca_file), "client_ca");
  options.client_auth = client_auth_of(client_auth);
  return options;
}

}  // namespace

void bind_tls_options(py::module_& module) {
  py::class_<TlsOptions>(module, "TlsOptions")
      .def(py::init(&make_tls_options), py::kw_only(), "certificate_chain"_a = py::bytes(),
           "private_key"_a = py::bytes(), "client_ca"_a = py::bytes(),
           "certificate_chain_file"_a = "", "private_key_file"_a = "", "client_ca_file"_a = "",
           "client_auth"_a = "none");
}

uint16_t add_listener(Server& server, const std::string& address,
                      const std::optional<TlsOptions>& tls, uint32_t unix_mode) {
  Result<uint16_t> port = [&] {
    const py::gil_scoped_release release;
    return server.add_listener(address, tls, unix_mode);
  }();
  return value_or_raise(std::move(port));
}

void reload_tls(Server& server) {
  const Status status = [&] {
    const py::gil_scoped_release release;
    return server.reload_tls();
  }();
  raise_unless_ok(status);
}

py::dict handshakes_by_result(const ServerCounters& counters) {
  py::dict result;
  for (std::size_t i = 0; i < kTlsResults; ++i) {
    result[py::str(kTlsResultNames[i].data(), kTlsResultNames[i].size())] =
        counters.tls_handshakes[i];
  }
  return result;
}

}  // namespace headrace
