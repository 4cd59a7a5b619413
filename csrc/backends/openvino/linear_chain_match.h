// Graphs that are nothing but a chain of linear layers: recognises them, and measures whether it is faster
// to run them without OpenVINO (kernels/linear_chain.h).
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>

#include <openvino/core/model.hpp>
#include <openvino/runtime/compiled_model.hpp>
#include <openvino/runtime/core.hpp>

#include "backends/openvino/int8_rewrite.h"
#include "kernels/linear_chain.h"

namespace headrace {

struct DirectChain {
  std::shared_ptr<const LinearChain> chain;
  std::string layers;                // "int8 (avx2): 3 of 3 MatMuls"
  bool same_layers = false;          // as the graph that OpenVINO executes has
  std::size_t most_rows = SIZE_MAX;  // with more, OpenVINO is faster
};

// Parameter; Int8Linear operators and small float layers; Softmax over the last dimension, or none;
// Result. At least one Int8Linear, and no dimension that is bounded (1..8), else null. `model`: after rewrite_int8().
std::shared_ptr<const LinearChain> match_chain(const ov::Model& model);

// A copy of a graph that find_chain() will want as it was before rewrite_int8(); null: it will not.
std::shared_ptr<ov::Model> before_rewrite(const ov::Model& model, Int8Mode mode, Isa isa);

// What may run directly: the graph as it was rewritten; or, where the mode left layers to OpenVINO that we
// could compute as well, `before` rewritten whole. May throw what OpenVINO throws.
std::optional<DirectChain> find_chain(ov::Core& core, const ov::Model& rewritten,
                                      const Int8Rewritten& done,
                                      const std::shared_ptr<ov::Model>& before, Int8Mode mode,
                                      Isa isa);

// Unless it is to run directly `always`, runs it and what OpenVINO compiled in turn, with one row and more
// (some 20 ms), and keeps it for as many rows as it is faster; reset where it never is, or answers
// something else. Answers what the model's description says of INT8. May throw what OpenVINO throws.
std::string choose_chain(std::optional<DirectChain>& direct, ov::CompiledModel& compiled,
                         const Int8Rewritten& done, Int8Mode mode, bool always);

}  // namespace headrace
