#include "bindings/traces.h"

#include <array>
#include <chrono>
#include <string>

namespace headrace {
namespace {

namespace py = pybind11;

template <std::size_t kSize>
py::bytes bytes_of(const std::array<uint8_t, kSize>& id) {
  return {reinterpret_cast<const char*>(id.data()), id.size()};
}

int64_t nanoseconds(TimePoint time) {
  return std::chrono::duration_cast<Nanoseconds>(time.time_since_epoch()).count();
}

}  // namespace

py::tuple drain_traces(Server& server) {
  const Tracing::Drained drained = [&] {
    const py::gil_scoped_release release;
    return server.drain_traces();
  }();
  py::list records;
  for (const TraceRecord& record : drained.records) {
    const RequestTimes& times = record.times;
    records.append(py::make_tuple(
        bytes_of(record.context.trace_id), bytes_of(record.context.parent_id),
        bytes_of(record.context.span_id),
        py::make_tuple(nanoseconds(times.arrived), nanoseconds(times.queued),
                       nanoseconds(times.batched), nanoseconds(times.input_done),
                       nanoseconds(times.infer_done), nanoseconds(times.done),
                       nanoseconds(record.answered)),
        static_cast<int>(record.code), record.streamed, record.rows, record.batch_rows,
        // A client's, and perhaps cut: not always UTF-8.
        py::bytes(record.request_id), py::bytes(record.model), py::bytes(record.version),
        py::bytes(record.arm), py::bytes(record.fallback_from)));
  }
  return py::make_tuple(records, drained.dropped);
}

}  // namespace headrace
