// Networks of the speech room's contract that understand a toy language: a word is four frames of a constant
// sample of word / 1000. The encoder hears whole words, and mishears one that is cut short as word + 100. The
// decoder repeats them one by one, and says kCorrupt when the cache, the masks or the positions that it is given
// are not exactly those of the words so far.
#pragma once

#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "backends/backend.h"
#include "speech/segment_network.h"
#include "speech/voice_activity.h"

namespace headrace::toy {

inline constexpr int64_t kBos = 1;
inline constexpr int64_t kEos = 2;
inline constexpr int64_t kCorrupt = 3;
inline constexpr int64_t kVocabulary = 256;
inline constexpr std::size_t kWordFrames = 4;

struct Tensor {
  Shape shape;
  std::vector<std::byte> bytes;
  template <class T>
  const T* as() const {
    return reinterpret_cast<const T*>(bytes.data());
  }
  static Tensor of(const Shape& shape, const std::vector<float>& values) {
    Tensor tensor{shape, std::vector<std::byte>(values.size() * sizeof(float))};
    std::memcpy(tensor.bytes.data(), values.data(), tensor.bytes.size());
    return tensor;
  }
};

using Function = std::function<Status(const std::vector<Tensor>&, std::vector<Tensor>&)>;

class ToyInstance final : public Instance {
 public:
  ToyInstance(Function function, std::size_t inputs, std::vector<TensorSpec> outputs)
      : function_(std::move(function)), inputs_(inputs), specs_(std::move(outputs)) {}
  Result<std::span<std::byte>> input(std::size_t index, const Shape& shape,
                                     std::size_t bytes) override {
    inputs_[index].shape = shape;
    inputs_[index].bytes.resize(bytes);
    return std::span<std::byte>(inputs_[index].bytes);
  }
  Status omit(std::size_t) override { return Status::unimplemented("toy"); }
  Status run() override {
    outputs_.clear();
    return function_(inputs_, outputs_);
  }
  Result<BackendOutput> output(std::size_t index) override {
    BackendOutput output;
    output.tensor = {specs_[index].dtype, outputs_[index].shape, outputs_[index].bytes};
    return output;
  }

 private:
  Function function_;
  std::vector<Tensor> inputs_;
  std::vector<TensorSpec> specs_;
  std::vector<Tensor> outputs_;
};

class ToyModel final : public Model {
 public:
  ToyModel(std::vector<TensorSpec> inputs, std::vector<TensorSpec> outputs, Function function)
      : inputs_(std::move(inputs)), outputs_(std::move(outputs)), function_(std::move(function)) {}
  const std::vector<TensorSpec>& inputs() const override { return inputs_; }
  const std::vector<TensorSpec>& outputs() const override { return outputs_; }
  std::string description() const override { return "toy"; }
  Result<std::unique_ptr<Instance>> make_instance() override {
    return std::unique_ptr<Instance>(
        std::make_unique<ToyInstance>(function_, inputs_.size(), outputs_));
  }

