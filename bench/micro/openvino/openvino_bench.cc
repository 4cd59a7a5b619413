// What a run costs through the OpenVINO backend, input() to output(), in ns of wall time (median of
// rounds), on a 16-32-4 MLP (or a model with one input that is given):
//   same        batch 1 and 8, the same every run
//   switching   batches 1, 2, ... 8, 1, ...: the mean of a run, beside the mean of the same batches
//               without switching
//   instances   batch 1 on 1, 2, ... instances at the same time, a thread each: the slowest
// Usage: openvino_bench [model.onnx | model.xml [runs]]
#include <stdlib.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "backends/openvino/openvino_backend.h"

namespace {

using namespace headrace;

constexpr std::size_t kRounds = 7;

// relu(x w1) w2; the weights do not matter.
std::string write_mlp(const std::filesystem::path& folder) {
  const auto port = [](int id, const std::string& dims) {
    return "<port id=\"" + std::to_string(id) + "\" precision=\"FP32\">" + dims + "</port>";
  };
  const auto dims = [](int rows, int columns) {
    return "<dim>" + std::to_string(rows) + "</dim><dim>" + std::to_string(columns) + "</dim>";
  };
  const auto layer = [](int id, const std::string& type, const std::string& rest) {
    return "<layer id=\"" + std::to_string(id) + "\" name=\"l" + std::to_string(id) + "\" type=\"" +
           type + "\" version=\"opset1\">" + rest + "</layer>";
  };
  const auto weights = [&](int id, int rows, int columns, int offset) {
    return layer(id, "Const",
                 "<data element_type=\"f32\" shape=\"" + std::to_string(rows) + "," +
                     std::to_string(columns) + "\" offset=\"" + std::to_string(offset) +
                     "\" size=\"" + std::to_string(rows * columns * 4) + "\"/><output>" +
                     port(0, dims(rows, columns)) + "</output>");
  };
  const auto matmul = [&](int id, int rows, int columns) {
    return layer(id, "MatMul",
                 "<data transpose_a=\"false\" transpose_b=\"false\"/><input>" +
                     port(0, dims(-1, rows)) + port(1, dims(rows, columns)) + "</input><output>" +
                     port(2, dims(-1, columns)) + "</output>");
  };
  const auto edge = [](int from, int from_port, int to, int to_port) {
    return "<edge from-layer=\"" + std::to_string(from) + "\" from-port=\"" +
           std::to_string(from_port) + "\" to-layer=\"" + std::to_string(to) + "\" to-port=\"" +
           std::to_string(to_port) + "\"/>";
  };
  const std::string xml = "<?xml version=\"1.0\"?><net name=\"mlp\" version=\"11\"><layers>" +
                          layer(0, "Parameter",
                                "<data shape=\"?,16\" element_type=\"f32\"/><output>" +
                                    port(0, dims(-1, 16)) + "</output>") +
                          weights(1, 16, 32, 0) + matmul(2, 16, 32) +
                          layer(3, "ReLU",
                                "<input>" + port(0, dims(-1, 32)) + "</input><output>" +
                                    port(1, dims(-1, 32)) + "</output>") +
                          weights(4, 32, 4, 16 * 32 * 4) + matmul(5, 32, 4) +
                          layer(6, "Result", "<input>" + port(0, dims(-1, 4)) + "</input>") +
                          "</layers><edges>" + edge(0, 0, 2, 0) + edge(1, 0, 2, 1) +
                          edge(2, 2, 3, 0) + edge(3, 1, 5, 0) + edge(4, 0, 5, 1) +
                          edge(5, 2, 6, 0) + "</edges></net>";
  const std::vector<float> values(16 * 32 + 32 * 4, 0.01f);
  std::ofstream(folder / "mlp.bin", std::ios::binary)
      .write(reinterpret_cast<const char*>(values.data()),
             static_cast<std::streamsize>(values.size() * sizeof(float)));
  std::ofstream(folder / "mlp.xml") << xml;
  return (folder / "mlp.xml").string();
}

[[noreturn]] void fail(const Status& status) {
  std::fprintf(stderr, "%s\n", status.message().c_str());
  std::exit(1);
}

void run_once(Instance& instance, const TensorSpec& spec, int64_t rows) {
  Shape shape(spec.dims);
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] < 0) shape[i] = i == 0 ? rows : 64;
  }
  const std::size_t bytes = *dense_byte_size(spec.dtype, shape);
  Result<std::span<std::byte>> memory = instance.input(0, shape, bytes);
  if (!memory) fail(memory.error());
  std::memset(memory->data(), 0, bytes);
  if (const Status status = instance.run(); !status.ok()) fail(status);
  if (const Result<BackendOutput> output = instance.output(0); !output) fail(output.error());
}

