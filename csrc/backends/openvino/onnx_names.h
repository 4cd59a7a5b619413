// The names of an ONNX graph's inputs and outputs, in its order, as its author wrote them and as
// clients know them. OpenVINO keeps most of them but renames some (an input that feeds a Dropout
// comes out under the Dropout's output name), so they are read from the file.
//
// Threads: a pure function of the file.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace headrace {

struct OnnxNames {
  std::vector<std::string> inputs;  // without those that are initializers
  std::vector<std::string> outputs;
};

// Skips over everything else, weights included. nullopt: not readable as an ONNX model.
std::optional<OnnxNames> read_onnx_names(const std::string& path);

}  // namespace headrace
