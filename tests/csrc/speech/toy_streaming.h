// Networks of the streaming family's contract whose answers say whether they were given what they should be.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "speech/token_table.h"
#include "speech/toy_networks.h"

namespace headrace::toy {

inline constexpr std::size_t kBands = 4;
inline constexpr std::size_t kChunk = 10;
inline constexpr std::size_t kShift = 8;
inline constexpr int64_t kBlank = 26;
inline constexpr std::size_t kShiftSamples = kShift * 160;

// Each loud chunk is the letter of its number; caches count the chunks, on both kinds of axes.
inline Status spell(const std::vector<Tensor>& in, std::vector<Tensor>& out) {
  const auto rows = static_cast<std::size_t>(in[0].shape[0]);
  std::vector<float> answer(rows * 2 * (kBlank + 1), -9.0F);
  std::vector<float> counts(in[1].as<float>(), in[1].as<float>() + rows * 2);
  Tensor numbers = in[2];
  for (std::size_t row = 0; row < rows; ++row) {
    const float* const features = in[0].as<float>() + row * kChunk * kBands;
    bool loud = false;
    for (std::size_t i = 0; i < kBands * kChunk; ++i) {
      loud = loud || (i % kChunk < kShift && features[i] > -8);
    }
    // [2, N]: outside is the row of numbers, inside the stream's.
    const float count = counts[row];
    const bool right =
        counts[rows + row] == -count && numbers.as<int64_t>()[row] == static_cast<int64_t>(count);
    counts[row] += 1;
    counts[rows + row] -= 1;
    reinterpret_cast<int64_t*>(numbers.bytes.data())[row] += 1;
    const int64_t letter = !right ? 25 : loud ? static_cast<int64_t>(count) % 25 : kBlank;
    answer[(row * 2) * (kBlank + 1) + static_cast<std::size_t>(letter)] = -0.1F;
    answer[(row * 2 + 1) * (kBlank + 1) + static_cast<std::size_t>(kBlank)] = -0.1F;
  }
  out.push_back(Tensor::of(Shape{in[0].shape[0], 2, kBlank + 1}, answer));
  out.push_back(Tensor::of(Shape{2, in[0].shape[0]}, counts));
  out.push_back(numbers);
  return {};
}

inline std::shared_ptr<Model> model(Function function = spell) {
  return std::make_shared<ToyModel>(
      std::vector<TensorSpec>{spec("audio_signal", DType::kFp32, {-1, kBands, -1}),
                              spec("count", DType::kFp32, {2, -1}),
                              spec("number", DType::kInt64, {-1})},
      std::vector<TensorSpec>{spec("logprobs", DType::kFp32, {-1, -1, kBlank + 1}),
                              spec("new_count", DType::kFp32, {2, -1}),
                              spec("number_next", DType::kInt64, {-1})},
      std::move(function));
}

inline TokenTable letters() {
  std::string text;
  static constexpr char kDigits[] =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (int i = 0; i < 26; ++i) {
    const int byte = 'a' + i;
    text += {kDigits[byte >> 2], kDigits[(byte & 3) << 4], '=', '='};
    text += " " + std::to_string(i) + "\n";
  }
  return *TokenTable::parse(text);
}

// A transducer that hears whether the last frame of a chunk is loud: then 'a' is as likely as nothing. Otherwise
// nothing is likely, but for who thinks that 'a' was the last token.
inline constexpr std::size_t kHeard = 2;  // frames of a chunk

inline Status hear_loud(const std::vector<Tensor>& in, std::vector<Tensor>& out) {
  const auto rows = static_cast<std::size_t>(in[0].shape[0]);
  std::vector<float> heard(rows * kHeard, 0.0F);
  for (std::size_t row = 0; row < rows; ++row) {
    const float* const features = in[0].as<float>() + row * kChunk * kBands;
    const bool loud = *std::max_element(features, features + kShift * kBands) > -8;
    heard[(row + 1) * kHeard - 1] = loud ? 1 : 0;
  }
  out.push_back(Tensor::of(Shape{in[0].shape[0], kHeard, 1}, heard));
  out.push_back(in[1]);
  return {};
}

inline Status remember(const std::vector<Tensor>& in, std::vector<Tensor>& out) {
  std::vector<float> last;
  for (int64_t row = 0; row < in[0].shape[0]; ++row) {
    last.push_back(static_cast<float>(in[0].as<int64_t>()[row]));
  }
  out.push_back(Tensor::of(Shape{in[0].shape[0], 1}, last));
  return {};
}

inline Status join(const std::vector<Tensor>& in, std::vector<Tensor>& out) {
  const auto rows = static_cast<std::size_t>(in[0].shape[0]);
  std::vector<float> logits;
  for (std::size_t row = 0; row < rows; ++row) {
    const bool loud = in[0].as<float>()[row] > 0;
    const bool doubts = in[1].as<float>()[row] == 0;
    for (int64_t token = 0; token <= kBlank; ++token) {
      const bool likely = token == kBlank || (loud && token == 0);
      const float quiet = likely ? std::log(0.97F) : std::log(0.03F / kBlank);
      logits.push_back(doubts ? 0 : loud ? (likely ? 0 : -20.0F) : quiet);
    }
  }
  out.push_back(Tensor::of(Shape{in[0].shape[0], kBlank + 1}, logits));
  return {};
}

}  // namespace headrace::toy
