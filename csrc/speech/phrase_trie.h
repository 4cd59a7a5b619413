// PhraseTrie: what a hypothesis gains for saying phrases that a request prefers: every token along a phrase is
// worth its boost, and what a phrase gave that another token breaks off is taken back (Aho-Corasick, so that the end
// of one phrase may begin another). What one gave that the end of the utterance breaks off: given().
//
// Threads: immutable and shared.
//
//   PhraseTrie trie({{.tokens = {5, 9}, .boost = 1.5F}});
//   PhraseTrie::Step step = trie.step(PhraseTrie::kRoot, token);    // step.gain, step.node
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "speech/token_table.h"

namespace headrace {

class PhraseTrie {
 public:
  static constexpr uint32_t kRoot = 0;
  struct Phrase {
    std::vector<int64_t> tokens;
    float boost = 0;  // of each token, added to log probabilities
  };
  struct Step {
    float gain = 0;
    uint32_t node = kRoot;
  };

  explicit PhraseTrie(const std::vector<Phrase>& phrases);
  // After a whole phrase it begins again at the root.
  Step step(uint32_t node, int64_t token) const;
  // What the phrase has given that has come to `node`.
  float given(uint32_t node) const { return nodes_[node].sum; }

 private:
  struct Node {
    std::map<int64_t, uint32_t> next;
    float boost = 0;   // of its token
    float sum = 0;     // of the way here
    bool end = false;  // of a phrase
    uint32_t fail = kRoot;
    uint32_t inner = kRoot;  // the longest whole phrase that this one ends with
  };
  std::vector<Node> nodes_;
};

// Tokens of texts, as sentencepiece cuts them: the pieces whose scores sum up to most; without scores, as few as
// can be. Tries the text as it is, then in capitals, then in small letters: the first that needs no byte pieces.
// Words begin with a space where the model's do; Chinese and Japanese ones do not.
class PhraseSpeller {
 public:
  explicit PhraseSpeller(const TokenTable& tokens);
  // nullopt: it has characters that no token has.
  std::optional<std::vector<int64_t>> spell(std::string_view text) const;

 private:
  struct Spelling {
    std::vector<int64_t> ids;
    bool in_bytes = false;  // in part
  };
  bool spell_text(std::string_view text, Spelling& spelling) const;
  bool spell_word(const std::string& word, Spelling& spelling) const;
  bool spell_letters(std::string_view letters, Spelling& spelling) const;

  const TokenTable& tokens_;
  std::unordered_map<std::string_view, int64_t> ids_;
  std::size_t longest_ = 0;
  bool spaces_ = false;  // words begin with one
};

}  // namespace headrace
