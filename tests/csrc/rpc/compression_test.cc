#include "rpc/compression.h"

#include <doctest/doctest.h>
#include <zlib.h>

#include <random>
#include <string>

#include "deflate.h"
#include "wire_client.h"

using namespace headrace;
using namespace headrace::test;

namespace {

constexpr std::size_t kLimit = 1 << 20;

Result<BufferRef> inflate_text(Encoding encoding, std::string_view message,
                               std::size_t limit = kLimit, std::size_t memory = SIZE_MAX) {
  return inflate_message(encoding, bytes_of(message), limit, [&memory](std::size_t more) {
    if (more > memory) return false;
    memory -= more;
    return true;
  });
}

}  // namespace

TEST_CASE("names of encodings") {
  CHECK(encoding_from_name("identity") == Encoding::kIdentity);
  CHECK(encoding_from_name("gzip") == Encoding::kGzip);
  CHECK(encoding_from_name("deflate") == Encoding::kDeflate);
  for (const char* other : {"", "GZIP", "snappy", "br", "gzip,deflate", " gzip"}) {
    CHECK_FALSE(encoding_from_name(other));
  }
}

TEST_CASE("gzip and deflate give back what went in, at every size around the limit") {
  for (const Encoding encoding : {Encoding::kGzip, Encoding::kDeflate}) {
    for (const std::size_t size :
         {std::size_t{0}, std::size_t{1}, std::size_t{1023}, std::size_t{1024}, std::size_t{1025},
          std::size_t{70000}, kLimit - 1, kLimit}) {
      for (const bool compressible : {true, false}) {
        CAPTURE(size);
        const std::string text = compressible ? std::string(size, 'a') : pattern(size);
        const Result<BufferRef> out = inflate_text(encoding, compress_text(encoding, text));
        REQUIRE(out);
        CHECK(out.value().view() == text);
      }
    }
    const Result<BufferRef> over =
        inflate_text(encoding, compress_text(encoding, std::string(kLimit + 1, 'a')));
    REQUIRE_FALSE(over);
    CHECK(over.error().code() == StatusCode::kResourceExhausted);
    // A limit of nothing still admits the empty message.
    CHECK(inflate_text(encoding, compress_text(encoding, ""), 0));
    CHECK(inflate_text(encoding, compress_text(encoding, "a"), 0).error().code() ==
          StatusCode::kResourceExhausted);
  }
}

TEST_CASE("truncated, garbled, followed by more, or of the other encoding: INTERNAL") {
  for (const Encoding encoding : {Encoding::kGzip, Encoding::kDeflate}) {
    const std::string text = pattern(3000);
    const std::string good = compress_text(encoding, text);
    const auto code = [&](std::string_view bytes, std::size_t limit = kLimit) {
      const Result<BufferRef> out = inflate_text(encoding, bytes, limit);
      return out ? StatusCode::kOk : out.error().code();
    };
    for (std::size_t n = 0; n < good.size(); n += 1 + n / 7) {
      CHECK(code(good.substr(0, n)) == StatusCode::kInternal);
    }
    // Also where the output just fits the limit and only the checksum is missing.
    CHECK(code(good.substr(0, good.size() - 1), text.size()) == StatusCode::kInternal);
    CHECK(code(good + "x") == StatusCode::kInternal);
    CHECK(code(good + good) == StatusCode::kInternal);
    CHECK(code("plain text") == StatusCode::kInternal);
    std::string wrong_sum = good;
    wrong_sum[good.size() - 5] = static_cast<char>(wrong_sum[good.size() - 5] ^ 1);
    CHECK((encoding == Encoding::kDeflate || code(wrong_sum) == StatusCode::kInternal));
    CHECK(
        (encoding == Encoding::kDeflate || code(wrong_sum, text.size()) == StatusCode::kInternal));
    const Encoding other = encoding == Encoding::kGzip ? Encoding::kDeflate : Encoding::kGzip;
    CHECK(code(compress_text(other, text)) == StatusCode::kInternal);
  }
}

TEST_CASE("random damage never does worse than an error, and never passes the limit") {
  std::mt19937 random(17);
  const std::string good = compress_text(Encoding::kGzip, pattern(500) + std::string(5000, 'z'));
  for (int round = 0; round < 3000; ++round) {
    std::string bytes = good;
    for (unsigned i = 0; i <= random() % 4; ++i) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    if (random() % 3 == 0) bytes.resize(random() % bytes.size());
    const std::size_t limit = random() % 8000;
    const Result<BufferRef> out = inflate_text(Encoding::kGzip, bytes, limit);
    if (out) {
      REQUIRE(out.value().size() <= limit);
    } else {
      const StatusCode code = out.error().code();
      REQUIRE((code == StatusCode::kInternal || code == StatusCode::kResourceExhausted));
    }
  }
}

TEST_CASE("memory is asked for before it is taken, and a bomb gets no more than was granted") {
  const std::string bomb = compress_text(Encoding::kGzip, std::string(64 << 20, '\0'));
  CHECK(bomb.size() < 1 << 20);
  std::size_t granted = 0;
  const auto grant = [&granted](std::size_t limit) {
    return [&granted, limit](std::size_t more) {
      if (granted + more > limit) return false;
      granted += more;
      return true;
    };
  };
  SUBCASE("the message limit stops it") {
    const Result<BufferRef> out =
        inflate_message(Encoding::kGzip, bytes_of(bomb), 4 << 20, grant(SIZE_MAX));
    REQUIRE_FALSE(out);
    CHECK(out.error().code() == StatusCode::kResourceExhausted);
    CHECK(granted <= 4 << 20);
  }
  SUBCASE("the budget stops it") {
    const Result<BufferRef> out =
        inflate_message(Encoding::kGzip, bytes_of(bomb), SIZE_MAX, grant(3 << 20));
    REQUIRE_FALSE(out);
    CHECK(out.error().code() == StatusCode::kResourceExhausted);
    CHECK(granted <= 3 << 20);
  }
  SUBCASE("a good message: the grant covers what it got") {
    const std::string text = pattern(100000);
    const Result<BufferRef> out = inflate_message(
        Encoding::kGzip, bytes_of(compress_text(Encoding::kGzip, text)), kLimit, grant(SIZE_MAX));
    REQUIRE(out);
    CHECK(granted >= text.size());
  }
}

TEST_CASE("gzip that is not believed is measured before it has memory") {
  constexpr std::size_t kSize = 10 << 20;
  const std::string honest = compress_text(Encoding::kGzip, std::string(kSize, 'x'));
  Inflation measured(Encoding::kGzip, bytes_of(honest), kSize, false);
  CHECK_FALSE(measured.measured());
  while (!measured.measured()) REQUIRE(measured.run().ok());
  CHECK(measured.size() == kSize);
  measured.allocate();
  while (!measured.done()) REQUIRE(measured.run().ok());
  CHECK(measured.take().size() == kSize);

  std::string lie = honest;  // it says 9 MiB
  lie.replace(lie.size() - 4, 4, std::string("\0\0\x90\0", 4));
  Inflation caught(Encoding::kGzip, bytes_of(lie), kSize, false);
  Status status;
  while (status.ok()) {
    REQUIRE_FALSE(caught.measured());
    status = caught.run();
  }
  CHECK(status.code() == StatusCode::kInternal);
  // Small ones are believed at once.
  const std::string small = compress_text(Encoding::kGzip, std::string(1 << 20, 'x'));
  CHECK(Inflation(Encoding::kGzip, bytes_of(small), kSize, false).measured());
}
