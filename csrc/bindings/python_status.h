// Status -> Python: every failure of the core raises headrace.errors' class for its code.
#pragma once

#include <pybind11/pybind11.h>

#include "base/clock.h"
#include "base/status.h"

namespace headrace {

// With the GIL. Does not return when the status is an error.
void raise_unless_ok(const Status& status);

template <class T>
T value_or_raise(Result<T> result) {
  if (!result) raise_unless_ok(result.error());
  return *std::move(result);
}

// Python's seconds: 0 for what is negative or no number, the longest there is for what is too long.
Nanoseconds nanoseconds_of(double seconds);

// The Status of the Python exception that was caught: its `code` and `details` when it has them
// (headrace.errors, grpc-like exceptions), `otherwise` with the exception's text if not. With the GIL.
Status status_of_exception(const pybind11::error_already_set& error, StatusCode otherwise,
                           const std::string& prefix);

}  // namespace headrace
