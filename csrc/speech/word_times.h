// When the words of a segment were said, as far as its text and its voiced frames tell: the voiced frames are
// shared out among the words by their length in characters.
//
// Threads: a pure function.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "speech/recognizer.h"

namespace headrace {

// `voiced`: a frame of kVoiceFrame samples each; the first is frame `begin` of the stream. `confidence`: of
// every word.
std::vector<SpeechWord> share_out_words(std::string_view text, const std::vector<bool>& voiced,
                                        uint64_t begin, float confidence);

}  // namespace headrace
