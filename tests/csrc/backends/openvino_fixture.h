// What the tests of the OpenVINO backend share: temporary files, a model with a known answer, and
// shorthands. Without OpenVINO built_in() is false, and tests have nothing to test.
#pragma once

#include "backends/openvino/openvino_backend.h"

#include <doctest/doctest.h>

#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "backends/onnx_model.h"

namespace headrace {

namespace fs = std::filesystem;

class TempDir {
 public:
  TempDir() {
    std::string name = (fs::temp_directory_path() / "headrace-openvino-XXXXXX").string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~TempDir() {
    std::error_code error;
    fs::remove_all(path_, error);
  }
  std::string path(const std::string& name) const { return (path_ / name).string(); }
  std::string write(const std::string& name, const std::string& bytes) const {
    std::ofstream(path(name), std::ios::binary) << bytes;
    return path(name);
  }

 private:
  fs::path path_;
};

inline bool built_in() {
  static const bool answer = [] {
    return OpenVinoBackend().inspect("/no/such/model.onnx").error().code() !=
           StatusCode::kUnavailable;
  }();
  return answer;
}

template <class T>
inline std::span<const std::byte> as_bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span<const T>(values));
}

inline Status give(Instance& instance, std::size_t index, const Shape& shape,
                   std::span<const std::byte> bytes) {
  Result<std::span<std::byte>> memory = instance.input(index, shape, bytes.size());
  if (!memory) return memory.error();
  REQUIRE(memory->size() == bytes.size());
  CHECK(reinterpret_cast<std::uintptr_t>(memory->data()) % 64 == 0);
  if (!bytes.empty()) std::memcpy(memory->data(), bytes.data(), bytes.size());
  return {};
}

template <class T>
inline std::vector<T> values_of(const BackendOutput& output) {
  std::vector<T> values(output.tensor.data.size() / sizeof(T));
  if (!values.empty())
    std::memcpy(values.data(), output.tensor.data.data(), values.size() * sizeof(T));
  return values;
}

// A model that must load.
inline std::shared_ptr<Model> loaded(const OpenVinoBackend& backend, const std::string& path,
                                     const OpenVinoOptions& options = {}) {
  Result<std::shared_ptr<Model>> model = backend.load(path, options);
  if (!model) FAIL(model.error().message());
  return *model;
}

inline std::unique_ptr<Instance> instance_of(Model& model) {
  Result<std::unique_ptr<Instance>> instance = model.make_instance();
  if (!instance) FAIL(instance.error().message());
  return std::move(*instance);
}

inline void check_ok(const Status& status) { CHECK_MESSAGE(status.ok(), status.message()); }

inline std::vector<float> random_floats(std::size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> value(-1.0f, 1.0f);
  std::vector<float> values(n);
  for (float& v : values) v = value(random);
  return values;
}

// y = relu(x w1 + b1) w2, and the same sum by hand.
struct Mlp {
  int64_t in = 16, hidden = 32, out = 4;
  std::vector<float> w1 = random_floats(16 * 32, 1), b1 = random_floats(32, 2),
                     w2 = random_floats(32 * 4, 3);

  std::string onnx() const {
    OnnxModel model;
    model.input("x", DType::kFp32, {-1, in}).output("y", DType::kFp32, {-1, out});
    model.constant("w1", {in, hidden}, w1).constant("b1", {hidden}, b1);
    model.constant("w2", {hidden, out}, w2);
    model.node("MatMul", {"x", "w1"}, {"m"}).node("Add", {"m", "b1"}, {"a"});
    model.node("Relu", {"a"}, {"r"}).node("MatMul", {"r", "w2"}, {"y"});
    return model.serialise();
  }

  std::vector<float> answer(const std::vector<float>& x) const {
    const auto at = [](int64_t row, int64_t columns, int64_t column) {
      return static_cast<std::size_t>(row * columns + column);
    };
    const int64_t rows = static_cast<int64_t>(x.size()) / in;
    std::vector<float> y;
    for (int64_t row = 0; row < rows; ++row) {
      std::vector<double> h;
      for (int64_t j = 0; j < hidden; ++j) {
        double sum = b1[static_cast<std::size_t>(j)];
        for (int64_t i = 0; i < in; ++i) sum += double{x[at(row, in, i)]} * w1[at(i, hidden, j)];
        h.push_back(std::max(sum, 0.0));
      }
      for (int64_t j = 0; j < out; ++j) {
        double sum = 0;
        for (int64_t i = 0; i < hidden; ++i)
          sum += h[static_cast<std::size_t>(i)] * w2[at(i, out, j)];
        y.push_back(static_cast<float>(sum));
      }
    }
    return y;
  }
};

// Runs `rows` random rows and returns the largest absolute error.
inline double mlp_error(Instance& instance, const Mlp& mlp, int64_t rows, uint32_t seed) {
  const std::vector<float> x = random_floats(static_cast<std::size_t>(rows * mlp.in), seed);
  check_ok(give(instance, 0, Shape{rows, mlp.in}, as_bytes_of(x)));
  check_ok(instance.run());
  Result<BackendOutput> output = instance.output(0);
  REQUIRE(output.has_value());
  CHECK(output->tensor.dtype == DType::kFp32);
  CHECK(output->tensor.shape == Shape{rows, mlp.out});
  const std::vector<float> got = values_of<float>(*output);
  const std::vector<float> want = mlp.answer(x);
  REQUIRE(got.size() == want.size());
  double error = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    error = std::max(error, std::abs(double{got[i]} - want[i]));
  }
  return error;
}

inline constexpr double kTolerance = 1e-5;  // f32 sums of 32 terms of size ~1

inline std::string wire(const std::vector<std::string>& elements) {
  std::string bytes;
  for (const std::string& element : elements) {
    const auto length = static_cast<uint32_t>(element.size());
    bytes.append(reinterpret_cast<const char*>(&length), sizeof(length));
    bytes += element;
  }
  return bytes;
}

inline std::string unary(const std::string& op, DType dtype, const std::vector<int64_t>& dims) {
  OnnxModel model;
  model.input("x", dtype, dims).output("y", dtype, dims).node(op, {"x"}, {"y"});
  return model.serialise();
}

inline std::vector<std::string> names_of(const std::vector<TensorSpec>& specs) {
  std::vector<std::string> names;
  for (const TensorSpec& spec : specs) names.push_back(spec.name);
  return names;
}

using Names = std::vector<std::string>;

}  // namespace headrace
