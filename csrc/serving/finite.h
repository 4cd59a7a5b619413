// all_finite: whether a tensor of floating-point numbers has no NaN and no infinity.
#pragma once

#include "core/tensor.h"

namespace headrace {

// FP16, BF16, FP32, FP64; other datatypes have nothing to find. Cost: one pass, vectorised.
bool all_finite(const TensorView& tensor);

}  // namespace headrace
