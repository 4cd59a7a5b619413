// Files, signatures, options and the cache. The same tests run in a build without OpenVINO, where
// every call must answer UNAVAILABLE and name the fix.
#include "backends/openvino/openvino_backend.h"

#include <doctest/doctest.h>

#include <limits>
#include <map>

#include "backends/openvino_fixture.h"

namespace headrace {
namespace {

TEST_CASE("openvino: a build without it answers UNAVAILABLE and names the fix") {
  const OpenVinoBackend backend;
  if (built_in()) {
    CHECK(OpenVinoBackend::version().starts_with("20"));
    const std::vector<std::string> devices = backend.devices();
    CHECK(std::find(devices.begin(), devices.end(), "CPU") != devices.end());
    return;
  }
  for (const Status& status :
       {backend.inspect("m.onnx").error(), backend.load("m.onnx", {}).error()}) {
    CHECK(status.code() == StatusCode::kUnavailable);
    CHECK(status.message().find("m.onnx") != std::string::npos);
    CHECK(status.message().find("pip install openvino") != std::string::npos);
  }
  CHECK(backend.devices().empty());
}

TEST_CASE("openvino: operators that would corrupt strings are refused, the others work") {
  if (!built_in()) return;
  const TempDir dir;
  const OpenVinoBackend backend;
  OnnxModel bad;
  bad.input("x", DType::kBytes, {-1, 2}).output("y", DType::kBool, {-1, 2});
  bad.node("Equal", {"x", "x"}, {"y"});
  const std::string path = dir.write("bad.onnx", bad.serialise());
  for (const Status& status : {backend.inspect(path).error(), backend.load(path, {}).error()}) {
    CHECK(status.code() == StatusCode::kUnimplemented);
    CHECK(status.message().find("Equal") != std::string::npos);
  }
  OnnxModel good;
  good.input("x", DType::kBytes, {-1, 2}).output("y", DType::kBytes, {-1, 4});
  good.node("Identity", {"x"}, {"i"}).node("Concat", {"i", "x"}, {"y"}, {{"axis", 1}});
  const std::shared_ptr<Model> model = loaded(backend, dir.write("good.onnx", good.serialise()));
  const std::unique_ptr<Instance> instance = instance_of(*model);
  const std::string text = wire({"short", std::string(100, 'l')});
  for (int i = 0; i < 3; ++i) {
    check_ok(give(*instance, 0, Shape{1, 2}, std::as_bytes(std::span(text))));
    check_ok(instance->run());
    const std::string twice = text + text;
    CHECK(std::ranges::equal(instance->output(0)->tensor.data, std::as_bytes(std::span(twice))));
  }
}

TEST_CASE("openvino: names are those of the ONNX graph, each once") {
  if (!built_in()) return;
  const TempDir dir;
  const OpenVinoBackend backend;
  const auto names = [&](const OnnxModel& graph) {
    auto signature = backend.inspect(dir.write("m.onnx", graph.serialise()));
    if (!signature) FAIL(signature.error().message());
    return std::pair(names_of(signature->first), names_of(signature->second));
  };
  const std::vector<int64_t> dims = {-1, 4};
  const std::vector<float> four = {1, 2, 3, 4};

  OnnxModel aliases;  // three outputs that are one tensor
  aliases.input("x", DType::kFp32, dims);
  aliases.output("b", DType::kFp32, dims)
      .output("c", DType::kFp32, dims)
      .output("a", DType::kFp32, dims);
  aliases.node("Relu", {"x"}, {"a"}).node("Identity", {"a"}, {"b"}).node("Identity", {"a"}, {"c"});
  CHECK(names(aliases) == std::pair(Names{"x"}, Names{"b", "c", "a"}));

  OnnxModel dropout;  // OpenVINO folds it and calls the input "d"
  dropout.input("x", DType::kFp32, dims)
      .output("d", DType::kFp32, dims)
      .output("r", DType::kFp32, dims);
  dropout.node("Dropout", {"x"}, {"d"}).node("Relu", {"d"}, {"r"});
  CHECK(names(dropout) == std::pair(Names{"x"}, Names{"d", "r"}));

  OnnxModel through;  // an input that is an output
  through.input("x", DType::kFp32, dims)
      .output("x", DType::kFp32, dims)
      .output("y", DType::kFp32, dims);
  through.node("Relu", {"x"}, {"y"});
  CHECK(names(through) == std::pair(Names{"x"}, Names{"x", "y"}));

  OnnxModel weights;  // a weight listed as an input, an input nobody reads, a constant output
  weights.input("w", DType::kFp32, {4})
      .input("x", DType::kFp32, dims)
      .input("u", DType::kFp32, dims);
  weights.output("y", DType::kFp32, dims).output("w", DType::kFp32, {4});
  weights.constant("w", {4}, four).node("Add", {"x", "w"}, {"y"});
  CHECK(names(weights) == std::pair(Names{"x", "u"}, Names{"y", "w"}));

  OnnxModel twice;  // the same output listed twice
  twice.input("x", DType::kFp32, dims)
      .output("y", DType::kFp32, dims)
      .output("y", DType::kFp32, dims);
  twice.node("Relu", {"x"}, {"y"});
  auto outputs = names(twice).second;
  std::sort(outputs.begin(), outputs.end());
  CHECK(std::unique(outputs.begin(), outputs.end()) == outputs.end());

  // The names belong to the right tensors.
  const std::shared_ptr<Model> model = loaded(backend, dir.write("m.onnx", dropout.serialise()));
  const std::unique_ptr<Instance> instance = instance_of(*model);
  check_ok(give(*instance, 0, Shape{1, 4}, as_bytes_of(std::vector<float>{-1, 2, -3, 4})));
  check_ok(instance->run());
  CHECK(values_of<float>(*instance->output(0)) == std::vector<float>{-1, 2, -3, 4});
  CHECK(values_of<float>(*instance->output(1)) == std::vector<float>{0, 2, 0, 4});
}

// y = x + c as OpenVINO IR; c is four floats in the .bin.
const char* const kIr = R"(<?xml version="1.0"?>
<net name="add" version="11"><layers>
<layer id="0" name="x" type="Parameter" version="opset1"><data shape="?,4" element_type="f32"/>
 <output><port id="0" precision="FP32" names="x"><dim>-1</dim><dim>4</dim></port></output></layer>
<layer id="1" name="c" type="Const" version="opset1">
 <data element_type="f32" shape="1,4" offset="0" size="16"/>
 <output><port id="0" precision="FP32"><dim>1</dim><dim>4</dim></port></output></layer>
<layer id="2" name="sum" type="Add" version="opset1"><data auto_broadcast="numpy"/>
 <input><port id="0"><dim>-1</dim><dim>4</dim></port>
  <port id="1"><dim>1</dim><dim>4</dim></port></input>
 <output><port id="2" precision="FP32"><dim>-1</dim><dim>4</dim></port></output></layer>
<layer id="3" name="result" type="Result" version="opset1">
 <input><port id="0"><dim>-1</dim><dim>4</dim></port></input></layer>
</layers><edges><edge from-layer="0" from-port="0" to-layer="2" to-port="0"/>
<edge from-layer="1" from-port="0" to-layer="2" to-port="1"/>
<edge from-layer="2" from-port="2" to-layer="3" to-port="0"/></edges></net>)";

std::string raw(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

TEST_CASE("openvino: IR with its weights beside it; unnamed outputs take their node's name") {
  if (!built_in()) return;
  const TempDir dir;
  const OpenVinoBackend backend;
  const std::string path = dir.write("m.xml", kIr);
  const Status missing = backend.load(path, {}).error();
  CHECK(missing.code() == StatusCode::kInvalidArgument);
  CHECK(missing.message().find("m.bin' are missing") == std::string::npos);
  CHECK(missing.message().find("m.bin', are missing") != std::string::npos);

  dir.write("m.bin", raw({1, 2, 3, 4}));
  const std::shared_ptr<Model> model = loaded(backend, path);
  CHECK(names_of(model->inputs()) == Names{"x"});
  CHECK(names_of(model->outputs()) == Names{"sum"});
  const std::unique_ptr<Instance> instance = instance_of(*model);
  check_ok(give(*instance, 0, Shape{1, 4}, as_bytes_of(std::vector<float>{10, 20, 30, 40})));
  check_ok(instance->run());
  CHECK(values_of<float>(*instance->output(0)) == std::vector<float>{11, 22, 33, 44});

  dir.write("m.bin", "short");
  CHECK(backend.load(path, {}).error().code() == StatusCode::kInvalidArgument);
}

TEST_CASE("openvino: broken files are INVALID_ARGUMENT in one line that names the file") {
  if (!built_in()) return;
  const TempDir dir;
  const OpenVinoBackend backend;
  const auto check = [&](const std::string& path, const std::string& part) {
    CAPTURE(path);
    for (const Status& status : {backend.inspect(path).error(), backend.load(path, {}).error()}) {
      CAPTURE(status.message());
      CHECK(status.code() == StatusCode::kInvalidArgument);
      CHECK(status.message().find(path) != std::string::npos);
      CHECK(status.message().find(part) != std::string::npos);
      CHECK(status.message().find('\n') == std::string::npos);
      CHECK(status.message().find("Exception from") == std::string::npos);
      CHECK(status.message().size() < 700);
    }
  };
  CHECK(backend.load(dir.path("none.onnx"), {}).error().code() == StatusCode::kNotFound);
  CHECK(backend.inspect(dir.path("none.xml")).error().code() == StatusCode::kNotFound);
  fs::create_directory(dir.path("d.onnx"));
  check(dir.path("d.onnx"), "not a file");
  check(dir.write("empty.onnx", ""), "");
  check(dir.write("empty.xml", ""), "");
  check(dir.write("garbage.onnx", std::string(1000, '\xff')), "");
  check(dir.write("garbage.xml", "<net><layers>\xff\xfe"), "");
  check(dir.write("notes.txt", "hello"), "");
  check(dir.write("op.onnx", unary("NoSuchOperator", DType::kFp32, {-1, 4})), "NoSuchOperator");
  check(dir.write("complex.onnx", unary("Identity", DType::kInvalid, {-1, 4})), "");
  check(dir.write("dangling.onnx",
                  [] {
                    OnnxModel graph;
                    graph.output("y", DType::kFp32, {1}).node("Relu", {"nowhere"}, {"y"});
                    return graph.serialise();
                  }()),
        "");
}

TEST_CASE("openvino: a file cut or changed anywhere loads or fails cleanly") {
  if (!built_in()) return;
  const TempDir dir;
  const OpenVinoBackend backend;
  const std::string whole = Mlp().onnx();
  std::mt19937 random(7);
  for (int i = 0; i < 60; ++i) {
    std::string bytes = whole;
    if (i % 2 == 0) {
      bytes.resize(random() % bytes.size());
    } else {
      // The head of the file holds no weights: flips there hit the structure.
      for (int flip = 0; flip < 3; ++flip)
        bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    const auto signature = backend.inspect(dir.write("m.onnx", bytes));
    if (!signature) {
      CHECK(signature.error().code() == StatusCode::kInvalidArgument);
      CHECK(signature.error().message().find("m.onnx") != std::string::npos);
    }
  }
}

TEST_CASE("openvino: options are checked, properties reach the runtime") {
  if (!built_in()) return;
  const TempDir dir;
  const OpenVinoBackend backend;
  const std::string path = dir.write("m.onnx", Mlp().onnx());
  const auto load = [&](std::map<std::string, std::string> properties) {
    OpenVinoOptions options;
    options.properties = std::move(properties);
    return backend.load(path, options);
  };
  const Status unknown = load({{"NO_SUCH_PROPERTY", "1"}}).error();
  CHECK(unknown.code() == StatusCode::kInvalidArgument);
  CHECK(unknown.message().find("'NO_SUCH_PROPERTY'") != std::string::npos);
  CHECK(unknown.message().find("INFERENCE_PRECISION_HINT") != std::string::npos);
  CHECK(load({{"AVAILABLE_DEVICES", "x"}}).error().code() == StatusCode::kInvalidArgument);
  CHECK(load({{"INFERENCE_PRECISION_HINT", "nonsense"}}).error().code() ==
        StatusCode::kInvalidArgument);
  CHECK(load({{"PERF_COUNT", "YES"}}).has_value());
  OpenVinoOptions none;
  none.instances = 0;
  CHECK(backend.load(path, none).error().code() == StatusCode::kInvalidArgument);
  OpenVinoOptions device;
  device.device = "NOSUCHDEVICE";
  CHECK(backend.load(path, device).error().code() == StatusCode::kInvalidArgument);
}

TEST_CASE("openvino: the cache is used, never trusted") {
  if (!built_in()) return;
  const TempDir dir;
  const OpenVinoBackend backend;
  Mlp mlp;
  OpenVinoOptions options;
  options.instances = 2;
  options.cache_dir = dir.path("cache");
  const auto check = [&](const std::string& path) {
    const std::shared_ptr<Model> model = loaded(backend, path, options);
    CHECK(mlp_error(*instance_of(*model), mlp, 3, 1) < kTolerance);
  };
  const auto blobs = [&] {
    std::vector<fs::path> files;
    for (const auto& entry : fs::recursive_directory_iterator(options.cache_dir)) {
      if (entry.is_regular_file()) files.push_back(entry.path());
    }
    return files;
  };
  const std::string path = dir.write("m.onnx", mlp.onnx());
  check(path);
  CHECK_FALSE(blobs().empty());
  check(path);

  SUBCASE("emptied") {
    for (const fs::path& file : blobs()) std::ofstream(file, std::ios::trunc).flush();
    check(path);
  }
  SUBCASE("cut") {
    for (const fs::path& file : blobs()) fs::resize_file(file, fs::file_size(file) / 2);
    check(path);
  }
  SUBCASE("overwritten with garbage") {
    for (const fs::path& file : blobs()) {
      const std::string garbage(fs::file_size(file), 'g');
      std::ofstream(file, std::ios::binary) << garbage;
    }
    check(path);
  }
  SUBCASE("of other weights in a file of the same name, size and time") {
    const auto time = fs::last_write_time(path);
    mlp.w1 = random_floats(mlp.w1.size(), 99);
    dir.write("m.onnx", mlp.onnx());
    fs::last_write_time(path, time);
    check(path);
  }
  SUBCASE("a folder that cannot be made") {
    options.cache_dir = dir.write("file", "") + "/cache";
    check(path);
  }
}

TEST_CASE("openvino: a cached IR is not served after its weights changed") {
  if (!built_in()) return;
  const TempDir dir;
  const OpenVinoBackend backend;
  OpenVinoOptions options;
  options.cache_dir = dir.path("cache");
  const std::string path = dir.write("m.xml", kIr);
  for (const float weight : {1.0f, 2.0f, 3.0f}) {
    dir.write("m.bin", raw({weight, weight, weight, weight}));
    const std::shared_ptr<Model> model = loaded(backend, path, options);
    const std::unique_ptr<Instance> instance = instance_of(*model);
    check_ok(give(*instance, 0, Shape{1, 4}, as_bytes_of(std::vector<float>{0, 0, 0, 0})));
    check_ok(instance->run());
    CHECK(values_of<float>(*instance->output(0)) == std::vector<float>(4, weight));
  }
}

}  // namespace
}  // namespace headrace
