#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "bindings/bindings.h"
#include "bindings/metadata.h"
#include "bindings/python_call.h"
#include "bindings/python_events.h"
#include "bindings/python_pool.h"
#include "bindings/python_status.h"

namespace py = pybind11;
using namespace py::literals;

namespace headrace {
namespace {

using Read = PythonCall::Read;
using Handle = PythonCallHandle;

py::bytes bytes_of(const BufferRef& message) {
  return {reinterpret_cast<const char*>(message.data()), message.size()};
}

BufferRef message_of(const py::bytes& bytes) {
  char* data = nullptr;
  py::ssize_t size = 0;
  if (PyBytes_AsStringAndSize(bytes.ptr(), &data, &size) != 0) throw py::error_already_set();
  BufferRef message = BufferRef::allocate(Call::kPrefixBytes + static_cast<std::size_t>(size));
  std::memcpy(message.data() + Call::kPrefixBytes, data, static_cast<std::size_t>(size));
  return message;
}

py::object read(Handle& self) {
  BufferRef message;
  for (;;) {
    switch (self->read(message)) {
      case Read::kMessage:
        return bytes_of(message);
      case Read::kEnd:
        return py::none();
      case Read::kNothingYet: {
        const py::gil_scoped_release release;
        PythonPool::step_aside();
        self->wait_readable();
      }
    }
  }
}

py::object read_nowait(Handle& self) {
  BufferRef message;
  const Read result = self->read_or_notify(message);
  if (result == Read::kMessage) return bytes_of(message);
  return py::bool_(result == Read::kNothingYet);
}

bool send(Handle& self, const py::bytes& message, bool wait) {
  if (wait && !self->writable()) {
    const py::gil_scoped_release release;
    PythonPool::step_aside();
    self->wait_writable();
  }
  return self->send(message_of(message), std::exchange(self.compress_next, true), self.encoding);
}

bool respond(Handle& self, const py::bytes& message) {
  return self->respond(message_of(message), self.compress_next, self.encoding,
                       std::move(self.trailing));
}

bool finish(Handle& self, int code, const std::string& details) {
  if (code < 0 || code > static_cast<int>(StatusCode::kUnauthenticated)) {
    throw py::value_error("a status code is 0 to 16");
  }
  return self->finish(Status(static_cast<StatusCode>(code), details), std::move(self.trailing),
                      self.encoding);
}

std::optional<double> time_remaining(Handle& self) {
  if (self->deadline == kNever) return std::nullopt;
  return static_cast<double>(elapsed_ns(Clock::now(), self->deadline)) / 1e9;
}

py::object auth_context(Handle& self) {
  if (self->auth == nullptr) return py::none();
  py::list properties;
  for (const auto& [name, value] : self->auth->properties) {
    properties.append(py::make_tuple(name, py::bytes(value)));
  }
  return py::make_tuple(self->auth->identity_key, properties);
}

py::tuple drain(PythonEvents& self) {
  py::list calls;
  py::list events;
  for (auto& [event, call] : self.drain()) {
    if (event == CallEvent::kReady) {
      if (!call->active()) continue;
      py::object message = py::none();
      BufferRef bytes;
      if (!request_streams(call->kind)) {
        if (call->read(bytes) != Read::kMessage) continue;
        message = bytes_of(bytes);
      }
      const py::object run = call->method.run;
      calls.append(py::make_tuple(run, message, std::make_unique<Handle>(std::move(call))));
    } else {
      const char* name = event == CallEvent::kReadable   ? "readable"
                         : event == CallEvent::kWritable ? "writable"
                                                         : "ended";
      events.append(py::make_tuple(call->id, name));
    }
  }
  return py::make_tuple(calls, events);
}

}  // namespace

Encoding compression_encoding(int compression) {
  switch (compression) {
    case 0:
      return Encoding::kIdentity;
    case 1:
      return Encoding::kDeflate;
    case 2:
      return Encoding::kGzip;
    default:
      throw py::value_error("compression is 0 (none), 1 (deflate) or 2 (gzip)");
  }
}

void bind_call(py::module_& module) {
  py::class_<Handle>(module, "ServerCall")
      .def_property_readonly("id", [](Handle& self) { return self->id; })
      .def_property_readonly("method", [](Handle& self) { return self->path; })
      .def_property_readonly("peer", [](Handle& self) { return self->peer; })
      .def_property_readonly("principal",
                             [](Handle& self) -> std::optional<std::string> {
                               if (self->principal.empty()) return std::nullopt;
                               return self->principal;
                             })
      .def_property_readonly("metadata",
                             [](Handle& self) { return metadata_to_python(self->metadata); })
      .def_property_readonly("auth_context", &auth_context)
      .def("time_remaining", &time_remaining)
      .def("is_active", [](Handle& self) { return self->active(); })
      .def("is_cancelled", [](Handle& self) { return self->cancelled(); })
      .def("read", &read)
      .def("read_nowait", &read_nowait)
      .def(
          "send_initial_metadata",
          [](Handle& self, const py::iterable& metadata) {
            return self->send_headers(std::make_unique<Metadata>(metadata_from_python(metadata)),
                                      self.encoding);
          },
          "metadata"_a)
      .def(
          "set_trailing_metadata",
          [](Handle& self, const py::iterable& metadata) {
            self.trailing = std::make_unique<Metadata>(metadata_from_python(metadata));
          },
          "metadata"_a)
      .def(
          "set_compression",
          [](Handle& self, int compression) { self.encoding = compression_encoding(compression); },
          "compression"_a)
      .def("disable_next_message_compression", [](Handle& self) { self.compress_next = false; })
      .def("send", &send, "message"_a, py::kw_only(), "wait"_a = true)
      .def("writable_or_notify", [](Handle& self) { return self->writable_or_notify(); })
      .def("respond", &respond, "message"_a)
      .def("finish", &finish, "code"_a, "details"_a)
      .def("cancel", [](Handle& self) { self->cancel(); })
      .def("notify_end", [](Handle& self) { return self->notify_end(); });

  py::class_<PythonEvents>(module, "CallEvents")
      .def("fileno", &PythonEvents::fd)
      .def("drain", &drain);
}

}  // namespace headrace
