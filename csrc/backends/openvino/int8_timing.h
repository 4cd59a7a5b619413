// How much faster an Int8Linear operator is than the operators it would replace; and what measuring two
// ways of the same thing takes.
#pragma once

#include <algorithm>
#include <chrono>
#include <memory>
#include <vector>

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

// What to run something with that reads [..., inputs] of this shape: that, or 1, 16 and 128 rows.
std::vector<ov::Shape> shapes_to_time(const ov::PartialShape& shape, std::size_t inputs);
// Gaussian f32.
ov::Tensor random_tensor(const ov::Shape& shape);

// How many times as fast `ours` is as `theirs`: run in turn in short slices, the best slice of each. Once
// before, unmeasured.
template <class Theirs, class Ours>
double speed_ratio(Theirs theirs, Ours ours) {
  constexpr int kSlices = 5;
  constexpr std::chrono::microseconds kSlice{300};
  const auto slice = [&](auto& run) {  // seconds a run
    const auto start = std::chrono::steady_clock::now();
    auto now = start;
    int runs = 0;
    do {
      run();
      ++runs;
      now = std::chrono::steady_clock::now();
    } while (now - start < kSlice);
    return std::chrono::duration<double>(now - start).count() / runs;
  };
  theirs();
  ours();
  double best[2] = {1e30, 1e30};
  for (int i = 0; i < kSlices; ++i) {
    best[0] = std::min(best[0], slice(theirs));
    best[1] = std::min(best[1], slice(ours));
  }
  return best[0] / best[1];
}

}  // namespace headrace
