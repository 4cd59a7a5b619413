#include "speech/token_table.h"

#include <doctest/doctest.h>

#include <array>

using namespace headrace;

TEST_CASE("tokens become text") {
  const Result<TokenTable> table =
      TokenTable::parse("IGhlbGxv 5\nIHdvcmxk 7\r\n\nIQ== 2\n4A== 8\nw6Q= 9");
  REQUIRE(table);
  CHECK(table->size() == 10);
  CHECK(table->bytes(5) == " hello");
  CHECK(table->bytes(6).empty());
  CHECK(table->bytes(-1).empty());
  CHECK(table->bytes(10).empty());
  CHECK(table->text(std::array<int64_t, 5>{1, 5, 7, 2, 99}) == "hello world!");
  CHECK(table->text(std::array<int64_t, 1>{9}) == "\xC3\xA4");
  // A sequence that was cut short.
  CHECK(table->text(std::array<int64_t, 2>{5, 8}) == "hello\xEF\xBF\xBD");
  CHECK(table->text({}).empty());
}

TEST_CASE("what is no table is refused, with the line") {
  for (const char* text :
       {"IGhlbGxv 5\nIQ=", "IQ== x", "IQ== -1", "IQ== 99999999999", "IQ==", "*Q== 1", "IQ== 1 x"}) {
    CAPTURE(text);
    const Result<TokenTable> table = TokenTable::parse(text);
    REQUIRE_FALSE(table);
    CHECK(table.error().code() == StatusCode::kInvalidArgument);
    CHECK(table.error().message().find("line ") == 0);
  }
  CHECK_FALSE(TokenTable::parse(""));
  CHECK(TokenTable::load("/nonexistent/tokens.txt").error().code() == StatusCode::kNotFound);
}

TEST_CASE("text is valid UTF-8") {
  CHECK(valid_utf8("a\xC3\xA4\xE2\x82\xAC\xF0\x9F\x98\x80") ==
        "a\xC3\xA4\xE2\x82\xAC\xF0\x9F\x98\x80");
  CHECK(valid_utf8("\xC0\x80") == "\xEF\xBF\xBD\xEF\xBF\xBD");
  CHECK(valid_utf8("\xED\xA0\x80").size() == 9);
  CHECK(valid_utf8("\xF5") == "\xEF\xBF\xBD");
}
