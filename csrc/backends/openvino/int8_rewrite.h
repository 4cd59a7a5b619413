// Replaces linear layers of an OpenVINO graph by Int8Linear operators, before it is compiled.
//
// Two kinds. Exact: the model itself is quantised (Q/DQ around a MatMul, or FakeQuantize, int8 weights):
// it is executed in integers as it says, with sums that cannot saturate. Dynamic: the model is float;
// weights become int8 here, activations row by row at run time.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include <openvino/core/model.hpp>
#include <openvino/runtime/core.hpp>

#include "base/status.h"
#include "kernels/int8_isa.h"

namespace headrace {

enum class Int8Mode : uint8_t {
  kOff,
  kExact,    // quantised layers, on processors where OpenVINO's own sums would saturate (no VNNI)
  kDynamic,  // all linear layers
  kAuto,  // those that are faster than OpenVINO's own, measured; quantised ones also as in kExact
};

// "off", "exact", "dynamic", "auto"; INVALID_ARGUMENT names them.
Result<Int8Mode> parse_int8_mode(const std::string& text);

struct Int8Rewritten {
  std::size_t exact = 0;  // layers that were replaced
  std::size_t dynamic = 0;
  std::size_t slower = 0;  // left as they are: OpenVINO is faster
  std::size_t other = 0;   // left: MatMul by something that is no constant, or too small
  // "int8 (avx512-vnni): 24 of 26 MatMuls, 2 faster in OpenVINO"; empty: nothing replaced or measured.
  std::string summary;
};

// Float layers with fewer weights stay float: they gain nothing.
inline constexpr std::size_t kLeastInt8Weights = 1024;
// kAuto wants more than this: accuracy is worth something too.
inline constexpr double kLeastInt8Speedup = 1.1;

// Without VNNI, OpenVINO multiplies u8 by s8 with an instruction that saturates.
inline bool openvino_saturates(Isa isa) { return isa == Isa::kAvx2; }

// `isa`: the kernels'. `config` is what the model will be compiled with, for one instance of `threads`. May throw what
// OpenVINO throws.
Int8Rewritten rewrite_int8(ov::Core& core, const std::shared_ptr<ov::Model>& model, Int8Mode mode,
                           const ov::AnyMap& config, std::size_t threads, Isa isa);

}  // namespace headrace
