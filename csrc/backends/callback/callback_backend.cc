#include "backends/callback/callback_backend.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <new>
#include <utility>

namespace headrace {
namespace {

struct Signature {
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
};

// Which of a model's places for instances are taken.
struct Places {
  struct Place {
    bool taken = false;
    bool remake = false;  // its callback was used up
  };
  std::mutex mutex;
  std::vector<Place> places;  // guarded by mutex
};

class CallbackInstance final : public Instance {
 public:
  CallbackInstance(std::shared_ptr<const Signature> signature, Callback callback,
                   std::shared_ptr<void> place)
      : place_(std::move(place)),
        signature_(std::move(signature)),
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

  const std::shared_ptr<void> place_;  // free once the callback is gone
  std::shared_ptr<const Signature> signature_;
  Callback callback_;
  std::vector<std::optional<CallbackInput>> inputs_;
  std::vector<BackendOutput> outputs_;
};

class CallbackModel final : public Model {
 public:
  CallbackModel(std::vector<TensorSpec> inputs, std::vector<TensorSpec> outputs,
                std::vector<Callback> callbacks, std::string description, RemakeCallback remake)
      : signature_(
            std::make_shared<const Signature>(Signature{std::move(inputs), std::move(outputs)})),
        callbacks_(std::move(callbacks)),
        remake_(std::move(remake)),
        description_(std::move(description)) {
    places_->places.resize(callbacks_.size());
  }

  const std::vector<TensorSpec>& inputs() const override { return signature_->inputs; }
  const std::vector<TensorSpec>& outputs() const override { return signature_->outputs; }
  std::string description() const override { return description_; }

  Result<std::unique_ptr<Instance>> make_instance() override {
    std::size_t index = 0;
    bool remake = false;
    {
      const std::lock_guard lock(places_->mutex);
      std::vector<Places::Place>& places = places_->places;
      const auto free = std::find_if(places.begin(), places.end(),
                                     [](const Places::Place& place) { return !place.taken; });
      if (free == places.end()) {
        return Status::invalid_argument(
            "a model of " + std::to_string(places.size()) + " callables cannot make instance " +
            std::to_string(places.size() + 1) + "; pass one callable an instance");
      }
      index = static_cast<std::size_t>(free - places.begin());
      free->taken = true;
      remake = std::exchange(free->remake, remake_ != nullptr);
    }
    std::shared_ptr<void> place(nullptr, [places = places_, index](void*) {
      const std::lock_guard lock(places->mutex);
      places->places[index].taken = false;
    });
    // Whoever has the place has its callback. With `remake` it is not kept: it may hold much.
    Callback callback;
    if (remake) {
      Result<Callback> made = remake_(index);
      if (!made) return made.error();
      callback = *std::move(made);
    } else {
      callback = remake_ != nullptr ? std::move(callbacks_[index]) : callbacks_[index];
    }
    return std::unique_ptr<Instance>(
        std::make_unique<CallbackInstance>(signature_, std::move(callback), std::move(place)));
  }

 private:
  std::shared_ptr<const Signature> signature_;
  std::vector<Callback> callbacks_;
  const RemakeCallback remake_;
  const std::string description_;
  const std::shared_ptr<Places> places_ = std::make_shared<Places>();
};

}  // namespace

std::shared_ptr<Model> make_callback_model(std::vector<TensorSpec> inputs,
                                           std::vector<TensorSpec> outputs,
                                           std::vector<Callback> callbacks, std::string description,
                                           RemakeCallback remake) {
  return std::make_shared<CallbackModel>(std::move(inputs), std::move(outputs),
                                         std::move(callbacks), std::move(description),
                                         std::move(remake));
}

}  // namespace headrace
