#include "speech/phrase_trie.h"

#include <algorithm>
#include <cctype>
#include <deque>
#include <limits>
#include <string>

namespace headrace {
namespace {

constexpr std::string_view kBlanks = " \t\r\n";
// Of pieces that are single bytes (sentencepiece's <0xNN>): only where nothing else will do.
constexpr float kByteScore = -1e4F;

float score(const TokenTable& tokens, int64_t id) {
  const std::string_view piece = tokens.bytes(id);
  const bool byte = piece.size() == 1 && static_cast<unsigned char>(piece.front()) >= 0x80;
  return byte ? std::min(tokens.score(id), kByteScore) : tokens.score(id);
}

// UTF-8's, by its first one.
std::size_t letter_bytes(char first) {
  const auto byte = static_cast<unsigned char>(first);
  return byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
}

// Whether the first letter is of Chinese, Japanese or their punctuation. Korean has spaces.
bool without_spaces(std::string_view text) {
  const std::size_t bytes = letter_bytes(text.front());
  if (bytes < 3 || bytes > text.size()) return false;
  uint32_t letter = static_cast<unsigned char>(text[0]) & (bytes == 3 ? 0x0fU : 0x07U);
  for (std::size_t i = 1; i < bytes; ++i) {
    letter = letter << 6 | (static_cast<unsigned char>(text[i]) & 0x3fU);
  }
  const bool korean =
      (letter >= 0x3130 && letter < 0x3190) || (letter >= 0xa960 && letter < 0xa980);
  return !korean &&
         ((letter >= 0x2e80 && letter < 0xa4d0) || (letter >= 0xf900 && letter < 0xfb00) ||
          (letter >= 0xfe30 && letter < 0xfe50) || (letter >= 0xff00 && letter < 0xfff0) ||
          (letter >= 0x20000 && letter < 0x40000));
}

}  // namespace

PhraseTrie::PhraseTrie(const std::vector<Phrase>& phrases) : nodes_(1) {
  for (const Phrase& phrase : phrases) {
    uint32_t node = kRoot;
    for (const int64_t token : phrase.tokens) {
      const auto [found, added] =
          nodes_[node].next.try_emplace(token, static_cast<uint32_t>(nodes_.size()));
      const uint32_t next = found->second;
      if (added) {
        nodes_.emplace_back();
        nodes_[next].boost = phrase.boost;
      }
      nodes_[next].boost = std::max(nodes_[next].boost, phrase.boost);
      node = next;
    }
    nodes_[node].end = node != kRoot;
  }
  // Breadth first: where a node falls back to is nearer to the root.
  std::deque<uint32_t> queue{kRoot};
  while (!queue.empty()) {
    const uint32_t at = queue.front();
    queue.pop_front();
    for (const auto& [token, child] : nodes_[at].next) {
      Node& node = nodes_[child];
      node.sum = nodes_[at].sum + node.boost;
      if (at != kRoot) {
        uint32_t fail = nodes_[at].fail;
        while (fail != kRoot && !nodes_[fail].next.contains(token)) fail = nodes_[fail].fail;
        const auto found = nodes_[fail].next.find(token);
        node.fail = found == nodes_[fail].next.end() ? kRoot : found->second;
      }
      node.inner = nodes_[node.fail].end ? node.fail : nodes_[node.fail].inner;
      queue.push_back(child);
    }
  }
}

PhraseTrie::Step PhraseTrie::step(uint32_t node, int64_t token) const {
  uint32_t at = node;
  while (at != kRoot && !nodes_[at].next.contains(token)) at = nodes_[at].fail;
  const auto found = nodes_[at].next.find(token);
  if (found != nodes_[at].next.end()) at = found->second;
  const float gain = nodes_[at].sum - nodes_[node].sum;
  if (nodes_[at].end) return {gain, kRoot};
  // A shorter phrase within is whole: what the longer one had given is taken back.
  if (nodes_[at].inner != kRoot) {
    return {gain + nodes_[nodes_[at].inner].sum - nodes_[at].sum, kRoot};
  }
  return {gain, at};
}

PhraseSpeller::PhraseSpeller(const TokenTable& tokens) : tokens_(tokens) {
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const auto id = static_cast<int64_t>(i);
    const std::string_view piece = tokens.bytes(id);
    if (piece.empty()) continue;
    // A letter may be a byte piece too.
    const auto [found, added] = ids_.try_emplace(piece, id);
    if (!added && score(tokens, id) > score(tokens, found->second)) found->second = id;
    longest_ = std::max(longest_, piece.size());
    spaces_ = spaces_ || piece.front() == ' ';
  }
}

