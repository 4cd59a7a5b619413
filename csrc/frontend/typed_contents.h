// InferTensorContents: the typed form of an input's data (`int_contents`, `fp32_contents`, ...).
//
// Pure functions of bytes; any thread. They throw protozero's exceptions when the bytes are no protobuf.
#pragma once

#include <cstddef>
#include <optional>
#include <protozero/data_view.hpp>
#include <span>
#include <string_view>
#include <vector>

#include "core/dtype.h"

namespace headrace {

// A typed field with data that is not the datatype's own, as Triton names it ("INT64" for
// int64_contents); nullopt when there is none.
std::optional<std::string_view> wrong_typed_field(protozero::data_view contents, DType dtype);

// The elements in the raw form. Fixed-size ones that came as one run are answered as a view into
// `contents`; all others are appended to `out`, and the answer is empty.
std::span<const std::byte> convert_typed_contents(protozero::data_view contents, DType dtype,
                                                  std::vector<std::byte>& out);

}  // namespace headrace
