// NumPy arrays <-> tensors. Dense arrays are shared without a copy on the way to Python and copied once
// on the way back; BYTES are object arrays of bytes. BF16 is uint16 bit patterns.
// Everything here runs with the GIL.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "backends/backend.h"
#include "base/buffer.h"
#include "base/status.h"
#include "core/tensor.h"

namespace headrace {

// An array over `tensor.data`; dense ones keep `owner` alive for as long as they live and are read-only
// unless `writable`. Errors: INVALID_ARGUMENT when BYTES are not in wire form.
Result<pybind11::object> array_of(const TensorView& tensor, BufferRef owner, bool writable);

// The array's elements in wire form. `what` names it in errors ("output 'Y'").
// Errors: INVALID_ARGUMENT when it is no array of that datatype.
Result<BackendOutput> tensor_of(pybind11::handle array, DType dtype, const std::string& what);

}  // namespace headrace