std::optional<std::vector<int64_t>> PhraseSpeller::spell(std::string_view text) const {
  const auto change = [&](int (*letter)(int)) {
    std::string changed(text);
    for (char& c : changed) {
      if (static_cast<unsigned char>(c) < 0x80) c = static_cast<char>(letter(c));
    }
    return changed;
  };
  std::optional<std::vector<int64_t>> in_bytes;
  for (const std::string& form : {std::string(text), change(std::toupper), change(std::tolower)}) {
    Spelling spelling;
    if (!spell_text(form, spelling) || spelling.ids.empty()) continue;
    if (!spelling.in_bytes) return std::move(spelling.ids);
    if (!in_bytes) in_bytes = std::move(spelling.ids);
  }
  return in_bytes;
}

bool PhraseSpeller::spell_text(std::string_view text, Spelling& spelling) const {
  std::size_t at = 0;
  while ((at = text.find_first_not_of(kBlanks, at)) != std::string_view::npos) {
    const std::size_t end = std::min(text.find_first_of(kBlanks, at), text.size());
    // Between scripts that have no spaces and others a word ends.
    while (at < end) {
      const bool spaced = !without_spaces(text.substr(at, end - at));
      std::size_t next = at;
      while (next < end && without_spaces(text.substr(next, end - next)) != spaced) {
        next += std::min(letter_bytes(text[next]), end - next);
      }
      const std::string word(text.substr(at, next - at));
      const bool found =
          spaced && spaces_ ? spell_letters(" " + word, spelling) : spell_word(word, spelling);
      if (!found) return false;
      at = next;
    }
  }
  return true;
}

// Of a script without spaces: without one, unless its pieces have some.
bool PhraseSpeller::spell_word(const std::string& word, Spelling& spelling) const {
  Spelling plain = spelling;
  Spelling spaced = spelling;
  const bool found = spell_letters(word, plain);
  const bool tries = spaces_ && (!found || plain.in_bytes);
  if (tries && spell_letters(" " + word, spaced) && (!found || !spaced.in_bytes)) {
    spelling = std::move(spaced);
    return true;
  }
  if (found) spelling = std::move(plain);
  return found;
}

// Pieces are appended, if there are all.
bool PhraseSpeller::spell_letters(std::string_view letters, Spelling& spelling) const {
  struct Best {
    float score = -std::numeric_limits<float>::infinity();
    std::size_t end = 0;
    int64_t id = 0;
  };
  std::vector<Best> best(letters.size() + 1);  // of the rest from here
  best[letters.size()].score = 0;
  for (std::size_t from = letters.size(); from-- > 0;) {
    for (std::size_t end = from + 1; end <= std::min(letters.size(), from + longest_); ++end) {
      const auto found = ids_.find(letters.substr(from, end - from));
      if (found == ids_.end()) continue;
      const float sum = score(tokens_, found->second) + best[end].score;
      if (sum > best[from].score) best[from] = {sum, end, found->second};
    }
  }
  if (best[0].end == 0) return false;
  for (std::size_t at = 0; at < letters.size(); at = best[at].end) {
    spelling.ids.push_back(best[at].id);
    spelling.in_bytes = spelling.in_bytes || score(tokens_, best[at].id) <= kByteScore;
  }
  return true;
}

}  // namespace headrace
