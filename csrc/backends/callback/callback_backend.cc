#include "backends/callback/callback_backend.h"

#include <atomic>
#include <exception>
#include <new>
#include <utility>

namespace headrace {
namespace {

struct Signature {
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
};

class CallbackInstance final : public Instance {
 public:
  CallbackInstance(std::shared_ptr<const Signature> signature, Callback callback)
      : signature_(std::move(signature)),
        callback_(std::move(callback)),
        inputs_(signature_->inputs.size()) {}

  Result<std::span<std::byte>> input(std::size_t index, const Shape& shape,
                                     std::size_t bytes) override {
    if (index >= inputs_.size()) return no_such("input", index);
    outputs_.clear();
    CallbackInput& input = inputs_[index].emplace();
    try {
      input.owner = BufferRef::allocate(bytes);
    } catch (const std::bad_alloc&) {
      return Status::resource_exhausted("no memory for " + std::to_string(bytes) +
                                        " bytes of input '" + signature_->inputs[index].name + "'");
    }
    input.tensor = {signature_->inputs[index].dtype, shape, std::as_const(input.owner).span()};
    return input.owner.span();
  }

  Status omit(std::size_t index) override {
    if (index >= inputs_.size()) return no_such("input", index);
    outputs_.clear();
    inputs_[index].reset();
    return {};
  }

  Status run() override {
    outputs_.clear();
    Status status = call();
    // What the callee did not keep is freed now, not at the next run.
    for (std::optional<CallbackInput>& input : inputs_) input.reset();
    if (!status) return status;
    if (outputs_.size() != signature_->outputs.size()) {
      return Status::internal("the callable answered " + std::to_string(outputs_.size()) +
                              " outputs, expected " + std::to_string(signature_->outputs.size()));
    }
    for (std::size_t i = 0; i < outputs_.size(); ++i) {
      if (!outputs_[i].owner && !outputs_[i].tensor.data.empty()) {
        return Status::internal("the callable answered output '" + signature_->outputs[i].name +
                                "' without an owner of its memory");
      }
    }
    return {};
  }

  Result<BackendOutput> output(std::size_t index) override {
    if (index >= outputs_.size()) return no_such("output", index);
    return outputs_[index];
  }

 private:
  static Status no_such(const char* what, std::size_t index) {
    return Status::internal("the callable has no " + std::string(what) + " " +
                            std::to_string(index));
  }

  Status call() noexcept try {
    return callback_(inputs_, outputs_);
  } catch (const std::exception& e) {
    return Status::internal(e.what());
  } catch (...) {
    return Status::internal("the callable threw something that is no std::exception");
  }

  std::shared_ptr<const Signature> signature_;
  Callback callback_;
  std::vector<std::optional<CallbackInput>> inputs_;
  std::vector<BackendOutput> outputs_;
};

class CallbackModel final : public Model {
 public:
  CallbackModel(std::vector<TensorSpec> inputs, std::vector<TensorSpec> outputs,
                std::vector<Callback> callbacks, std::string description)
      : signature_(
            std::make_shared<const Signature>(Signature{std::move(inputs), std::move(outputs)})),
        callbacks_(std::move(callbacks)),
        description_(std::move(description)) {}

  const std::vector<TensorSpec>& inputs() const override { return signature_->inputs; }
  const std::vector<TensorSpec>& outputs() const override { return signature_->outputs; }
  std::string description() const override { return description_; }

  Result<std::unique_ptr<Instance>> make_instance() override {
    const std::size_t index = next_.fetch_add(1, std::memory_order_relaxed);
    if (index >= callbacks_.size()) {
      return Status::invalid_argument(
          "a model of " + std::to_string(callbacks_.size()) + " callables cannot make instance " +
          std::to_string(index + 1) + "; pass one callable an instance");
    }
    return std::unique_ptr<Instance>(
        std::make_unique<CallbackInstance>(signature_, callbacks_[index]));
  }

 private:
  std::shared_ptr<const Signature> signature_;
  const std::vector<Callback> callbacks_;
  const std::string description_;
  std::atomic<std::size_t> next_{0};
};

}  // namespace

std::shared_ptr<Model> make_callback_model(std::vector<TensorSpec> inputs,
                                           std::vector<TensorSpec> outputs,
                                           std::vector<Callback> callbacks,
                                           std::string description) {
  return std::make_shared<CallbackModel>(std::move(inputs), std::move(outputs),
                                         std::move(callbacks), std::move(description));
}

}  // namespace headrace
