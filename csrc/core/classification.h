// Classification: the top-k classes of an output instead of its values, as Triton's
// `classification` parameter asks for. Pure; any thread.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "core/model_spec.h"
#include "core/request.h"

namespace headrace {

// Replaces `output`, of `spec`, shape [batch,] + any dims of n elements in all, by a BYTES tensor
// of shape [batch,] min(k, n): each element "value:index[:label]", largest value first, the smaller
// index first among equals, NaNs last. Values as std::to_string prints them. `batching`: dim 0 is
// the batch. Errors: INVALID_ARGUMENT for BOOL and BYTES; k must be > 0.
Status classify(const TensorSpec& spec, bool batching, int64_t k, OutputTensor& output);

}  // namespace headrace
