// A model whose short runs may take place on the thread that brings the requests.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backends/backend.h"

namespace headrace::testing {

class AnywhereModel final : public Model {
 public:
  explicit AnywhereModel(std::shared_ptr<Model> model) : model_(std::move(model)) {}
  const std::vector<TensorSpec>& inputs() const override { return model_->inputs(); }
  const std::vector<TensorSpec>& outputs() const override { return model_->outputs(); }
  std::string description() const override { return model_->description(); }
  bool runs_anywhere() const override { return true; }
  Result<std::unique_ptr<Instance>> make_instance() override { return model_->make_instance(); }

 private:
  std::shared_ptr<Model> model_;
};

}  // namespace headrace::testing
