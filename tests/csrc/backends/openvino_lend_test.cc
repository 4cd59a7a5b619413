// Inputs that are lent.
#include <doctest/doctest.h>

#include "backends/openvino_fixture.h"

namespace headrace {
namespace {

Status lend(Instance& instance, const Shape& shape, const std::vector<float>& values) {
  return instance.lend(0, TensorView{DType::kFp32, shape, as_bytes_of(values)});
}

TEST_CASE("openvino: what is lent is read where it lies, and lending and copying take turns") {
  if (!built_in()) return;
  const TempDir dir;
  const std::string path = dir.write("m.onnx", unary("Identity", DType::kFp32, {-1, 2}));
  const OpenVinoBackend backend;
  for (const bool trusted : {false, true}) {
    OpenVinoOptions options;
    options.trusted_shapes = trusted;
    Result<std::shared_ptr<Model>> model = backend.load(path, options);
    REQUIRE(model.has_value());
    const std::unique_ptr<Instance> instance = instance_of(**model);
    std::vector<float> one = {1, 2, 3, 4};
    const std::vector<float> two = {5, 6};
    const auto answer = [&] {
      check_ok(instance->run());
      Result<BackendOutput> output = instance->output(0);
      REQUIRE(output.has_value());
      return values_of<float>(*output);
    };
    check_ok(lend(*instance, Shape{2, 2}, one));
    CHECK(answer() == one);
    one[3] = 7;  // the same tensor again, changed
    check_ok(lend(*instance, Shape{2, 2}, one));
    CHECK(answer() == one);
    check_ok(lend(*instance, Shape{1, 2}, two));
    CHECK(answer() == two);
    check_ok(give(*instance, 0, Shape{2, 2}, as_bytes_of(one)));
    CHECK(answer() == one);
    check_ok(lend(*instance, Shape{1, 2}, two));
    CHECK(answer() == two);
    check_ok(give(*instance, 0, Shape{1, 2}, as_bytes_of(std::vector<float>{8, 9})));
    CHECK(answer() == std::vector<float>{8, 9});
    check_ok(lend(*instance, Shape{0, 2}, {}));
    CHECK(answer().empty());

    // What was lent for one run is not for the next, and must fit.
    CHECK(instance->run().code() == StatusCode::kInternal);
    CHECK(lend(*instance, Shape{2, 3}, one).code() == StatusCode::kInvalidArgument);
    CHECK(lend(*instance, Shape{2, 2}, two).code() == StatusCode::kInvalidArgument);
    CHECK(instance->lend(1, TensorView{}).code() == StatusCode::kInternal);
    check_ok(lend(*instance, Shape{1, 2}, two));
    CHECK(answer() == two);
  }
}

}  // namespace
}  // namespace headrace