 private:
  std::vector<TensorSpec> inputs_;
  std::vector<TensorSpec> outputs_;
  Function function_;
};

inline TensorSpec spec(const char* name, DType dtype, std::vector<int64_t> dims) {
  TensorSpec made;
  made.name = name;
  made.dtype = dtype;
  made.dims = std::move(dims);
  return made;
}

// What is said in `samples`.
inline std::vector<int64_t> words_in(std::span<const float> samples) {
  std::vector<int64_t> words;
  int64_t word = 0;
  std::size_t frames = 0;
  const auto close = [&] {
    if (word != 0 && frames % kWordFrames != 0) words.push_back(word + 100);
    frames = 0;
  };
  for (std::size_t at = 0; at + kVoiceFrame <= samples.size(); at += kVoiceFrame) {
    const auto heard = static_cast<int64_t>(std::lround(samples[at] * 1000));
    if (heard != word) close();
    word = heard;
    if (word != 0 && ++frames % kWordFrames == 0) words.push_back(word);
  }
  close();
  return words;
}

inline std::vector<float> say(const std::vector<int64_t>& words, std::size_t frames = kWordFrames) {
  std::vector<float> samples;
  for (const int64_t word : words) {
    samples.insert(samples.end(), frames * kVoiceFrame, static_cast<float>(word) / 1000.0F);
  }
  return samples;
}

inline Status encode(const std::vector<Tensor>& inputs, std::vector<Tensor>& outputs) {
  std::vector<int64_t> words =
      words_in({inputs[0].as<float>(), static_cast<std::size_t>(inputs[0].shape[1])});
  words.push_back(kEos);
  std::vector<float> values;
  for (const int64_t word : words) {
    values.push_back(static_cast<float>(word));
    values.push_back(1);
  }
  const Shape shape{1, 1, static_cast<int64_t>(words.size()), 2};
  outputs.push_back(Tensor::of(shape, values));
  for (float& value : values) value = -value;
  outputs.push_back(Tensor::of(shape, values));
  return {};
}

// Inputs in the order of decoder().
inline Status decode(const std::vector<Tensor>& in, std::vector<Tensor>& outputs) {
  const auto rows = static_cast<std::size_t>(in[0].shape[0]);
  const auto width = static_cast<std::size_t>(in[0].shape[1]);
  const auto past = static_cast<std::size_t>(in[4].shape[2]);
  const auto context = static_cast<std::size_t>(in[6].shape[2]);
  std::vector<float> logits(rows * width * kVocabulary, 0.0F);
  std::vector<float> keys;
  std::vector<float> values;
  for (std::size_t row = 0; row < rows; ++row) {
    std::vector<int64_t> said;
    for (std::size_t s = 0; s < context; ++s) {
      if (in[3].as<float>()[row * context + s] < -1e8F) continue;
      const float key = in[6].as<float>()[(row * context + s) * 2];
      said.push_back(in[7].as<float>()[(row * context + s) * 2] == -key ? std::lround(key)
                                                                        : kCorrupt);
    }
    for (std::size_t t = 0; t < width; ++t) {
      const int64_t id = in[0].as<int64_t>()[row * width + t];
      const int64_t position = in[1].as<int64_t>()[row * width + t];
      keys.insert(keys.end(), {static_cast<float>(id), static_cast<float>(position)});
      values.insert(values.end(), {static_cast<float>(-id), 0.0F});
      // The ids and positions that this one sees, itself included.
      const float* const mask = in[2].as<float>() + (row * width + t) * (past + width);
      std::vector<std::pair<int64_t, int64_t>> seen;
      for (std::size_t p = 0; p < past; ++p) {
        if (mask[p] < -1e8F) continue;
        const float* const key = in[4].as<float>() + (row * past + p) * 2;
        const bool pair = in[5].as<float>()[(row * past + p) * 2] == -key[0];
        seen.emplace_back(pair ? std::lround(key[0]) : kCorrupt, std::lround(key[1]));
      }
      for (std::size_t u = 0; u < width; ++u) {
        if (mask[past + u] < -1e8F) continue;
        seen.emplace_back(in[0].as<int64_t>()[row * width + u],
                          in[1].as<int64_t>()[row * width + u]);
      }
      bool right = static_cast<int64_t>(seen.size()) == position + 1;
      for (std::size_t i = 0; right && i < seen.size(); ++i) {
        right = seen[i].second == static_cast<int64_t>(i) &&
                seen[i].first == (i == 0 ? kBos : said[std::min(i - 1, said.size() - 1)]);
      }
      const auto next = static_cast<std::size_t>(position);
      const int64_t answer = !right ? kCorrupt : next < said.size() ? said[next] : kEos;
      logits[(row * width + t) * kVocabulary + static_cast<std::size_t>(answer)] = 20;
    }
  }
  const Shape shape{in[0].shape[0], 1, in[0].shape[1], 2};
  outputs.push_back(Tensor::of(Shape{in[0].shape[0], in[0].shape[1], kVocabulary}, logits));
  outputs.push_back(Tensor::of(shape, keys));
  outputs.push_back(Tensor::of(shape, values));
  return {};
}

inline std::shared_ptr<Model> encoder(Function function = encode) {
  return std::make_shared<ToyModel>(
      std::vector<TensorSpec>{spec("input_values", DType::kFp32, {-1, -1})},
      std::vector<TensorSpec>{spec("cross.0.key", DType::kFp32, {-1, 1, -1, 2}),
                              spec("cross.0.value", DType::kFp32, {-1, 1, -1, 2})},
      std::move(function));
}

inline std::shared_ptr<Model> decoder(Function function = decode) {
  return std::make_shared<ToyModel>(
      std::vector<TensorSpec>{spec("input_ids", DType::kInt64, {-1, -1}),
                              spec("positions", DType::kInt64, {-1, -1}),
                              spec("self_mask", DType::kFp32, {-1, 1, -1, -1}),
                              spec("cross_mask", DType::kFp32, {-1, 1, 1, -1}),
                              spec("past.0.key", DType::kFp32, {-1, 1, -1, 2}),
                              spec("past.0.value", DType::kFp32, {-1, 1, -1, 2}),
                              spec("cross.0.key", DType::kFp32, {-1, 1, -1, 2}),
                              spec("cross.0.value", DType::kFp32, {-1, 1, -1, 2})},
      std::vector<TensorSpec>{spec("logits", DType::kFp32, {-1, -1, kVocabulary}),
                              spec("present.0.key", DType::kFp32, {-1, 1, -1, 2}),
                              spec("present.0.value", DType::kFp32, {-1, 1, -1, 2})},
      std::move(function));
}

// Speech is what is not zero. Its memory counts the frames, and they must come in order.
inline Status hear(const std::vector<Tensor>& in, std::vector<Tensor>& outputs) {
  const auto rows = static_cast<std::size_t>(in[0].shape[0]);
  constexpr std::size_t kRow = 64 + kVoiceFrame;
  std::vector<float> speech;
  std::vector<float> memory(in[1].as<float>(), in[1].as<float>() + 2 * rows * 128);
  for (std::size_t row = 0; row < rows; ++row) {
    const float* const samples = in[0].as<float>() + row * kRow;
    // The context is the end of the frame before, which the memory holds.
    const bool right = samples[63] == memory[row * 128];
    speech.push_back(right && std::abs(samples[64]) > 1e-4F ? 0.95F : 0.01F);
    memory[row * 128] = samples[kRow - 1];
  }
  outputs.push_back(Tensor::of(Shape{in[0].shape[0], 1}, speech));
  outputs.push_back(Tensor::of(in[1].shape, memory));
  return {};
}

inline std::shared_ptr<Model> voice_activity(Function function = hear) {
  return std::make_shared<ToyModel>(
      std::vector<TensorSpec>{spec("input", DType::kFp32, {-1, -1}),
                              spec("state", DType::kFp32, {2, -1, 128}),
                              spec("sr", DType::kInt64, {})},
      std::vector<TensorSpec>{spec("output", DType::kFp32, {-1, 1}),
                              spec("stateN", DType::kFp32, {-1, -1, -1})},
      std::move(function));
}

inline SegmentOptions options() {
  SegmentOptions made;
  made.prompt = {kBos};
  made.eos = kEos;
  made.max_tokens_per_second = 40;
  return made;
}

inline std::shared_ptr<const SegmentNetwork> network() {
  return *SegmentNetwork::create(options(), encoder(), decoder());
}

}  // namespace headrace::toy
