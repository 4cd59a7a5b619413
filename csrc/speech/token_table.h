// TokenTable: from token ids to the bytes they stand for. Only this direction is needed: nothing is
// tokenised at run time.
//
// File: a token a line, base64 of its bytes, a space, its id, perhaps a space and its score (of sentencepiece).
// Ids that have no line (special tokens) stand for nothing.
//
// Threads: immutable and shared.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace headrace {

class TokenTable {
 public:
  // INVALID_ARGUMENT names the line.
  static Result<TokenTable> parse(std::string_view text);
  static Result<TokenTable> load(const std::string& path);

  std::size_t size() const { return bytes_.size(); }  // one more than the largest id
  std::string_view bytes(int64_t id) const;
  // The more, the rather texts are spelled with it; -1 when the file does not say.
  float score(int64_t id) const { return scores_[static_cast<std::size_t>(id)]; }
  // No space at the ends; what is no UTF-8 becomes U+FFFD.
  std::string text(std::span<const int64_t> ids) const;

 private:
  std::vector<std::string> bytes_;
  std::vector<float> scores_;
};

// Invalid sequences become U+FFFD, so that protobuf's string fields take it.
std::string valid_utf8(std::string_view text);

}  // namespace headrace
