#include "serving/probe_sample.h"

#include <doctest/doctest.h>

#include "requests.h"
#include "serving/check_request.h"

using namespace headrace;
using namespace headrace::testing;

TEST_CASE("zeros are one row that the signature takes") {
  ModelSpec spec;
  spec.name = "m";
  spec.max_batch_size = 8;
  spec.inputs = {tensor_spec("X", DType::kFp32, {-1, 3}), tensor_spec("S", DType::kBytes, {2}),
                 tensor_spec("O", DType::kInt8, {4})};
  spec.inputs[2].optional = true;
  const std::optional<ProbeSample> sample = ProbeSample::zeros(spec);
  REQUIRE(sample);
  CHECK(sample->bytes() == 12 + 8);
  Collector collector;
  RequestPtr request(new Request(collector));
  request->inputs = sample->inputs();
  REQUIRE(request->inputs.size() == 2);
  CHECK(request->inputs[0].tensor.shape == Shape{1, 1, 3});
  CHECK(check_request(spec, *request));
  CHECK(request->rows == 1);

  spec.inputs[0].dims = {int64_t{1} << 40};
  CHECK_FALSE(ProbeSample::zeros(spec));
  spec.inputs[0].dims = {int64_t{1} << 40, int64_t{1} << 40};
  CHECK_FALSE(ProbeSample::zeros(spec));
}

TEST_CASE("a copy outlives what it was made of") {
  std::optional<ProbeSample> sample;
  {
    const std::string name = "a name that is longer than what a string keeps inside";
    const std::string bytes = "abcd";
    sample.emplace(
        std::vector<InputTensor>{{name, {DType::kInt8, {1, 4}, std::as_bytes(std::span(bytes))}}});
  }
  const std::vector<InputTensor> inputs = sample->inputs();
  REQUIRE(inputs.size() == 1);
  CHECK(inputs[0].name == "a name that is longer than what a string keeps inside");
  CHECK(text_of(inputs[0].tensor.data) == "abcd");
  CHECK(inputs[0].tensor.shape == Shape{1, 4});
}
