// Models that are a chain of linear layers, run without OpenVINO: equal to the same layers as operators
// of OpenVINO's graph; what is no such chain is left alone; odd requests get OpenVINO's answers.
// tests/python/control/test_int8.py has quantised ones.
#include <doctest/doctest.h>

#include <limits>

#include "backends/openvino_fixture.h"
#include "kernels/int8_isa.h"

namespace headrace {
namespace {

bool kernels_here() {
  if (built_in() && best_isa() != Isa::kReference) return true;
  MESSAGE("skipped: no OpenVINO in this build, or no INT8 instructions in this processor");
  return false;
}

// Four layers with a function each; `dims`: of x, the last one 48.
std::string chain_of(const std::vector<int64_t>& dims, bool softmax = false) {
  std::vector<int64_t> out = dims;
  out.back() = 20;
  OnnxModel model;
  model.input("x", DType::kFp32, dims).output("y", DType::kFp32, out);
  const std::vector<int64_t> sizes = {48, 64, 100, 70, 20};
  const std::vector<std::string> functions = {"Relu", "Tanh", "Sigmoid", ""};
  std::string value = "x";
  for (std::size_t i = 0; i < functions.size(); ++i) {
    const std::string n = std::to_string(i);
    const bool last = i + 1 == functions.size();
    const std::size_t weights = static_cast<std::size_t>(sizes[i] * sizes[i + 1]);
    model.constant("w" + n, {sizes[i], sizes[i + 1]},
                   random_floats(weights, static_cast<uint32_t>(i)));
    model.constant("b" + n, {sizes[i + 1]},
                   random_floats(static_cast<std::size_t>(sizes[i + 1]), 9));
    model.node("MatMul", {value, "w" + n}, {"m" + n});
    value = last ? (softmax ? "logits" : "y") : "a" + n;
    model.node("Add", {"m" + n, "b" + n}, {value});
    if (!last) {
      model.node(functions[i], {value}, {"f" + n});
      value = "f" + n;
    }
  }
  if (softmax) model.node("Softmax", {"logits"}, {"y"}, {{"axis", -1}});
  return model.serialise();
}

std::vector<float> run_once(Instance& instance, const Shape& shape, const std::vector<float>& x) {
  check_ok(give(instance, 0, shape, as_bytes_of(x)));
  check_ok(instance.run());
  Result<BackendOutput> answer = instance.output(0);
  REQUIRE(answer.has_value());
  CHECK(answer->tensor.shape.size() == shape.size());
  CHECK(answer->tensor.shape[0] == shape[0]);
  return values_of<float>(*answer);
}

double error_of(const std::vector<float>& y, const std::vector<float>& want) {
  REQUIRE(y.size() == want.size());
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    difference += (y[i] - want[i]) * (y[i] - want[i]);
    size += want[i] * want[i];
  }
  return std::sqrt(difference / size);
}

bool is_direct(const Model& model) {
  return model.description().find("without OpenVINO") != std::string::npos;
}

std::vector<float> random_rows(int64_t rows) {
  return random_floats(static_cast<std::size_t>(rows * 48), 5);
}

TEST_CASE("direct chain: equal, bit for bit, to the operators in OpenVINO's graph") {
  if (!kernels_here()) return;
  const TempDir dir;
  const OpenVinoBackend backend;
  const std::string path = dir.write("m.onnx", chain_of({-1, 48}));
  const std::string deep = dir.write("d.onnx", chain_of({-1, -1, 48}));
  for (const Isa isa : available_isas()) {
    if (isa == Isa::kReference) continue;
    CAPTURE(isa_name(isa));
    OpenVinoOptions options{.int8 = "dynamic", .int8_isa = isa};
    options.direct_chains = DirectChains::kNever;
    const std::shared_ptr<Model> graph = loaded(backend, path, options);
    const std::shared_ptr<Model> deep_graph = loaded(backend, deep, options);
    options.direct_chains = DirectChains::kAlways;
    const std::shared_ptr<Model> direct = loaded(backend, path, options);
    const std::shared_ptr<Model> deep_direct = loaded(backend, deep, options);
    const std::shared_ptr<Model> plain = loaded(backend, path, {.int8 = "off"});
    CHECK_FALSE(is_direct(*graph));
    CHECK(is_direct(*direct));
    CHECK(is_direct(*deep_direct));
    CHECK(direct->description().find("4 of 4 MatMuls") != std::string::npos);
    const auto want = instance_of(*graph), instance = instance_of(*direct);
    const auto exact = instance_of(*plain);
    for (const int64_t rows : {1, 2, 33, 100, 1, 65}) {
      const std::vector<float> x = random_rows(rows);
      const std::vector<float> y = run_once(*instance, Shape{rows, 48}, x);
      CHECK(y == run_once(*want, Shape{rows, 48}, x));
      CHECK(error_of(y, run_once(*exact, Shape{rows, 48}, x)) < 0.05);
    }
    const std::vector<float> x = random_rows(21);
    CHECK(run_once(*instance_of(*deep_direct), Shape{3, 7, 48}, x) ==
          run_once(*instance_of(*deep_graph), Shape{3, 7, 48}, x));
  }
}

TEST_CASE("direct chain: softmax, and layers too small for INT8") {
  if (!kernels_here()) return;
  const TempDir dir;
  const OpenVinoBackend backend;
  OnnxModel small;  // 48 x 64, then 64 x 3 in float
  small.input("x", DType::kFp32, {-1, 48}).output("y", DType::kFp32, {-1, 3});
  small.constant("w0", {48, 64}, random_floats(48 * 64, 1))
      .constant("w1", {64, 3}, random_floats(192, 2));
  small.constant("b1", {3}, random_floats(3, 3));
  small.node("MatMul", {"x", "w0"}, {"m"}).node("Relu", {"m"}, {"r"});
  small.node("MatMul", {"r", "w1"}, {"n"})
      .node("Add", {"n", "b1"}, {"a"})
      .node("Sigmoid", {"a"}, {"y"});
  for (const std::string& model : {chain_of({-1, 48}, true), small.serialise()}) {
    const std::string path = dir.write("m.onnx", model);
    OpenVinoOptions options{.int8 = "dynamic"};
    options.direct_chains = DirectChains::kAlways;
    const std::shared_ptr<Model> direct = loaded(backend, path, options);
    CHECK(is_direct(*direct));
    options.direct_chains = DirectChains::kNever;
    const std::shared_ptr<Model> graph = loaded(backend, path, options);
    for (const int64_t rows : {1, 40}) {
      const std::vector<float> x = random_rows(rows);
      CHECK(error_of(run_once(*instance_of(*direct), Shape{rows, 48}, x),
                     run_once(*instance_of(*graph), Shape{rows, 48}, x)) < 1e-5);
    }
  }
}

TEST_CASE("direct chain: what it is measured to be is said, and the answer is right either way") {
  if (!kernels_here()) return;
  const TempDir dir;
  const OpenVinoBackend backend;
  const std::string path = dir.write("m.onnx", chain_of({-1, 48}));
  const auto exact = instance_of(*loaded(backend, path, {.int8 = "off"}));
  for (const char* mode : {"dynamic", "auto"}) {
    const std::shared_ptr<Model> model = loaded(backend, path, {.int8 = mode});
    CHECK(model->description().find("without OpenVINO") != std::string::npos);
    const auto instance = instance_of(*model);
    for (const int64_t rows : {1, 200}) {
      const std::vector<float> x = random_rows(rows);
      CHECK(error_of(run_once(*instance, Shape{rows, 48}, x),
                     run_once(*exact, Shape{rows, 48}, x)) < 0.05);
    }
  }
  for (const char* mode : {"off", "exact"}) {
    CHECK(loaded(backend, path, {.int8 = mode})->description().find("int8") == std::string::npos);
  }
}

TEST_CASE("direct chain: graphs that are none, and models that stay float") {
  if (!kernels_here()) return;
  const TempDir dir;
  const OpenVinoBackend backend;
  const auto square = [](OnnxModel& model) -> OnnxModel& {
    model.input("x", DType::kFp32, {-1, 48}).output("y", DType::kFp32, {-1, 48});
    return model.constant("w", {48, 48}, random_floats(48 * 48, 1))
        .node("MatMul", {"x", "w"}, {"m"});
  };
  OnnxModel residual, two, other, softmax;
  square(residual).node("Add", {"m", "x"}, {"y"});
  square(two)
      .output("z", DType::kFp32, {-1, 48})
      .node("Relu", {"m"}, {"y"})
      .node("Exp", {"m"}, {"z"});
  square(other).node("Exp", {"m"}, {"y"});
  square(softmax).node("Softmax", {"m"}, {"y"}, {{"axis", 0}});
  const std::string plain = Mlp().onnx();  // layers too small for INT8
  for (const std::string& model :
       {residual.serialise(), two.serialise(), other.serialise(), softmax.serialise(), plain}) {
    OpenVinoOptions options{.int8 = "dynamic"};
    options.direct_chains = DirectChains::kAlways;
    CHECK_FALSE(is_direct(*loaded(backend, dir.write("m.onnx", model), options)));
  }
}

TEST_CASE("direct chain: two softmaxes are none") {
  if (!kernels_here()) return;
  const TempDir dir;
  const OpenVinoBackend backend;
  OnnxModel twice;
  twice.input("x", DType::kFp32, {-1, 48}).output("y", DType::kFp32, {-1, 64});
  twice.constant("w", {48, 64}, random_floats(48 * 64, 1)).node("MatMul", {"x", "w"}, {"m"});
  twice.node("Softmax", {"m"}, {"s"}, {{"axis", -1}}).node("Softmax", {"s"}, {"y"}, {{"axis", -1}});
  const std::string path = dir.write("m.onnx", twice.serialise());
  OpenVinoOptions options{.int8 = "dynamic"};
  options.direct_chains = DirectChains::kAlways;
  const std::shared_ptr<Model> model = loaded(backend, path, options);
  CHECK_FALSE(is_direct(*model));
  const std::vector<float> x = random_rows(3);
  const auto exact = instance_of(*loaded(backend, path, {.int8 = "off"}));
  CHECK(error_of(run_once(*instance_of(*model), Shape{3, 48}, x),
                 run_once(*exact, Shape{3, 48}, x)) < 0.01);
}

// y = x w, of at most 8 rows, as OpenVINO IR.
const char* const kBounded = R"(<?xml version="1.0"?>
<net name="bounded" version="11"><layers>
<layer id="0" name="x" type="Parameter" version="opset1">
 <data shape="1..8,48" element_type="f32"/>
 <output><port id="0" precision="FP32" names="x"><dim>-1</dim><dim>48</dim></port></output></layer>
<layer id="1" name="w" type="Const" version="opset1">
 <data element_type="f32" shape="48,64" offset="0" size="12288"/>
 <output><port id="0" precision="FP32"><dim>48</dim><dim>64</dim></port></output></layer>
<layer id="2" name="y" type="MatMul" version="opset1">
 <data transpose_a="false" transpose_b="false"/>
 <input><port id="0"><dim>-1</dim><dim>48</dim></port>
  <port id="1"><dim>48</dim><dim>64</dim></port></input>
 <output><port id="2" precision="FP32" names="y"><dim>-1</dim><dim>64</dim></port></output></layer>
<layer id="3" name="result" type="Result" version="opset1">
 <input><port id="0"><dim>-1</dim><dim>64</dim></port></input></layer>
</layers><edges><edge from-layer="0" from-port="0" to-layer="2" to-port="0"/>
<edge from-layer="1" from-port="0" to-layer="2" to-port="1"/>
<edge from-layer="2" from-port="2" to-layer="3" to-port="0"/></edges></net>)";

