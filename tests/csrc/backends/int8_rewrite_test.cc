// INT8 layers inside OpenVINO graphs, without a server: modes, shapes, threads, the traps of merging and
// of the cache. tests/python/control/test_int8.py has quantised models and a transformer.
#include <doctest/doctest.h>

#include <limits>

#include "backends/openvino_fixture.h"
#include "kernels/int8_isa.h"

namespace headrace {
namespace {

struct Layer {
  int64_t in = 64, out = 48;
  std::vector<float> w;
};

// y_i = x w_i.
std::string siblings(const std::vector<Layer>& layers) {
  OnnxModel model;
  model.input("x", DType::kFp32, {-1, layers[0].in});
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const std::string n = std::to_string(i);
    model.output("y" + n, DType::kFp32, {-1, layers[i].out});
    model.constant("w" + n, {layers[i].in, layers[i].out}, layers[i].w);
    model.node("MatMul", {"x", "w" + n}, {"y" + n});
  }
  return model.serialise();
}

std::vector<float> run_once(Instance& instance, const Shape& shape, const std::vector<float>& x,
                            std::size_t output = 0) {
  check_ok(give(instance, 0, shape, as_bytes_of(x)));
  check_ok(instance.run());
  Result<BackendOutput> answer = instance.output(output);
  REQUIRE(answer.has_value());
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

bool kernels_here() {
  if (built_in() && best_isa() != Isa::kReference) return true;
  MESSAGE("skipped: no OpenVINO in this build, or no INT8 instructions in this processor");
  return false;
}

TEST_CASE("int8: a mode that is none is refused") {
  if (!built_in()) return;
  const TempDir dir;
  const Status status =
      OpenVinoBackend().load(dir.write("m.onnx", Mlp().onnx()), {.int8 = "yes"}).error();
  CHECK(status.code() == StatusCode::kInvalidArgument);
  CHECK(status.message().find("\"off\", \"exact\", \"dynamic\" or \"auto\"") != std::string::npos);
}

TEST_CASE("int8: float models stay float unless asked") {
  if (!built_in()) return;
  const TempDir dir;
  const OpenVinoBackend backend;
  const std::string path = dir.write("m.onnx", siblings({{64, 48, random_floats(64 * 48, 1)}}));
  CHECK(loaded(backend, path)->description().find("int8") == std::string::npos);
  CHECK(loaded(backend, path, {.int8 = "off"})->description().find("int8") == std::string::npos);
}

TEST_CASE("int8: siblings keep their own weights, whatever the runtime merges") {
  if (!kernels_here()) return;
  const TempDir dir;
  const OpenVinoBackend backend;
  std::vector<Layer> layers;
  for (uint32_t i = 0; i < 4; ++i) layers.push_back({64, 48, random_floats(64 * 48, i / 2)});
  layers.push_back({64, 77, random_floats(64 * 77, 9)});
  const std::string path = dir.write("m.onnx", siblings(layers));
  const std::string cache = dir.path("cache");
  for (int start = 0; start < 2; ++start) {  // the second one would find what the first has cached
    const std::shared_ptr<Model> plain = loaded(backend, path, {.cache_dir = cache, .int8 = "off"});
    const std::shared_ptr<Model> model =
        loaded(backend, path, {.cache_dir = cache, .int8 = "dynamic"});
    CHECK(model->description().find("5 of 5 MatMuls") != std::string::npos);
    const std::unique_ptr<Instance> want = instance_of(*plain), instance = instance_of(*model);
    for (const int64_t rows : {1, 7, 64, 3}) {
      const std::vector<float> x = random_floats(static_cast<std::size_t>(rows * 64), 5);
      for (std::size_t i = 0; i < layers.size(); ++i) {
        const std::vector<float> y = run_once(*instance, Shape{rows, 64}, x, i);
        CHECK(error_of(y, run_once(*want, Shape{rows, 64}, x, i)) < 0.03);
      }
    }
  }
}

TEST_CASE("int8: a factor that adds a dimension adds it") {
  if (!kernels_here()) return;
  const TempDir dir;
  OnnxModel model;
  model.input("x", DType::kFp32, {-1, 64}).output("y", DType::kFp32, {1, -1, 48});
  model.constant("w", {64, 48}, random_floats(64 * 48, 1))
      .constant("c", {1, 1, 1}, std::vector<float>{0.5F});
  model.node("MatMul", {"x", "w"}, {"m"}).node("Mul", {"m", "c"}, {"y"});
  const std::string path = dir.write("m.onnx", model.serialise());
  const OpenVinoBackend backend;
  const auto exact = instance_of(*loaded(backend, path, {.int8 = "off"}));
  const auto instance = instance_of(*loaded(backend, path, {.int8 = "dynamic"}));
  const std::vector<float> x = random_floats(3 * 64, 2);
  const std::vector<float> y = run_once(*instance, Shape{3, 64}, x);
  CHECK(error_of(y, run_once(*exact, Shape{3, 64}, x)) < 0.05);
  CHECK(instance->output(0)->tensor.shape.size() == 3);
}

TEST_CASE("int8: threads, several instances and rows without values") {
  if (!kernels_here()) return;
  const TempDir dir;
  const OpenVinoBackend backend;
  const std::string path = dir.write("m.onnx", siblings({{512, 600, random_floats(512 * 600, 1)}}));
  const std::vector<float> x = random_floats(200 * 512, 5);
  std::vector<float> first;
  for (const uint32_t threads : {1U, 2U}) {
    const std::shared_ptr<Model> model =
        loaded(backend, path, {.instances = 2, .threads = threads, .int8 = "dynamic"});
    const std::unique_ptr<Instance> one = instance_of(*model), other = instance_of(*model);
    for (Instance* instance : {one.get(), other.get()}) {
      const std::vector<float> y = run_once(*instance, Shape{200, 512}, x);
      if (first.empty()) first = y;
      CHECK(y == first);
      CHECK(run_once(*instance, Shape{0, 512}, {}).empty());
      // A bad row spoils itself only.
      std::vector<float> bad(x.begin(), x.begin() + 3 * 512);
      bad[600] = std::numeric_limits<float>::quiet_NaN();
      const std::vector<float> spoilt = run_once(*instance, Shape{3, 512}, bad);
      for (std::size_t i = 0; i < spoilt.size(); ++i) {
        CHECK(std::isnan(spoilt[i]) == (i / 600 == 1));
      }
    }
  }
}

TEST_CASE("int8: auto decides by measurement, and the answer is right either way") {
  if (!kernels_here()) return;
  const TempDir dir;
  const OpenVinoBackend backend;
  const std::string path = dir.write("m.onnx", siblings({{256, 300, random_floats(256 * 300, 1)}}));
  const std::shared_ptr<Model> plain = loaded(backend, path, {.int8 = "off"});
  const std::shared_ptr<Model> model = loaded(backend, path, {.int8 = "auto"});
  CHECK(model->description().find("of 1 MatMuls") != std::string::npos);
  const std::vector<float> x = random_floats(9 * 256, 5);
  const std::unique_ptr<Instance> want = instance_of(*plain), instance = instance_of(*model);
  CHECK(error_of(run_once(*instance, Shape{9, 256}, x), run_once(*want, Shape{9, 256}, x)) < 0.03);
}

}  // namespace
}  // namespace headrace
