// ProbeSample: inputs that tell whether an instance works: a copy of what warmed it up, or zeros.
//
// Threads: immutable; any.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "core/model_spec.h"
#include "core/request.h"

namespace headrace {

class ProbeSample {
 public:
  // Of one row: unknown sizes are 1, strings empty, optional inputs left out. Nullopt when that is
  // more than kMostBytes.
  static std::optional<ProbeSample> zeros(const ModelSpec& spec);
  // Throws std::bad_alloc.
  explicit ProbeSample(const std::vector<InputTensor>& inputs);

  // Views, as long as this lives and is not moved.
  std::vector<InputTensor> inputs() const;
  std::size_t bytes() const;

  static constexpr std::size_t kMostBytes = std::size_t{64} << 20;

 private:
  struct Input {
    std::string name;
    DType dtype;
    Shape shape;
    BufferRef bytes;
  };
  ProbeSample() = default;

  std::vector<Input> inputs_;
};

}  // namespace headrace
