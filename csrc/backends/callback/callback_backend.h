// Callback backend: a model is a C++ function. bindings/ wraps a Python callable in one;
// onnxruntime and torch ride on that. Tests use it as the smallest real model.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backends/backend.h"

namespace headrace {

// An input of a batch; `owner` may be kept by the callee beyond the call (the memory is fresh each
// run).
struct CallbackInput {
  TensorView tensor;
  BufferRef owner;
};

// inputs[i] is the model's input i, nullopt when the batch left it out. The callee puts one
// BackendOutput an output, in the model's order; every one with an owner. Called on the instance's
// thread. Exceptions must not leave it.
using Callback = std::function<Status(const std::vector<std::optional<CallbackInput>>& inputs,
                                      std::vector<BackendOutput>& outputs)>;

// Makes the callback of an instance anew, whose last one is gone. Called by make_instance(), on its
// thread.
using RemakeCallback = std::function<Result<Callback>(std::size_t index)>;

// A model of as many instances at a time as there are callbacks. An instance in the place of one that
// is gone gets the callback that `remake` makes; without it, the same as before. `inputs` and
// `outputs` with the batch dimension.
std::shared_ptr<Model> make_callback_model(std::vector<TensorSpec> inputs,
                                           std::vector<TensorSpec> outputs,
                                           std::vector<Callback> callbacks, std::string description,
                                           RemakeCallback remake = nullptr);

}  // namespace headrace
