// CtcState: greedy CTC: the likeliest token of each frame, without repetitions and blanks.
//
// Threads: one at a time.
//
//   CtcState state;
//   state.decode(log_probabilities, 7, vocabulary, blank);
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace headrace {

class CtcState {
 public:
  // `log_probabilities`: [frames][vocabulary], the next of the stream.
  void decode(const float* log_probabilities, std::size_t frames, std::size_t vocabulary,
              int64_t blank);
  void next_utterance();

  const std::vector<int64_t>& tokens() const { return tokens_; }
  const std::vector<uint64_t>& frames() const { return frames_of_; }  // since the stream's start
  const std::vector<float>& log_probabilities() const { return log_probabilities_; }
  uint32_t silence() const { return silence_; }  // frames since the last token

 private:
  std::vector<int64_t> tokens_;
  std::vector<uint64_t> frames_of_;
  std::vector<float> log_probabilities_;
  uint32_t silence_ = 0;
  int64_t last_ = -1;  // of the frame before, blanks included
  uint64_t frames_ = 0;
};

}  // namespace headrace
