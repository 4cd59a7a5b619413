// What a run of a model costs on one thread or more, input() to output(), in each INT8 mode: the best and the
// median of slices that take turns, and the error against the first mode.
//
//   int8_models_bench MODEL ROWS LENGTH THREADS ISA MODE...
//
// ROWS: the first dimension of every input; LENGTH: its other open ones. ISA: of our kernels, "best" or a
// name ("avx2"). MODE: off, exact, dynamic, auto; "operators": dynamic, inside OpenVINO's graph always.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backends/openvino/openvino_backend.h"

namespace {

using namespace headrace;

constexpr int kSlices = 60;
constexpr double kSliceSeconds = 0.004;
constexpr double kMostSeconds = 5;  // then fewer slices do

template <class T>
T expect(Result<T> result) {
  if (result) return *std::move(result);
  std::fprintf(stderr, "%s\n", result.error().message().c_str());
  std::exit(1);
}

void expect(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.message().c_str());
  std::exit(1);
}

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Gaussian floats; integers as token ids, but ones where the name says mask and zeros where it says type.
struct Input {
  Shape shape;
  std::vector<std::byte> bytes;
};

Input make_input(const TensorSpec& spec, int64_t rows, int64_t length) {
  Input input;
  for (std::size_t i = 0; i < spec.dims.size(); ++i) {
    input.shape.push_back(spec.dims[i] >= 0 ? spec.dims[i] : i == 0 ? rows : length);
  }
  input.bytes.resize(*dense_byte_size(spec.dtype, input.shape));
  std::mt19937 random(7);
  if (spec.dtype == DType::kFp32) {
    std::normal_distribution<float> value(0, 1);
    for (std::size_t i = 0; i < input.bytes.size(); i += sizeof(float)) {
      const float v = value(random);
      std::memcpy(input.bytes.data() + i, &v, sizeof(v));
    }
  } else {
    for (std::size_t i = 0; i + 8 <= input.bytes.size(); i += 8) {
      const bool mask = spec.name.find("mask") != std::string::npos;
      const bool type = spec.name.find("type") != std::string::npos;
      const int64_t v = mask ? 1 : type ? 0 : static_cast<int64_t>(1000 + random() % 20000);
      std::memcpy(input.bytes.data() + i, &v, sizeof(v));
    }
  }
  return input;
}

struct Candidate {
  std::string mode;
  std::shared_ptr<Model> model;
  std::unique_ptr<Instance> instance;
  std::vector<double> slices;  // seconds a run
  std::vector<float> answer;

  void run(const std::vector<Input>& inputs) {
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      expect(instance->lend(i, {model->inputs()[i].dtype, inputs[i].shape, inputs[i].bytes}));
    }
    expect(instance->run());
    expect(instance->output(0));
  }
  void slice(const std::vector<Input>& inputs) {
    const double start = seconds();
    int runs = 0;
    do {
      run(inputs);
      ++runs;
    } while (seconds() - start < kSliceSeconds);
    slices.push_back((seconds() - start) / runs);
  }
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 7) {
    std::fprintf(stderr, "int8_models_bench MODEL ROWS LENGTH THREADS ISA MODE...\n");
    return 2;
  }
  Isa isa = best_isa();
  for (const Isa one : available_isas()) {
    if (std::string(argv[5]) == isa_name(one)) isa = one;
  }
  const OpenVinoBackend backend;
  std::vector<Candidate> candidates;
  for (int i = 6; i < argc; ++i) {
    const std::string mode = argv[i];
    OpenVinoOptions options;
    options.threads = static_cast<uint32_t>(std::atoi(argv[4]));
    options.int8 = mode == "operators" ? "dynamic" : mode;
    options.int8_isa = isa;
    if (mode == "operators") options.direct_chains = DirectChains::kNever;
    Candidate candidate;
    candidate.mode = mode;
    candidate.model = expect(backend.load(argv[1], options));
    candidate.instance = expect(candidate.model->make_instance());
    candidates.push_back(std::move(candidate));
  }
  std::vector<Input> inputs;
  for (const TensorSpec& spec : candidates[0].model->inputs()) {
    inputs.push_back(make_input(spec, std::atoi(argv[2]), std::atoi(argv[3])));
  }
  for (Candidate& candidate : candidates) {
    candidate.run(inputs);
    const BackendOutput output = expect(candidate.instance->output(0));
    candidate.answer.resize(output.tensor.data.size() / sizeof(float));
    std::memcpy(candidate.answer.data(), output.tensor.data.data(),
                candidate.answer.size() * sizeof(float));
  }
  const double start = seconds();
  for (int i = 0; i < kSlices && (i < 5 || seconds() - start < kMostSeconds); ++i) {
    for (Candidate& candidate : candidates) candidate.slice(inputs);
  }
  for (Candidate& candidate : candidates) {
    double difference = 0, size = 0;
    for (std::size_t i = 0; i < candidate.answer.size(); ++i) {
      difference += std::pow(candidate.answer[i] - candidates[0].answer[i], 2);
      size += std::pow(candidates[0].answer[i], 2);
    }
    std::sort(candidate.slices.begin(), candidate.slices.end());
    std::printf("%s best %.3f us median %.3f us error %.5f | %s\n", candidate.mode.c_str(),
                candidate.slices.front() * 1e6, candidate.slices[candidate.slices.size() / 2] * 1e6,
                std::sqrt(difference / size), candidate.model->description().c_str());
  }
  return 0;
}
