#include "speech/voice_activity.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "speech/recognizer.h"

namespace headrace {
namespace {

constexpr std::size_t kContext = std::tuple_size_v<decltype(VoiceState::context)>;
constexpr std::size_t kMemory = std::tuple_size_v<decltype(VoiceState::memory)> / 2;

std::optional<std::size_t> find(const std::vector<TensorSpec>& specs, const char* name,
                                std::size_t rank) {
  for (std::size_t i = 0; i < specs.size(); ++i) {
    if (specs[i].name == name && specs[i].dtype == DType::kFp32 && specs[i].dims.size() == rank) {
      return i;
    }
  }
  return std::nullopt;
}

TensorView view_of(const Shape& shape, std::span<const float> values) {
  return {DType::kFp32, shape, std::as_bytes(values)};
}

}  // namespace

Result<std::unique_ptr<VoiceActivity>> VoiceActivity::create(std::shared_ptr<Model> network) {
  std::unique_ptr<VoiceActivity> made(new VoiceActivity());
  const std::vector<TensorSpec>& inputs = network->inputs();
  const auto input = find(inputs, "input", 2);
  const auto state = find(inputs, "state", 3);
  const auto output = find(network->outputs(), "output", 2);
  const auto next_state = find(network->outputs(), "stateN", 3);
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].name != "sr" || inputs[i].dtype != DType::kInt64) continue;
    made->has_rate_ = true;
    made->rate_ = i;
    if (inputs[i].dims.size() == 1) made->rate_shape_.push_back(1);
  }
  if (!input || !state || !output || !next_state || inputs.size() != (made->has_rate_ ? 3 : 2)) {
    return Status::invalid_argument(
        "vad: not Silero's network (inputs 'input', 'state', 'sr', outputs 'output', 'stateN')");
  }
  made->input_ = *input;
  made->state_ = *state;
  made->output_ = *output;
  made->next_state_ = *next_state;
  Result<std::unique_ptr<Instance>> instance = network->make_instance();
  if (!instance) return instance.error();
  made->instance_ = *std::move(instance);
  made->network_ = std::move(network);
  return made;
}

Status VoiceActivity::run(std::span<Frame> frames) {
  if (frames.empty()) return {};
  const std::size_t count = frames.size();
  const auto rows = static_cast<int64_t>(count);
  samples_.resize(count * (kContext + kVoiceFrame));
  states_.resize(2 * count * kMemory);
  for (std::size_t i = 0; i < count; ++i) {
    const VoiceState& state = *frames[i].state;
    float* const row = samples_.data() + i * (kContext + kVoiceFrame);
    std::copy(state.context.begin(), state.context.end(), row);
    std::copy(frames[i].samples.begin(), frames[i].samples.end(), row + kContext);
    for (std::size_t half = 0; half < 2; ++half) {
      std::copy_n(state.memory.data() + half * kMemory, kMemory,
                  states_.data() + (half * count + i) * kMemory);
    }
  }
  Status status = instance_->lend(
      input_, view_of(Shape{rows, static_cast<int64_t>(kContext + kVoiceFrame)}, samples_));
  if (!status.ok()) return status;
  status = instance_->lend(state_, view_of(Shape{2, rows, static_cast<int64_t>(kMemory)}, states_));
  if (!status.ok()) return status;
  if (has_rate_) {
    Result<std::span<std::byte>> rate = instance_->input(rate_, rate_shape_, sizeof(int64_t));
    if (!rate) return rate.error();
    const int64_t hertz = kSpeechSampleRate;
    std::memcpy(rate->data(), &hertz, sizeof(hertz));
  }
  if (status = instance_->run(); !status.ok()) return status;

  Result<BackendOutput> output = instance_->output(output_);
  if (!output) return output.error();
  Result<BackendOutput> next = instance_->output(next_state_);
  if (!next) return next.error();
  if (output->tensor.data.size() != count * sizeof(float) ||
      next->tensor.data.size() != states_.size() * sizeof(float)) {
    return Status::internal("vad: answered " + output->tensor.shape.to_string() + " and " +
                            next->tensor.shape.to_string());
  }
  const auto* const probabilities = reinterpret_cast<const float*>(output->tensor.data.data());
  const auto* const states = reinterpret_cast<const float*>(next->tensor.data.data());
  for (std::size_t i = 0; i < count; ++i) {
    VoiceState& state = *frames[i].state;
    frames[i].probability = probabilities[i];
    std::copy(frames[i].samples.end() - kContext, frames[i].samples.end(), state.context.begin());
    for (std::size_t half = 0; half < 2; ++half) {
      std::copy_n(states + (half * count + i) * kMemory, kMemory,
                  state.memory.data() + half * kMemory);
    }
  }
  return {};
}

}  // namespace headrace
