#include "bindings/bindings.h"

PYBIND11_MODULE(_ext, module) {
  module.doc() = "The C++ core of Headrace; the contract is _ext.pyi.";
  module.attr("__version__") = HEADRACE_VERSION;
  headrace::bind_specs(module);
  headrace::bind_backends(module);
  headrace::bind_serving(module);
  headrace::bind_cache(module);
  headrace::bind_fallback(module);
  headrace::bind_call(module);
  headrace::bind_speech(module);
  headrace::bind_int8(module);
  headrace::bind_speech_service(module);
  headrace::bind_server(module);
}