TEST_CASE("direct chain: dimensions that are bounded stay so") {
  if (!kernels_here()) return;
  const TempDir dir;
  const OpenVinoBackend backend;
  const std::string path = dir.write("m.xml", kBounded);
  const std::vector<float> w = random_floats(48 * 64, 1);
  dir.write("m.bin",
            std::string(reinterpret_cast<const char*>(w.data()), w.size() * sizeof(float)));
  const auto exact = instance_of(*loaded(backend, path, {.int8 = "off"}));
  for (const char* mode : {"dynamic", "auto"}) {
    CAPTURE(mode);
    const std::shared_ptr<Model> model = loaded(backend, path, {.int8 = mode});
    CHECK_FALSE(is_direct(*model));
    const auto instance = instance_of(*model);
    const std::vector<float> x = random_rows(8), more = random_rows(100);
    CHECK(error_of(run_once(*instance, Shape{8, 48}, x), run_once(*exact, Shape{8, 48}, x)) < 0.05);
    Status status = give(*instance, 0, Shape{100, 48}, as_bytes_of(more));
    if (status.ok()) status = instance->run();
    CHECK_FALSE(status.ok());
  }
}

TEST_CASE("direct chain: odd requests") {
  if (!kernels_here()) return;
  const TempDir dir;
  OpenVinoOptions options{.instances = 2, .threads = 2, .int8 = "dynamic"};
  options.direct_chains = DirectChains::kAlways;
  std::unique_ptr<Instance> instance;
  std::vector<float> want;
  {
    const std::shared_ptr<Model> model =
        loaded(OpenVinoBackend(), dir.write("m.onnx", chain_of({-1, 48})), options);
    instance = instance_of(*model);
    want = run_once(*instance_of(*model), Shape{3, 48}, random_rows(3));
  }  // an instance outlives its model
  const std::vector<float> x = random_rows(3);
  CHECK_FALSE(instance->run().ok());
  CHECK_FALSE(instance->output(0).has_value());
  CHECK(instance->input(0, Shape{3, 47}, 3 * 47 * 4).error().code() ==
        StatusCode::kInvalidArgument);
  CHECK(instance->input(0, Shape{3, 48}, 8).error().code() == StatusCode::kInvalidArgument);
  CHECK(instance->input(0, Shape{144}, 144 * 4).error().code() == StatusCode::kInvalidArgument);
  CHECK(instance->input(0, Shape{-3, -48}, 3 * 48 * 4).error().code() ==
        StatusCode::kInvalidArgument);
  CHECK_FALSE(instance->input(1, Shape{3, 48}, 3 * 48 * 4).has_value());
  CHECK(instance->omit(0).code() == StatusCode::kUnimplemented);
  CHECK(run_once(*instance, Shape{3, 48}, x) == want);
  CHECK_FALSE(instance->run().ok());  // the input is not given twice
  CHECK(run_once(*instance, Shape{0, 48}, {}).empty());
  CHECK(run_once(*instance, Shape{3, 48}, x) == want);
  CHECK_FALSE(instance->output(1).has_value());

  // Lent memory is read where it lies, aligned or not.
  std::vector<std::byte> odd(x.size() * sizeof(float) + 1);
  std::memcpy(odd.data() + 1, x.data(), x.size() * sizeof(float));
  const TensorView lent{DType::kFp32, Shape{3, 48}, std::span<const std::byte>(odd).subspan(1)};
  check_ok(instance->lend(0, lent));
  check_ok(instance->run());
  CHECK(values_of<float>(*instance->output(0)) == want);

  // A bad row spoils itself only.
  std::vector<float> bad = x;
  bad[50] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> spoilt = run_once(*instance, Shape{3, 48}, bad);
  for (std::size_t i = 0; i < spoilt.size(); ++i) {
    CHECK(std::isnan(spoilt[i]) == (i / 20 == 1));
    if (i / 20 != 1) CHECK(spoilt[i] == want[i]);
  }
}

}  // namespace
}  // namespace headrace
