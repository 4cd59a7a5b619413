// LinearChainInstance: runs a chain of linear layers without OpenVINO, where the rows are few enough;
// whatever else is asked of it goes to an instance of OpenVINO's, whose errors are the errors. A run allocates
// nothing once its batch size has been seen.
#pragma once

#include <cstddef>
#include <memory>

#include "backends/backend.h"
#include "kernels/linear_chain.h"

namespace headrace {

class LinearChainInstance final : public Instance {
 public:
  // `input`, `output`: the model's only ones, f32. More than `most_rows` go to `other`.
  LinearChainInstance(std::shared_ptr<const LinearChain> chain, const TensorSpec& input,
                      std::size_t most_rows, std::unique_ptr<Instance> other);

  Result<std::span<std::byte>> input(std::size_t index, const Shape& shape,
                                     std::size_t bytes) override;
  Status lend(std::size_t index, const TensorView& tensor) override;
  Status omit(std::size_t index) override;
  Status run() override;
  Result<BackendOutput> output(std::size_t index) override;

 private:
  // Whether the next run, of `bytes` bytes, is ours; if so it is prepared but for x_.
  bool prepare(std::size_t index, const Shape& shape, std::size_t bytes);

  const std::shared_ptr<const LinearChain> chain_;
  const TensorSpec input_;
  const std::size_t most_rows_;
  const std::unique_ptr<Instance> other_;

  enum class State : uint8_t { kOther, kGiven, kRan };
  State state_ = State::kOther;  // kOther: it is the other's turn
  const float* x_ = nullptr;
  std::size_t rows_ = 0;
  Shape shape_;  // of the output
  AlignedBytes memory_, y_, scratch_;
};

}  // namespace headrace