// ns a run, median of rounds; batch sizes go from `first` to `last` and round again.
double time_runs(Instance& instance, const TensorSpec& spec, int64_t first, int64_t last,
                 std::size_t runs) {
  std::vector<double> rounds;
  for (std::size_t round = 0; round <= kRounds; ++round) {
    const auto start = std::chrono::steady_clock::now();
    int64_t rows = first;
    for (std::size_t i = 0; i < runs; ++i) {
      run_once(instance, spec, rows);
      rows = rows == last ? first : rows + 1;
    }
    const std::chrono::duration<double, std::nano> elapsed =
        std::chrono::steady_clock::now() - start;
    if (round > 0) rounds.push_back(elapsed.count() / static_cast<double>(runs));  // 0 warms up
  }
  std::sort(rounds.begin(), rounds.end());
  return rounds[rounds.size() / 2];
}

std::unique_ptr<Instance> make_instance(Model& model) {
  Result<std::unique_ptr<Instance>> instance = model.make_instance();
  if (!instance) fail(instance.error());
  return std::move(*instance);
}

}  // namespace

int main(int argc, char** argv) {
  std::string folder = (std::filesystem::temp_directory_path() / "openvino-bench-XXXXXX").string();
  if (mkdtemp(folder.data()) == nullptr) return 1;
  const std::string path = argc > 1 ? argv[1] : write_mlp(folder);
  const std::size_t runs = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 4000;
  const uint32_t cores = std::max(1U, std::thread::hardware_concurrency());

  OpenVinoOptions options;
  options.instances = cores;
  const OpenVinoBackend backend;
  Result<std::shared_ptr<Model>> loaded = backend.load(path, options);
  std::filesystem::remove_all(folder);
  if (!loaded) fail(loaded.error());
  Model& model = **loaded;
  const TensorSpec& spec = model.inputs().front();
  std::printf("%s\n", model.description().c_str());

  const std::unique_ptr<Instance> one = make_instance(model);
  double mean = 0;
  for (int64_t rows = 1; rows <= 8; ++rows) {
    const double ns = time_runs(*one, spec, rows, rows, runs);
    mean += ns / 8;
    if (rows == 1 || rows == 8) std::printf("same       batch %2d %10.0f ns\n", int(rows), ns);
  }
  const double switching = time_runs(*one, spec, 1, 8, runs);
  std::printf("switching  1..8     %10.0f ns, without switching %.0f ns\n", switching, mean);

  for (uint32_t n = 1; n <= cores; n *= 2) {
    std::vector<std::unique_ptr<Instance>> instances;
    for (uint32_t i = 0; i < n; ++i) instances.push_back(make_instance(model));
    std::vector<double> ns(n);
    std::vector<std::thread> threads;
    for (uint32_t i = 0; i < n; ++i) {
      threads.emplace_back([&, i] { ns[i] = time_runs(*instances[i], spec, 1, 1, runs); });
    }
    for (std::thread& thread : threads) thread.join();
    std::printf("instances  %2u       %10.0f ns\n", n, *std::max_element(ns.begin(), ns.end()));
  }
  return 0;
}
