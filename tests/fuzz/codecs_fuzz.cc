// The small codecs: what they emit they read, what they refuse is refused for a reason, nothing crashes.
// The first byte chooses one.
#include <cctype>
#include <string>
#include <string_view>

#include "fuzz/input.h"
#include "rpc/compression.h"
#include "rpc/grpc_codec.h"

using namespace headrace;
using namespace headrace::fuzz;

namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

void timeout(std::string_view text) {
  const auto parsed = parse_grpc_timeout(text);
  constexpr std::string_view kUnits = "HMSmun";
  const bool valid =
      text.size() >= 2 && text.size() <= 9 && kUnits.find(text.back()) != std::string_view::npos &&
      text.substr(0, text.size() - 1).find_first_not_of("0123456789") == std::string_view::npos;
  FUZZ_CHECK(parsed.has_value() == valid);
  if (!parsed) return;
  FUZZ_CHECK(parsed->count() >= 0);
  // The same time in the next finer unit, where eight digits hold it.
  const std::string digits(text.substr(0, text.size() - 1));
  if (text.back() == 'S' && digits.size() <= 5) {
    FUZZ_CHECK(parse_grpc_timeout(digits + "000m") == parsed);
  }
  FUZZ_CHECK(digits.size() == 8 || parse_grpc_timeout("0" + std::string(text)) == parsed);
}

void percent(std::string_view text) {
  const std::string encoded = percent_encode(text);
  std::string decoded;
  for (std::size_t i = 0; i < encoded.size(); ++i) {
    const auto byte = static_cast<unsigned char>(encoded[i]);
    FUZZ_CHECK(byte >= 0x20 && byte <= 0x7E);
    if (encoded[i] != '%') {
      decoded += encoded[i];
      continue;
    }
    FUZZ_CHECK(i + 2 < encoded.size());
    const std::string hex = encoded.substr(i + 1, 2);
    FUZZ_CHECK(hex.find_first_not_of("0123456789ABCDEF") == std::string::npos);
    decoded += static_cast<char>(std::stoi(hex, nullptr, 16));
    i += 2;
  }
  FUZZ_CHECK(decoded == text);
  if (!encoded.empty()) FUZZ_CHECK(encoded.front() != ' ' && encoded.back() != ' ');
}

void base64(std::string_view text) {
  const std::string encoded = base64_encode(text);
  FUZZ_CHECK(encoded.find('=') == std::string::npos);
  FUZZ_CHECK(base64_decode(encoded) == text);
  const std::string padding((4 - encoded.size() % 4) % 4, '=');
  FUZZ_CHECK(base64_decode(encoded + padding) == text);
  // As the coded form: what is read is written the same, but for padding and the unused last bits.
  if (const auto decoded = base64_decode(text)) {
    const std::string again = base64_encode(*decoded);
    FUZZ_CHECK(base64_decode(again) == decoded);
    FUZZ_CHECK(again.size() <= text.size() && text.size() <= again.size() + 2);
    if (!again.empty()) {
      FUZZ_CHECK(text.substr(0, again.size() - 1) == again.substr(0, again.size() - 1));
    }
  }
}

void inflate(Input& input) {
  const Encoding encoding = input.u8() % 2 == 0 ? Encoding::kGzip : Encoding::kDeflate;
  const std::size_t limit = input.u16();
  const std::size_t budget = input.u16();
  std::size_t granted = 0;
  const auto reserve = [&](std::size_t more) {
    if (granted + more > budget) return false;
    granted += more;
    return true;
  };
  const Result<BufferRef> inflated =
      inflate_message(encoding, bytes_of(input.rest()), limit, reserve);
  FUZZ_CHECK(granted <= budget);
  if (inflated) {
    FUZZ_CHECK(inflated->size() <= limit && inflated->size() <= granted);
  } else {
    FUZZ_CHECK(inflated.error().code() == StatusCode::kInternal ||
               inflated.error().code() == StatusCode::kResourceExhausted);
  }
}

void compress(Input& input) {
  const Encoding encoding = input.u8() % 2 == 0 ? Encoding::kGzip : Encoding::kDeflate;
  const std::size_t room = input.u8();
  const std::string_view first = input.bytes(input.u8());
  const std::string_view more = input.rest();
  std::vector<BodyPiece> rest;
  if (!more.empty()) rest.push_back({{}, bytes_of(more)});
  const std::optional<BufferRef> packed = compress_message(encoding, bytes_of(first), rest, room);
  if (!packed) return;
  const std::string whole = std::string(first) + std::string(more);
  FUZZ_CHECK(packed->size() - room < whole.size());
  const Result<BufferRef> inflated = inflate_message(
      encoding, packed->span().subspan(room), whole.size(), [](std::size_t) { return true; });
  FUZZ_CHECK(inflated && inflated->view() == whole);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  Input input(data, size);
  switch (input.u8() % 5) {
    case 0:
      timeout(input.rest());
      break;
    case 1:
      percent(input.rest());
      break;
    case 2:
      base64(input.rest());
      break;
    case 3:
      inflate(input);
      break;
    case 4:
      compress(input);
      break;
  }
  return 0;
}
