// VoiceActivity: how likely each frame of 32 ms is speech, by Silero's network. The frames of several streams
// go through it in one run.
//
//   inputs  input [N, 576], state [2, N, 128], sr (a scalar)      outputs  output [N, 1], stateN [2, N, 128]
//
// Threads: one at a time.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "backends/backend.h"
#include "base/status.h"

namespace headrace {

// Samples a frame of voice activity: 32 ms.
inline constexpr std::size_t kVoiceFrame = 512;

// What the network remembers of one stream. All zeros at its start.
struct VoiceState {
  std::array<float, 64> context{};  // the last samples of the frame before
  std::array<float, 256> memory{};  // two of 128
};

class VoiceActivity {
 public:
  // INVALID_ARGUMENT says what of the network's signature is not as above.
  static Result<std::unique_ptr<VoiceActivity>> create(std::shared_ptr<Model> network);

  struct Frame {
    std::span<const float> samples;  // kVoiceFrame
    VoiceState* state = nullptr;     // a stream's; once a run
    float probability = 0;           // the answer
  };
  Status run(std::span<Frame> frames);

 private:
  VoiceActivity() = default;

  std::shared_ptr<Model> network_;
  std::unique_ptr<Instance> instance_;
  std::size_t input_ = 0;
  std::size_t state_ = 0;
  std::size_t rate_ = 0;
  bool has_rate_ = false;
  Shape rate_shape_;
  std::size_t output_ = 0;
  std::size_t next_state_ = 0;
  std::vector<float> samples_;
  std::vector<float> states_;
};

}  // namespace headrace
