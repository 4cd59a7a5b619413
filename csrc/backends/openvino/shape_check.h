// ShapeCheck: whether a graph accepts inputs of given shapes. The CPU plugin does not ask at run
// time: a MatMul whose inner dims disagree reads past the end of its input, answers heap contents
// or dies. So every combination of shapes is inferred through the graph before it runs for the
// first time.
//
// Threads: any; one combination is inferred at a time, those already judged are looked up.
#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>

#include <openvino/core/model.hpp>

#include "base/status.h"
#include "core/tensor.h"

namespace headrace {

class ShapeCheck {
 public:
  // Copies the graph without its weights. May throw what OpenVINO throws.
  explicit ShapeCheck(const ov::Model& model);

  // `shapes[i]` is input i's and fits the signature. INVALID_ARGUMENT says which operator refuses.
  // Costs about as much as reading the model for a new combination (1 - 20 ms), 0.1 us for one
  // seen.
  Status check(std::span<const Shape> shapes);

 private:
  static constexpr std::size_t kMaxRemembered = 4096;

  Status infer(std::span<const Shape> shapes);

  std::mutex mutex_;
  std::shared_ptr<ov::Model> model_;                // guarded by mutex_
  std::size_t inputs_ = 0;                          // the first parameters of model_
  bool dynamic_ = false;                            // otherwise the signature says it all
  std::unordered_map<std::string, Status> judged_;  // guarded by mutex_; by the dims' bytes
};

}  // namespace headrace
