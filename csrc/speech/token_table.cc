#include "speech/token_table.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <iterator>
#include <optional>

namespace headrace {
namespace {

constexpr int64_t kMaxId = 1 << 20;

std::optional<std::string> decode_base64(std::string_view text) {
  static constexpr std::string_view kAlphabet =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  if (text.size() % 4 != 0) return std::nullopt;
  std::size_t padding = 0;
  while (padding < 2 && padding < text.size() && text[text.size() - 1 - padding] == '=') ++padding;
  std::string bytes;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text.substr(0, text.size() - padding)) {
    const std::size_t digit = kAlphabet.find(c);
    if (digit == std::string_view::npos) return std::nullopt;
    bits = bits << 6 | static_cast<uint32_t>(digit);
    count += 6;
    if (count >= 8) {
      count -= 8;
      bytes.push_back(static_cast<char>(bits >> count & 0xFF));
    }
  }
  return bytes;
}

// The length of the UTF-8 sequence at the front of `text`, 0: none.
std::size_t sequence_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return 1;
  const std::size_t length = lead >= 0xC2 && lead < 0xE0   ? 2
                             : lead >= 0xE0 && lead < 0xF0 ? 3
                             : lead >= 0xF0 && lead < 0xF5 ? 4
                                                           : 0;
  if (length == 0 || text.size() < length) return 0;
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  // Overlong forms, surrogates, beyond U+10FFFF.
  const uint8_t second = byte(1);
  if ((lead == 0xE0 && second < 0xA0) || (lead == 0xED && second >= 0xA0) ||
      (lead == 0xF0 && second < 0x90) || (lead == 0xF4 && second >= 0x90)) {
    return 0;
  }
  return length;
}

}  // namespace

std::string valid_utf8(std::string_view text) {
  std::string valid;
  valid.reserve(text.size());
  while (!text.empty()) {
    const std::size_t length = sequence_length(text);
    if (length == 0) {
      valid += "\xEF\xBF\xBD";
    } else {
      valid += text.substr(0, length);
    }
    text.remove_prefix(std::max<std::size_t>(length, 1));
  }
  return valid;
}

Result<TokenTable> TokenTable::parse(std::string_view text) {
  TokenTable table;
  std::size_t number = 0;
  while (!text.empty()) {
    ++number;
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    if (line.empty()) continue;
    const auto refuse = [&] {
      return Status::invalid_argument(
          "line " + std::to_string(number) +
          ": expected base64, a space and a token id (and perhaps a space "
          "and a score)");
    };
    const std::size_t space = line.find(' ');
    if (space == std::string_view::npos) return refuse();
    std::optional<std::string> bytes = decode_base64(line.substr(0, space));
    const std::string_view rest = line.substr(space + 1);
    const std::size_t gap = rest.find(' ');
    const std::string_view digits = rest.substr(0, gap);
    float score = -1;
    if (gap != std::string_view::npos) {
      const char* const stop_at = rest.data() + rest.size();
      const auto parsed = std::from_chars(rest.data() + gap + 1, stop_at, score);
      if (parsed.ec != std::errc() || parsed.ptr != stop_at || !std::isfinite(score))
        return refuse();
    }
    int64_t id = -1;
    const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), id);
    if (!bytes || error != std::errc() || stop != digits.data() + digits.size() || id < 0 ||
        id > kMaxId) {
      return refuse();
    }
    const auto index = static_cast<std::size_t>(id);
    if (table.bytes_.size() <= index) {
      table.bytes_.resize(index + 1);
      table.scores_.resize(index + 1, -1);
    }
    table.bytes_[index] = *std::move(bytes);
    table.scores_[index] = score;
  }
  if (table.bytes_.empty()) return Status::invalid_argument("no tokens");
  return table;
}

Result<TokenTable> TokenTable::load(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return Status::not_found("cannot read '" + path + "'");
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  Result<TokenTable> table = parse(text);
  if (!table) return Status::invalid_argument("'" + path + "': " + table.error().message());
  return table;
}

std::string_view TokenTable::bytes(int64_t id) const {
  return id < 0 || id >= static_cast<int64_t>(bytes_.size())
             ? std::string_view()
             : std::string_view(bytes_[static_cast<std::size_t>(id)]);
}

std::string TokenTable::text(std::span<const int64_t> ids) const {
  std::string text;
  for (const int64_t id : ids) text += bytes(id);
  const std::size_t first = text.find_first_not_of(" \t\r\n");
  if (first == std::string::npos) return {};
  const std::size_t last = text.find_last_not_of(" \t\r\n");
  return valid_utf8(std::string_view(text).substr(first, last - first + 1));
}

}  // namespace headrace
