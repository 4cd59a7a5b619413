// The parts of headrace._ext; module.cc puts them together. The only room that knows Python or the
// GIL: it is taken here and nowhere else, and never by an I/O thread.
#pragma once

#include <pybind11/pybind11.h>

namespace headrace {

void bind_specs(pybind11::module_& module);     // TensorSpec, ModelSpec, QueuePolicy, BatchPolicy
void bind_backends(pybind11::module_& module);  // Model, OpenVinoBackend, callback_model
void bind_serving(pybind11::module_& module);   // ModelVersion, plan_cores, ...
void bind_cache(pybind11::module_& module);     // ResponseCache, CachedServable
void bind_fallback(pybind11::module_& module);  // FallbackChain, Guarded, HumanDesk, ...
void bind_call(pybind11::module_& module);      // ServerCall, CallEvents
void bind_server(pybind11::module_& module);    // ServerOptions, Server
void bind_speech(pybind11::module_& module);    // SpeechRecognizer, SpeechStream
void bind_int8(pybind11::module_& module);      // Int8Linear
void bind_speech_service(pybind11::module_& module);  // SpeechServable, decode_audio

// Set while this thread, an instance's, runs a Python model. What Python drops there must not wait for
// instance threads: it would wait for itself.
inline thread_local bool running_python_model = false;

}  // namespace headrace
