#include "speech/ctc_decoder.h"

#include <algorithm>

namespace headrace {

void CtcState::decode(const float* log_probabilities, std::size_t frames, std::size_t vocabulary,
                      int64_t blank) {
  for (std::size_t t = 0; t < frames; ++t, ++frames_, log_probabilities += vocabulary) {
    const float* const most = std::max_element(log_probabilities, log_probabilities + vocabulary);
    const auto token = static_cast<int64_t>(most - log_probabilities);
    silence_ = token == blank ? silence_ + 1 : 0;
    if (token != blank && token != last_) {
      tokens_.push_back(token);
      frames_of_.push_back(frames_);
      log_probabilities_.push_back(*most);
    }
    last_ = token;
  }
}

void CtcState::next_utterance() {
  tokens_.clear();
  frames_of_.clear();
  log_probabilities_.clear();
  silence_ = 0;
}

}  // namespace headrace
