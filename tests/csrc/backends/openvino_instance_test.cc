// Runs: answers, datatypes, shapes, threads.
#include <doctest/doctest.h>

#include <limits>
#include <thread>

#include "backends/openvino_fixture.h"

namespace headrace {
namespace {

TEST_CASE("openvino: an MLP answers as computed by hand, whatever batch follows whatever batch") {
  if (!built_in()) return;
  const TempDir dir;
  const Mlp mlp;
  const OpenVinoBackend backend;
  const std::shared_ptr<Model> model = loaded(backend, dir.write("m.onnx", mlp.onnx()));
  CHECK(model->description().find("CPU f32, 1 instance x 1 thread") != std::string::npos);
  REQUIRE(model->inputs().size() == 1);
  CHECK(model->inputs()[0].dims == std::vector<int64_t>{-1, 16});
  CHECK(model->outputs()[0].dims == std::vector<int64_t>{-1, 4});
  const std::unique_ptr<Instance> instance = instance_of(*model);
  uint32_t seed = 0;
  for (const int64_t rows : {1, 8, 3, 1, 0, 2, 64, 64, 5, 0, 1}) {
    CAPTURE(rows);
    CHECK(mlp_error(*instance, mlp, rows, ++seed) < kTolerance);
  }
}

TEST_CASE("openvino: a shape that was seen before gets the same memory") {
  if (!built_in()) return;
  const TempDir dir;
  const Mlp mlp;
  const std::shared_ptr<Model> model = loaded(OpenVinoBackend(), dir.write("m.onnx", mlp.onnx()));
  const std::unique_ptr<Instance> instance = instance_of(*model);
  std::byte* const first = instance->input(0, Shape{8, 16}, 8 * 64)->data();
  for (const int64_t rows : {8, 3, 8, 1}) {
    Result<std::span<std::byte>> memory =
        instance->input(0, Shape{rows, 16}, static_cast<std::size_t>(rows) * 64);
    REQUIRE(memory.has_value());
    CHECK(memory->data() == first);
  }
}

template <class T>
void check_identity(DType dtype, const std::vector<T>& values) {
  CAPTURE(dtype_name(dtype));
  const TempDir dir;
  const OpenVinoBackend backend;
  const std::shared_ptr<Model> model =
      loaded(backend, dir.write("m.onnx", unary("Identity", dtype, {-1, 2})));
  CHECK(model->inputs()[0].dtype == dtype);
  CHECK(model->outputs()[0].dtype == dtype);
  const std::unique_ptr<Instance> instance = instance_of(*model);
  const auto rows = static_cast<int64_t>(values.size() / 2);
  for (const int64_t n : {rows, int64_t{0}, int64_t{1}, rows}) {
    const std::vector<T> part(values.begin(), values.begin() + 2 * n);
    check_ok(give(*instance, 0, Shape{n, 2}, as_bytes_of(part)));
    check_ok(instance->run());
    Result<BackendOutput> output = instance->output(0);
    REQUIRE(output.has_value());
    CHECK(output->tensor.dtype == dtype);
    CHECK(output->tensor.shape == Shape{n, 2});
    CHECK(values_of<T>(*output) == part);
  }
}

TEST_CASE("openvino: every datatype comes out as it went in") {
  if (!built_in()) return;
  check_identity<uint8_t>(DType::kBool, {0, 1, 1, 0});
  check_identity<uint8_t>(DType::kUint8, {0, 255, 1, 128});
  check_identity<int8_t>(DType::kInt8, {-128, 127, 0, 3});
  check_identity<uint16_t>(DType::kUint16, {0, 65535, 40000, 1});
  check_identity<int16_t>(DType::kInt16, {-32768, 32767, 0, 1});
  check_identity<uint32_t>(DType::kUint32, {0, 4294967295u, 3000000000u, 1});
  check_identity<int32_t>(DType::kInt32, {-2147483647 - 1, 2147483647, 16777217, 0});
  check_identity<uint16_t>(DType::kFp16, {0x3c00, 0x7bff, 0xbc01, 0x0001});  // raw halves
  check_identity<uint16_t>(DType::kBf16, {0x3f80, 0x7f7f, 0xbf81, 0x0080});
  check_identity<float>(DType::kFp32, {1.5f, 3e38f, -0.1f, 16777217.0f});
  check_identity<double>(DType::kFp64, {1.5, -2.25, 1e30, 0.0});
  // Within 32 bits: openvino_backend.h says what happens beyond.
  check_identity<int64_t>(DType::kInt64, {-2147483647LL - 1, 2147483647LL, 0, 5});
  check_identity<uint64_t>(DType::kUint64, {0, 2147483647u, 5, 1});
}

TEST_CASE("openvino: BYTES go through as strings, malformed wire forms do not") {
  if (!built_in()) return;
  const TempDir dir;
  const std::shared_ptr<Model> model =
      loaded(OpenVinoBackend(), dir.write("m.onnx", unary("Identity", DType::kBytes, {-1, 2})));
  CHECK(model->inputs()[0].dtype == DType::kBytes);
  const std::unique_ptr<Instance> instance = instance_of(*model);
  const auto bytes_of = [](const std::string& text) { return std::as_bytes(std::span(text)); };

  const std::vector<std::vector<std::string>> batches = {
      {"a", ""}, {"b", "c", std::string(5000, 'x'), std::string("\0\xff", 2)}, {}, {"", ""}};
  for (const std::vector<std::string>& batch : batches) {
    const std::string text = wire(batch);
    const auto rows = static_cast<int64_t>(batch.size() / 2);
    check_ok(give(*instance, 0, Shape{rows, 2}, bytes_of(text)));
    check_ok(instance->run());
    Result<BackendOutput> output = instance->output(0);
    REQUIRE(output.has_value());
    CHECK(output->tensor.shape == Shape{rows, 2});
    CHECK(std::ranges::equal(output->tensor.data, bytes_of(text)));
  }
  const std::vector<std::string> malformed = {"",
                                              std::string("\1\0", 2),
                                              wire({"a"}),
                                              wire({"a", "b", "c"}),
                                              std::string("\xff\xff\xff\xff", 4),
                                              wire({"a"}) + std::string("\2\0\0\0z", 5)};
  for (const std::string& text : malformed) {
    CAPTURE(text.size());
    check_ok(give(*instance, 0, Shape{1, 2}, bytes_of(text)));
    const Status status = instance->run();
    CHECK(status.code() == StatusCode::kInvalidArgument);
    CHECK(status.message().find("'x'") != std::string::npos);
    CHECK_FALSE(instance->output(0).has_value());
  }
  check_ok(give(*instance, 0, Shape{1, 2}, bytes_of(wire({"still", "alive"}))));
  check_ok(instance->run());
}

TEST_CASE("openvino: scalars, in and out") {
  if (!built_in()) return;
  const TempDir dir;
  OnnxModel graph;
  graph.input("x", DType::kFp32, {-1}).input("s", DType::kFp32, {});
  graph.output("total", DType::kFp32, {}).output("double", DType::kFp32, {});
  graph.node("ReduceSum", {"x"}, {"total"}, {{"keepdims", 0}}).node("Add", {"s", "s"}, {"double"});
  const std::shared_ptr<Model> model =
      loaded(OpenVinoBackend(), dir.write("m.onnx", graph.serialise()));
  CHECK(model->inputs()[1].dims.empty());
  CHECK(model->outputs()[0].dims.empty());
  const std::unique_ptr<Instance> instance = instance_of(*model);
  for (const int64_t n : {3, 0, 1}) {
    check_ok(give(*instance, 0, Shape{n},
                  as_bytes_of(std::vector<float>(static_cast<std::size_t>(n), 2.0f))));
    check_ok(give(*instance, 1, Shape{}, as_bytes_of(std::vector<float>{1.25f})));
    check_ok(instance->run());
    CHECK(instance->output(0)->tensor.shape == Shape{});
    CHECK(values_of<float>(*instance->output(0)) ==
          std::vector<float>{2.0f * static_cast<float>(n)});
    CHECK(values_of<float>(*instance->output(1)) == std::vector<float>{2.5f});
  }
}

TEST_CASE("openvino: zero-size tensors go through operators that compute") {
  if (!built_in()) return;
  const TempDir dir;
  const OpenVinoBackend backend;
  const auto run_empty = [&](OnnxModel& graph, const Shape& in, const Shape& out) {
    const std::shared_ptr<Model> model = loaded(backend, dir.write("m.onnx", graph.serialise()));
    const std::unique_ptr<Instance> instance = instance_of(*model);
    for (int i = 0; i < 2; ++i) {
      check_ok(give(*instance, 0, in, {}));
      check_ok(instance->run());
      Result<BackendOutput> output = instance->output(0);
      REQUIRE(output.has_value());
      CHECK(output->tensor.shape == out);
      CHECK(output->tensor.data.empty());
    }
  };
  const std::vector<float> kernel(2 * 3 * 3 * 3, 0.5f);
  OnnxModel conv;
  conv.input("x", DType::kFp32, {-1, 3, 8, 8}).output("y", DType::kFp32, {-1, 2, 6, 6});
  conv.constant("w", {2, 3, 3, 3}, kernel).node("Conv", {"x", "w"}, {"y"});
  run_empty(conv, Shape{0, 3, 8, 8}, Shape{0, 2, 6, 6});
  OnnxModel softmax;
  softmax.input("x", DType::kFp32, {-1, -1}).output("y", DType::kFp32, {-1, -1});
  softmax.node("Softmax", {"x"}, {"y"}, {{"axis", 1}});
  run_empty(softmax, Shape{4, 0}, Shape{4, 0});
  OnnxModel concat;
  concat.input("x", DType::kInt64, {-1, -1}).output("y", DType::kInt64, {-1, -1});
  concat.node("Concat", {"x", "x"}, {"y"}, {{"axis", 1}});
  run_empty(concat, Shape{3, 0}, Shape{3, 0});
}

TEST_CASE("openvino: an instance refuses what the model cannot take, and goes on") {
  if (!built_in()) return;
  const TempDir dir;
  const Mlp mlp;
  const std::shared_ptr<Model> model = loaded(OpenVinoBackend(), dir.write("m.onnx", mlp.onnx()));
  const std::unique_ptr<Instance> instance = instance_of(*model);
  const auto code = [&](const Shape& shape, std::size_t bytes) {
    return instance->input(0, shape, bytes).error().code();
  };
  CHECK(code(Shape{1, 15}, 60) == StatusCode::kInvalidArgument);
  CHECK(code(Shape{16}, 64) == StatusCode::kInvalidArgument);
  CHECK(code(Shape{-1, 16}, 64) == StatusCode::kInvalidArgument);
  CHECK(code(Shape{1, 16}, 63) == StatusCode::kInvalidArgument);
  CHECK(code(Shape{std::numeric_limits<int64_t>::max(), 16}, 64) == StatusCode::kInvalidArgument);
  CHECK(instance->input(1, Shape{1}, 4).error().code() == StatusCode::kInternal);
  CHECK(instance->omit(0).code() == StatusCode::kUnimplemented);
  CHECK(instance->omit(0).message().find("optional") != std::string::npos);
  CHECK(instance->run().code() == StatusCode::kInternal);
  CHECK(instance->output(0).error().code() == StatusCode::kInternal);
  CHECK(mlp_error(*instance, mlp, 2, 1) < kTolerance);
  CHECK(instance->output(1).error().code() == StatusCode::kInternal);
  // The run before gave its input to that run only.
  CHECK(instance->run().code() == StatusCode::kInternal);
  CHECK(mlp_error(*instance, mlp, 2, 2) < kTolerance);
}

TEST_CASE("openvino: shapes that fit the signature but not the graph never reach the runtime") {
  if (!built_in()) return;
  const TempDir dir;
  const OpenVinoBackend backend;
  const std::vector<int64_t> any = {-1, -1};
  const std::vector<float> six = {1, 2, 3, 4, 5, 6};
  const std::vector<float> eight = {1, 2, 3, 4, 5, 6, 7, 8};
  // (a op b) for shapes that fit and shapes that do not; the CPU plugin would read out of bounds.
  const auto check = [&](const char* op, const Shape& right, std::span<const float> right_values,
                         const Shape& wrong, std::span<const float> wrong_values) {
    CAPTURE(op);
    OnnxModel graph;
    graph.input("a", DType::kFp32, any).input("b", DType::kFp32, any);
    graph.output("y", DType::kFp32, any);
    graph.node(op, {"a", "b"}, {"y"},
               std::string(op) == "Concat"
                   ? std::vector<std::pair<std::string, int64_t>>{{"axis", 0}}
                   : std::vector<std::pair<std::string, int64_t>>{});
    const std::shared_ptr<Model> model = loaded(backend, dir.write("m.onnx", graph.serialise()));
    const std::unique_ptr<Instance> instance = instance_of(*model);
    for (int i = 0; i < 2; ++i) {
      check_ok(give(*instance, 0, Shape{2, 3}, as_bytes_of(six)));
      check_ok(give(*instance, 1, wrong, std::as_bytes(wrong_values)));
      const Status status = instance->run();
      CHECK(status.code() == StatusCode::kInvalidArgument);
      CHECK(status.message().find("[2,3], " + wrong.to_string()) != std::string::npos);
      check_ok(give(*instance, 0, Shape{2, 3}, as_bytes_of(six)));
      check_ok(give(*instance, 1, right, std::as_bytes(right_values)));
      check_ok(instance->run());
    }
  };
  check("MatMul", Shape{3, 2}, six, Shape{2, 3}, six);
  check("MatMul", Shape{3, 2}, six, Shape{4, 2}, eight);
  check("Add", Shape{2, 3}, six, Shape{2, 4}, eight);
  check("Concat", Shape{2, 3}, six, Shape{2, 4}, eight);

  OnnxModel dense;  // weights fix what the signature leaves open
  const std::vector<float> weights(2000 * 4, 1.0f);
  dense.input("x", DType::kFp32, any).output("y", DType::kFp32, any);
  dense.constant("w", {2000, 4}, weights).node("MatMul", {"x", "w"}, {"y"});
  const std::shared_ptr<Model> model = loaded(backend, dir.write("m.onnx", dense.serialise()));
  const std::unique_ptr<Instance> instance = instance_of(*model);
  check_ok(give(*instance, 0, Shape{2, 3}, as_bytes_of(six)));
  CHECK(instance->run().code() == StatusCode::kInvalidArgument);
  check_ok(give(*instance, 0, Shape{1, 2000}, as_bytes_of(std::vector<float>(2000, 1.0f))));
  check_ok(instance->run());
  CHECK(values_of<float>(*instance->output(0)) == std::vector<float>(4, 2000.0f));
}

void run_on_threads(Model& model, const Mlp& mlp, int threads, int runs) {
  std::vector<std::unique_ptr<Instance>> instances;
  for (int i = 0; i < threads; ++i) instances.push_back(instance_of(model));
  std::vector<double> errors(static_cast<std::size_t>(threads), 0);
  std::vector<std::thread> workers;
  for (std::size_t i = 0; i < instances.size(); ++i) {
    workers.emplace_back([&, i] {
      for (int run = 0; run < runs; ++run) {
        errors[i] = std::max(
            errors[i], mlp_error(*instances[i], mlp, 1 + run % 8, static_cast<uint32_t>(run)));
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
  for (const double error : errors) CHECK(error < kTolerance);
}

TEST_CASE("openvino: instances on their own threads answer alike") {
  if (!built_in()) return;
  const TempDir dir;
  const Mlp mlp;
  OpenVinoOptions options;
  options.instances = 3;
  const std::shared_ptr<Model> model =
      loaded(OpenVinoBackend(), dir.write("m.onnx", mlp.onnx()), options);
  CHECK(model->description().find("3 instances x 1 thread") != std::string::npos);
  run_on_threads(*model, mlp, 3, 100);
  run_on_threads(*model, mlp, 4, 20);  // more instances than were asked for
}

TEST_CASE("openvino: instances of a model with large weights share them and answer alike") {
  if (!built_in()) return;
  const TempDir dir;
  constexpr int64_t kWide = 2100;  // 2100 x 2100 floats = 17 MiB
  std::vector<float> weights(static_cast<std::size_t>(kWide * kWide), 0.0f);
  for (int64_t i = 0; i < kWide; ++i) {
    weights[static_cast<std::size_t>(i * kWide + (i + 1) % kWide)] = 2.0f;  // shift and double
  }
  OnnxModel graph;
  graph.input("x", DType::kFp32, {-1, kWide}).output("y", DType::kFp32, {-1, kWide});
  graph.constant("w", {kWide, kWide}, weights).node("MatMul", {"x", "w"}, {"y"});
  OpenVinoOptions options;
  options.instances = 2;
  const std::shared_ptr<Model> model =
      loaded(OpenVinoBackend(), dir.write("m.onnx", graph.serialise()), options);
  std::vector<std::unique_ptr<Instance>> instances;
  instances.push_back(instance_of(*model));
  instances.push_back(instance_of(*model));
  std::vector<std::thread> workers;
  for (std::size_t i = 0; i < 2; ++i) {
    workers.emplace_back([&, i] {
      for (uint32_t run = 0; run < 5; ++run) {
        const std::vector<float> x = random_floats(kWide, 10 * run + static_cast<uint32_t>(i));
        check_ok(give(*instances[i], 0, Shape{1, kWide}, as_bytes_of(x)));
        check_ok(instances[i]->run());
        const std::vector<float> y = values_of<float>(*instances[i]->output(0));
        REQUIRE(y.size() == x.size());
        bool right = true;
        for (std::size_t j = 0; j < x.size(); ++j)
          right = right && y[(j + 1) % x.size()] == 2 * x[j];
        CHECK(right);
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
}

TEST_CASE("openvino: an instance outlives its model and backend") {
  if (!built_in()) return;
  const TempDir dir;
  const Mlp mlp;
  std::unique_ptr<Instance> instance;
  {
    const OpenVinoBackend backend;
    const std::shared_ptr<Model> model = loaded(backend, dir.write("m.onnx", mlp.onnx()));
    instance = instance_of(*model);
  }
  fs::remove(dir.path("m.onnx"));
  CHECK(mlp_error(*instance, mlp, 4, 1) < kTolerance);
}

}  // namespace
}  // namespace headrace
