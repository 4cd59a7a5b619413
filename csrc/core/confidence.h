// Confidence: how sure a classifier is of its answer, read from one of its outputs.
// Pure; any thread. Cost: one pass over the output, no allocation.
#pragma once

#include <cstdint>
#include <optional>

#include "core/tensor.h"

namespace headrace {

// What makes probabilities of the numbers of a row.
enum class Activation : uint8_t {
  kNone,  // they are some
  kSoftmax,
  kSigmoid,  // each by itself
};

enum class Measure : uint8_t {
  kProbability,  // the largest one
  kMargin,       // the largest less the second largest
};

// Of a floating-point tensor (FP16, BF16, FP32, FP64) of shape [rows,] + any dims of n numbers in
// all (`batching`: dim 0 is the rows; otherwise it is one row): the confidence of the least
// confident row. n = 1: the probability p of the one class of two, so that the largest is max(p,
// 1 - p). A row with a NaN: 0. Within [0, 1] when the numbers are what `activation` says.
// nullopt: other datatypes, no rows, n = 0, or `data` of another size.
std::optional<float> confidence_of(const TensorView& tensor, bool batching, Activation activation,
                                   Measure measure);

}  // namespace headrace
