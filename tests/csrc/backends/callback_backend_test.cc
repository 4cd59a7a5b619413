#include "backends/callback/callback_backend.h"

#include <doctest/doctest.h>

#include <cstring>
#include <stdexcept>

#include "requests.h"

using namespace headrace;
using headrace::testing::tensor_spec;
using headrace::testing::text_of;

namespace {

std::unique_ptr<Instance> instance_of(Callback callback) {
  const auto model = make_callback_model(
      {tensor_spec("X", DType::kInt8, {-1, 2}), tensor_spec("M", DType::kInt8, {-1})},
      {tensor_spec("Y", DType::kInt8, {-1, 2})}, {std::move(callback)}, "test");
  Result<std::unique_ptr<Instance>> instance = model->make_instance();
  REQUIRE(instance);
  CHECK_FALSE(model->make_instance());  // one callable, one instance
  return *std::move(instance);
}

void give(Instance& instance, const char* bytes) {
  const Result<std::span<std::byte>> memory = instance.input(0, {1, 2}, 2);
  REQUIRE(memory);
  std::memcpy(memory->data(), bytes, 2);
  REQUIRE(instance.omit(1));
}

Status identity(const std::vector<std::optional<CallbackInput>>& inputs,
                std::vector<BackendOutput>& outputs) {
  outputs.push_back({inputs[0]->tensor, inputs[0]->owner});
  return {};
}

}  // namespace

TEST_CASE("the callable gets the inputs, nullopt for one left out, and its outputs are handed on") {
  bool omitted = false;
  const auto instance = instance_of([&](const auto& inputs, auto& outputs) {
    omitted = !inputs[1].has_value();
    return identity(inputs, outputs);
  });
  give(*instance, "ab");
  REQUIRE(instance->run());
  CHECK(omitted);
  const Result<BackendOutput> output = instance->output(0);
  REQUIRE(output);
  CHECK(text_of(output->tensor.data) == "ab");
  CHECK(output->tensor.shape == Shape{1, 2});
  CHECK(output->owner);
  CHECK_FALSE(instance->output(1));
}

TEST_CASE("inputs are fresh memory each run, so the callee may keep them") {
  std::vector<CallbackInput> kept;
  const auto instance = instance_of([&](const auto& inputs, auto& outputs) {
    kept.push_back(*inputs[0]);
    return identity(inputs, outputs);
  });
  for (const char* bytes : {"ab", "cd"}) {
    give(*instance, bytes);
    REQUIRE(instance->run());
  }
  CHECK(text_of(kept[0].tensor.data) == "ab");
  CHECK(text_of(kept[1].tensor.data) == "cd");
}

TEST_CASE("failures of the callable are statuses") {
  const auto code = [](Callback callback) {
    const auto instance = instance_of(std::move(callback));
    give(*instance, "ab");
    const Status status = instance->run();
    CHECK_FALSE(status.message().empty());
    return status.code();
  };
  CHECK(code([](const auto&, auto&) -> Status { throw std::runtime_error("boom"); }) ==
        StatusCode::kInternal);
  CHECK(code([](const auto&, auto&) -> Status { throw 7; }) == StatusCode::kInternal);
  CHECK(code([](const auto&, auto&) { return Status::resource_exhausted("no room"); }) ==
        StatusCode::kResourceExhausted);
  CHECK(code([](const auto&, auto&) { return Status(); }) == StatusCode::kInternal);
  CHECK(code([](const auto& inputs, auto& outputs) {
          outputs.push_back({inputs[0]->tensor, {}});  // nobody owns it
          return Status();
        }) == StatusCode::kInternal);
}

TEST_CASE("a run after a failed one starts clean") {
  int runs = 0;
  const auto instance = instance_of([&](const auto& inputs, auto& outputs) {
    if (++runs == 1) throw std::runtime_error("boom");
    return identity(inputs, outputs);
  });
  give(*instance, "ab");
  CHECK_FALSE(instance->run());
  CHECK_FALSE(instance->output(0));
  give(*instance, "cd");
  REQUIRE(instance->run());
  CHECK(text_of(instance->output(0)->tensor.data) == "cd");
}

TEST_CASE("an instance in the place of one that is gone has a callable made anew, or the same") {
  std::vector<std::size_t> remade;
  bool broken = true;
  for (const bool anew : {true, false}) {
    RemakeCallback remake;
    if (anew) {
      remake = [&](std::size_t index) -> Result<Callback> {
        remade.push_back(index);
        if (broken) return Status::internal("no device");
        return Callback(identity);
      };
    }
    const auto held = std::make_shared<int>(0);  // by the first callables
    const Callback first = [held](const auto& inputs, auto& outputs) {
      return identity(inputs, outputs);
    };
    const auto model = make_callback_model({tensor_spec("X", DType::kInt8, {-1, 2})},
                                           {tensor_spec("Y", DType::kInt8, {-1, 2})},
                                           {first, first}, "test", remake);
    std::unique_ptr<Instance> one = *model->make_instance();
    std::unique_ptr<Instance> two = *model->make_instance();
    CHECK_FALSE(model->make_instance());
    CHECK(remade.empty());
    const auto before = held.use_count();
    CHECK(before == (anew ? 4 : 6));  // with one made anew, the first is not kept
    two.reset();
    CHECK(held.use_count() == before - 1);
    if (anew) {
      CHECK(model->make_instance().error().message() == "no device");
      broken = false;
    }
    two = *model->make_instance();
    CHECK_FALSE(model->make_instance());
    CHECK(remade == (anew ? std::vector<std::size_t>{1, 1} : std::vector<std::size_t>{}));
    remade.clear();
  }
}
