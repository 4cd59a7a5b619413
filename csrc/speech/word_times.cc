#include "speech/word_times.h"

#include <algorithm>
#include <string>

#include "speech/voice_activity.h"

namespace headrace {

std::vector<SpeechWord> share_out_words(std::string_view text, const std::vector<bool>& voiced,
                                        uint64_t begin, float confidence) {
  std::vector<SpeechWord> words;
  std::vector<double> weights;
  double total = 0;
  while (true) {
    const std::size_t first = text.find_first_not_of(' ');
    if (first == std::string_view::npos) break;
    text.remove_prefix(first);
    const std::string_view word = text.substr(0, text.find(' '));
    text.remove_prefix(word.size());
    // Characters, not bytes, and a little for the word itself.
    const auto characters =
        std::count_if(word.begin(), word.end(), [](char c) { return (c & 0xC0) != 0x80; });
    words.push_back({.text = std::string(word), .confidence = confidence});
    weights.push_back(static_cast<double>(characters) + 1);
    total += weights.back();
  }
  if (words.empty()) return words;

  std::vector<std::size_t> frames;  // the voiced ones
  for (std::size_t i = 0; i < voiced.size(); ++i) {
    if (voiced[i]) frames.push_back(i);
  }
  if (frames.empty()) {
    for (std::size_t i = 0; i < std::max<std::size_t>(voiced.size(), 1); ++i) frames.push_back(i);
  }
  constexpr double kFrameMs = 1000.0 * kVoiceFrame / kSpeechSampleRate;
  // The time of a place among the voiced frames; a whole number lies between two of them.
  const auto time_of = [&](double place, bool ends) {
    const auto last = frames.size() - 1;
    auto index = std::min(static_cast<std::size_t>(place), last);
    double rest = place - static_cast<double>(index);
    if (ends && rest == 0 && index > 0) {
      --index;
      rest = 1;
    }
    const double frame = static_cast<double>(begin + frames[index]) + std::min(rest, 1.0);
    return static_cast<int32_t>(frame * kFrameMs);
  };
  double before = 0;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const double scale = static_cast<double>(frames.size()) / total;
    words[i].start_ms = time_of(before * scale, false);
    before += weights[i];
    words[i].end_ms = std::max(words[i].start_ms, time_of(before * scale, true));
  }
  return words;
}

}  // namespace headrace
