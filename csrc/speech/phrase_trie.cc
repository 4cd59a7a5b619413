#include "speech/phrase_trie.h"

#include <algorithm>
#include <cctype>
#include <deque>
#include <limits>
#include <string>

namespace headrace {

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
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    const std::string_view piece = tokens.bytes(static_cast<int64_t>(id));
    if (piece.empty()) continue;
    ids_.try_emplace(piece, static_cast<int64_t>(id));
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
  for (const std::string& form : {std::string(text), change(std::toupper), change(std::tolower)}) {
    std::vector<int64_t> spelled;
    bool whole = true;
    std::size_t at = 0;
    while (whole) {
      at = form.find_first_not_of(" \t\r\n", at);
      if (at == std::string::npos) break;
      const std::size_t end = std::min(form.find_first_of(" \t\r\n", at), form.size());
      const std::optional<std::vector<int64_t>> word =
          spell_word((spaces_ ? " " : "") + form.substr(at, end - at));
      whole = word.has_value();
      if (word) spelled.insert(spelled.end(), word->begin(), word->end());
      at = end;
    }
    if (whole && !spelled.empty()) return spelled;
  }
  return std::nullopt;
}

std::optional<std::vector<int64_t>> PhraseSpeller::spell_word(std::string_view word) const {
  struct Best {
    float score = -std::numeric_limits<float>::infinity();
    std::size_t end = 0;
    int64_t id = 0;
  };
  std::vector<Best> best(word.size() + 1);  // of the rest from here
  best[word.size()].score = 0;
  for (std::size_t from = word.size(); from-- > 0;) {
    for (std::size_t end = from + 1; end <= std::min(word.size(), from + longest_); ++end) {
      const auto found = ids_.find(word.substr(from, end - from));
      if (found == ids_.end()) continue;
      const float score = tokens_.score(found->second) + best[end].score;
      if (score > best[from].score) best[from] = {score, end, found->second};
    }
  }
  if (best[0].end == 0) return std::nullopt;
  std::vector<int64_t> ids;
  for (std::size_t at = 0; at < word.size(); at = best[at].end) ids.push_back(best[at].id);
  return ids;
}

}  // namespace headrace
