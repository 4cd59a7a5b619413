#include "serving/signature.h"

#include <doctest/doctest.h>

#include "backends/callback/callback_backend.h"
#include "requests.h"

using namespace headrace;
using headrace::testing::tensor_spec;

namespace {

std::shared_ptr<Model> model() {
  return make_callback_model(
      {tensor_spec("A", DType::kFp32, {-1, 16}), tensor_spec("B", DType::kInt8, {-1, -1})},
      {tensor_spec("Y", DType::kFp32, {-1, 10}), tensor_spec("Z", DType::kFp32, {-1, -1})}, {}, "");
}

ModelSpec good() {
  ModelSpec spec;
  spec.name = "m";
  spec.max_batch_size = 8;
  spec.inputs = {tensor_spec("B", DType::kInt8, {3}), tensor_spec("A", DType::kFp32, {16})};
  spec.outputs = {tensor_spec("Z", DType::kFp32, {-1})};
  return spec;
}

void refused(ModelSpec spec, const std::string& text) {
  const Status status = bind_signature(spec, *model());
  CAPTURE(status.message());
  CHECK(status.code() == StatusCode::kInvalidArgument);
  CHECK(status.message().starts_with("model 'm', "));
  CHECK(status.message().find(text) != std::string::npos);
}

}  // namespace

TEST_CASE("a spec in any order, with some of the outputs, is bound to the model's positions") {
  ModelSpec spec = good();
  REQUIRE(bind_signature(spec, *model()));
  CHECK(spec.inputs[0].backend_index == 1);
  CHECK(spec.inputs[1].backend_index == 0);
  CHECK(spec.outputs[0].backend_index == 1);
}

TEST_CASE("an output may be configured looser than the model makes it, an input may not") {
  ModelSpec spec = good();
  spec.outputs = {tensor_spec("Y", DType::kFp32, {-1})};
  CHECK(bind_signature(spec, *model()));
  spec.inputs[1].dims = {-1};
  refused(spec,
          "input 'A': the model expects 2 dimensions (shape [-1,16]) but the model configuration "
          "specifies 2 dimensions (an initial batch dimension because max_batch_size > 0 "
          "followed by the explicit tensor shape, making complete shape [-1,-1])");
}

TEST_CASE("what does not fit is named") {
  ModelSpec spec = good();
  spec.inputs[0].dtype = DType::kFp32;
  refused(spec, "input 'B': the model expects data-type 'INT8'");
  spec = good();
  spec.inputs[0].name = "C";
  refused(spec, "input 'C' is not one of the model's: 'A', 'B'");
  spec = good();
  spec.inputs.pop_back();
  refused(spec, "input 'A' of the model is missing");
  spec = good();
  spec.inputs.push_back(spec.inputs[0]);
  refused(spec, "input 'B' is configured twice");
  spec = good();
  spec.max_batch_size = 0;
  refused(spec,
          "the model expects 2 dimensions (shape [-1,-1]) but the model configuration specifies "
          "1 dimensions (shape [3])");
  spec = good();
  spec.outputs[0].name = "Q";
  refused(spec, "output 'Q' is not one of the model's");
  spec = good();
  spec.inputs[1].dims = {15};
  refused(spec, "input 'A'");
  spec = good();
  spec.inputs[0].dims = {-3};
  refused(spec, "negative");
  spec = good();
  spec.inputs[0].dims.assign(16, 1);
  refused(spec, "more than 16 dimensions");
}

TEST_CASE("a batching model needs a free batch dimension, unless batches are of one") {
  const auto fixed = make_callback_model({tensor_spec("A", DType::kFp32, {1, 4})},
                                         {tensor_spec("Y", DType::kFp32, {1, 4})}, {}, "");
  ModelSpec spec;
  spec.name = "m";
  spec.inputs = {tensor_spec("A", DType::kFp32, {4})};
  spec.outputs = {tensor_spec("Y", DType::kFp32, {4})};
  spec.max_batch_size = 1;
  CHECK(bind_signature(spec, *fixed));
  spec.max_batch_size = 2;
  CHECK_FALSE(bind_signature(spec, *fixed));
}

TEST_CASE("reshape must keep the number of elements and of -1s") {
  ModelSpec spec = good();
  spec.inputs[1].dims = {4, 4};
  spec.inputs[1].reshape = std::vector<int64_t>{16};
  CHECK(bind_signature(spec, *model()));
  spec.inputs[1].dims = {4, 5};
  refused(spec, "reshape [16]");
  spec.inputs[1].dims = {16, -1};
  refused(spec, "reshape [16]");
}

TEST_CASE("policies that do not suit the model are refused, preferred sizes sorted") {
  ModelSpec spec = good();
  BatchPolicy policy;
  policy.max_rows = 8;
  policy.preferred_batch_size = {8, 2, 4};
  REQUIRE(check_policy(policy, spec));
  CHECK(policy.preferred_batch_size == std::vector<int64_t>{2, 4, 8});
  const auto bad = [&](auto change) {
    BatchPolicy changed = policy;
    change(changed);
    return check_policy(changed, spec).code() == StatusCode::kInvalidArgument;
  };
  CHECK(bad([](BatchPolicy& p) { p.max_rows = 9; }));
  CHECK(bad([](BatchPolicy& p) { p.max_rows = 0; }));
  CHECK(bad([](BatchPolicy& p) { p.preferred_batch_size = {9}; }));
  CHECK(bad([](BatchPolicy& p) { p.preferred_batch_size = {0}; }));
  CHECK(bad([](BatchPolicy& p) { p.priority_levels = UINT64_MAX; }));
  CHECK(bad([](BatchPolicy& p) { p.priority_levels = 2; }));
  CHECK(bad([](BatchPolicy& p) { p.queue_bound = 0; }));
  spec.max_batch_size = 0;
  CHECK_FALSE(check_policy(policy, spec));
}
