// ModelSpec: what a model version accepts and answers, as its clients see it. Immutable once the
// version serves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.h"

namespace headrace {

struct TensorSpec {
  std::string name;
  DType dtype = DType::kInvalid;
  // -1 = any size. Without the batch dimension when ModelSpec::max_batch_size > 0.
  std::vector<int64_t> dims;
  // config.pbtxt `reshape`: the dims the backend sees instead of `dims`, -1 carried over in order.
  std::optional<std::vector<int64_t>> reshape;
  bool optional = false;  // inputs only
  // Position in Model::inputs() / outputs() of the backend; set by ModelVersion::create.
  std::size_t backend_index = 0;
  std::vector<std::string> labels;  // outputs only: index -> label, for `classification`
};

struct ModelSpec {
  std::string name;
  int64_t version = 1;
  std::string version_text = "1";  // the decimal string that answers carry
  int64_t max_batch_size = 0;      // 0: the model does not batch, shapes are as they are
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;

  bool batching() const { return max_batch_size > 0; }
  // Position by name, nullopt when there is none. Linear: signatures are short.
  std::optional<std::size_t> find_input(std::string_view wanted) const {
    return find(inputs, wanted);
  }
  std::optional<std::size_t> find_output(std::string_view wanted) const {
    return find(outputs, wanted);
  }

 private:
  static std::optional<std::size_t> find(const std::vector<TensorSpec>& specs,
                                         std::string_view wanted) {
    for (std::size_t i = 0; i < specs.size(); ++i) {
      if (specs[i].name == wanted) return i;
    }
    return std::nullopt;
  }
};

}  // namespace headrace
