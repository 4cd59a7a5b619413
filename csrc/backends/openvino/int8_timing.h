// How much faster an Int8Linear operator is than the operators it would replace.
#pragma once

#include <memory>

#include <openvino/core/model.hpp>
#include <openvino/runtime/core.hpp>

#include "backends/openvino/int8_match.h"
#include "kernels/int8_pack.h"

namespace headrace {

// Both are compiled as models of their own and run in turn, with the rows that the layer has or, where
// those are open, with few and with many: the geometric mean of the ratios, above 1 where ours is faster.
// Some 20 ms. May throw what OpenVINO throws.
double int8_speedup(ov::Core& core, const LinearMatch& match,
                    const std::shared_ptr<const PackedLinear>& layer, const ov::AnyMap& config,
                    std::size_t threads);

}  // namespace headrace
