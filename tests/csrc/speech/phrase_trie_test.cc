#include "speech/phrase_trie.h"

#include <doctest/doctest.h>

#include <string>

using namespace headrace;

namespace {

struct Heard {
  float gain = 0;
  uint32_t node = PhraseTrie::kRoot;
};

Heard hear(const PhraseTrie& trie, const std::vector<int64_t>& tokens) {
  Heard heard;
  for (const int64_t token : tokens) {
    const PhraseTrie::Step step = trie.step(heard.node, token);
    heard.gain += step.gain;
    heard.node = step.node;
  }
  return heard;
}

}  // namespace

TEST_CASE("phrase trie: a whole phrase is worth its tokens, an unfinished one nothing") {
  const PhraseTrie trie({{{1, 2, 3}, 1.5F}, {{7}, 1.0F}});
  CHECK(hear(trie, {1, 2, 3}).gain == doctest::Approx(4.5));
  CHECK(hear(trie, {1, 2, 3}).node == PhraseTrie::kRoot);
  CHECK(hear(trie, {1, 2}).gain == doctest::Approx(3));
  CHECK(hear(trie, {1, 2, 9}).gain == doctest::Approx(0));
  CHECK(hear(trie, {1, 2, 9}).node == PhraseTrie::kRoot);
  CHECK(hear(trie, {5, 7, 5}).gain == doctest::Approx(1));
  CHECK(hear(trie, {1, 2, 1, 2, 3}).gain == doctest::Approx(4.5));
}

TEST_CASE("phrase trie: the end of one way may begin another") {
  const PhraseTrie trie({{{1, 2, 3, 4}, 1}, {{2, 3, 5}, 1}, {{3, 9}, 2}});
  CHECK(hear(trie, {1, 2, 3, 5}).gain == doctest::Approx(3));
  CHECK(hear(trie, {1, 2, 3, 9}).gain == doctest::Approx(4));
  CHECK(hear(trie, {1, 2, 3, 4}).gain == doctest::Approx(4));
}

TEST_CASE("phrase trie: a shorter phrase within one that goes on is whole") {
  const PhraseTrie trie({{{1, 2, 3, 4}, 1}, {{2, 3}, 1}});
  const Heard heard = hear(trie, {1, 2, 3});
  CHECK(heard.gain == doctest::Approx(2));
  CHECK(heard.node == PhraseTrie::kRoot);
}

TEST_CASE("phrase trie: of two boosts of the same beginning the larger counts") {
  const PhraseTrie trie({{{1, 2}, 1}, {{1, 3}, 3}});
  CHECK(hear(trie, {1}).gain == doctest::Approx(3));
  CHECK(hear(trie, {1, 2}).gain == doctest::Approx(4));
  CHECK(hear(trie, {1, 3}).gain == doctest::Approx(6));
}

TEST_CASE("phrase trie: no phrases") {
  CHECK(hear(PhraseTrie({}), {1, 2}).gain == 0);
  CHECK(hear(PhraseTrie({{{}, 1}}), {1, 2}).gain == 0);
}

TEST_CASE("phrase speller: as few pieces as can be, or those whose scores are best") {
  // " TH", "E", " T", "HE", "H", " "
  const std::string text = "IFRI 0\nRQ== 1\nIFQ= 2\nSEU= 3\nSA== 4\nIA== 5\n";
  const Result<TokenTable> plain = TokenTable::parse(text);
  REQUIRE(static_cast<bool>(plain));
  const PhraseSpeller speller(*plain);
  CHECK(speller.spell("THE")->size() == 2);
  CHECK(*speller.spell("the  THEE") ==
        std::vector<int64_t>{speller.spell("THE")->at(0), speller.spell("THE")->at(1),
                             speller.spell("THE")->at(0), speller.spell("THE")->at(1), 1});
  CHECK(*speller.spell("H") == std::vector<int64_t>{5, 4});
  CHECK_FALSE(speller.spell("TA"));
  CHECK_FALSE(speller.spell("  "));

  const Result<TokenTable> scored =
      TokenTable::parse("IFRI 0 -9\nRQ== 1 -1\nIFQ= 2 -2\nSEU= 3 -3.5\nSA== 4 -9\nIA== 5 -9\n");
  REQUIRE(static_cast<bool>(scored));
  CHECK(*PhraseSpeller(*scored).spell("THE") == std::vector<int64_t>{2, 3});
  CHECK_FALSE(TokenTable::parse("IFRI 0 x\n"));
  CHECK_FALSE(TokenTable::parse("IFRI 0 nan\n"));
  CHECK_FALSE(TokenTable::parse("IFRI 0 1 2\n"));
}

TEST_CASE("phrase trie: what an unfinished phrase has given") {
  const PhraseTrie trie({{{1, 2, 3}, 1.5F}});
  CHECK(trie.given(hear(trie, {1, 2}).node) == doctest::Approx(3));
  CHECK(trie.given(hear(trie, {1, 2, 3}).node) == 0);
}

TEST_CASE("phrase speller: bytes only where nothing else will do") {
  // Bytes 0x41 ("A") and 0xE4 0xBD 0xA0 (U+4F60), " A", "A", " ", U+597D
  const std::string text =
      "QQ== 0 -10000\n5A== 1 0\nvQ== 2 0\noA== 3 0\nIEE= 4 -9\nQQ== 5 -9\nIA== 6 -9\n5aW9 7 -9\n";
  const Result<TokenTable> table = TokenTable::parse(text);
  REQUIRE(static_cast<bool>(table));
  const PhraseSpeller speller(*table);
  CHECK(*speller.spell("AA") == std::vector<int64_t>{4, 5});
  // In capitals no bytes are needed; here there is no other way.
  CHECK(*speller.spell("a") == std::vector<int64_t>{4});
  CHECK(*speller.spell("\xe5\xa5\xbd") == std::vector<int64_t>{7});
  CHECK(*speller.spell("\xe4\xbd\xa0\xe5\xa5\xbd") == std::vector<int64_t>{1, 2, 3, 7});
}

TEST_CASE("phrase speller: Chinese words begin without a space, beside others") {
  // " A", "A", " ", U+4F60, U+597D, " " U+4E2D
  const std::string text = "IEE= 0\nQQ== 1\nIA== 2\n5L2g 3\n5aW9 4\nIOS4rQ== 5\n";
  const Result<TokenTable> table = TokenTable::parse(text);
  REQUIRE(static_cast<bool>(table));
  const PhraseSpeller speller(*table);
  CHECK(*speller.spell("\xe4\xbd\xa0\xe5\xa5\xbd") == std::vector<int64_t>{3, 4});
  CHECK(*speller.spell("A\xe4\xbd\xa0"
                       "A \xe5\xa5\xbd") == std::vector<int64_t>{0, 3, 0, 4});
  CHECK(*speller.spell("\xe4\xb8\xad") == std::vector<int64_t>{5});
  CHECK_FALSE(speller.spell("\xe4\xbd"));  // cut short
  CHECK_FALSE(speller.spell("\xed\x95\x9c"));
}
