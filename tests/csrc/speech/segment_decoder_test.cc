#include "speech/segment_decoder.h"

#include <doctest/doctest.h>

#include <array>
#include <numeric>

#include "speech/toy_networks.h"

using namespace headrace;
using Tokens = std::vector<int64_t>;

namespace {

Tokens count_up(int64_t from, std::size_t count) {
  Tokens tokens(count);
  std::iota(tokens.begin(), tokens.end(), from);
  return tokens;
}

}  // namespace

TEST_CASE("what was said is decoded, beyond what the cache first has room for") {
  const auto decoder = *SegmentDecoder::create(toy::network());
  for (const std::size_t count : {0, 1, 5, 40, 79}) {
    const Tokens words = count_up(10, count);
    const Result<DecodeRow> row = decoder->decode(toy::say(words));
    REQUIRE(row);
    CHECK(row->tokens() == words);
    CHECK(row->accepted() == 0);
    CHECK((count == 0) == (row->confidence() == 0));
  }
}

TEST_CASE("a draft changes nothing but the work") {
  const auto decoder = *SegmentDecoder::create(toy::network());
  const Tokens words = count_up(10, 12);
  struct {
    Tokens draft;
    std::size_t accepted;
  } const cases[] = {{{}, 0},
                     {words, 12},
                     {count_up(10, 7), 7},
                     {{10, 11, 150, 13, 14}, 2},
                     {{99}, 0},
                     {count_up(10, 30), 12},
                     {{10, toy::kEos, 12}, 1}};
  for (const auto& [draft, accepted] : cases) {
    const Result<DecodeRow> row = decoder->decode(toy::say(words), draft);
    REQUIRE(row);
    CHECK(row->tokens() == words);
    CHECK(row->accepted() == accepted);
  }
}

TEST_CASE("rows together are as each alone, whoever joins and leaves") {
  const auto decoder = *SegmentDecoder::create(toy::network());
  std::vector<Tokens> said = {count_up(10, 3), count_up(30, 45), count_up(20, 12),
                              count_up(50, 31)};
  std::vector<DecodeRow> rows(said.size());
  std::vector<DecodeRow*> active;
  std::size_t joined = 0;
  for (int step = 0; joined < said.size() || !active.empty(); ++step) {
    if (joined < said.size() && step % 3 == 0) {
      const Tokens draft(said[joined].begin(), said[joined].begin() + 2);
      REQUIRE(decoder->begin(toy::say(said[joined]), draft, rows[joined]).ok());
      active.push_back(&rows[joined++]);
    }
    // Alone now and then, so that a batch must not take what it remembers for what is.
    const std::size_t stepped = step % 5 == 4 ? 1 : active.size();
    REQUIRE(decoder->step(std::span(active).first(stepped)).ok());
    std::erase_if(active, [](const DecodeRow* row) { return row->done(); });
  }
  for (std::size_t i = 0; i < said.size(); ++i) CHECK(rows[i].tokens() == said[i]);
}

TEST_CASE("suppressed tokens are not chosen") {
  SegmentOptions options = toy::options();
  options.suppressed = {11};
  options.suppressed_first = {toy::kEos};
  const auto decoder =
      *SegmentDecoder::create(*SegmentNetwork::create(options, toy::encoder(), toy::decoder()));
  const Result<DecodeRow> row = decoder->decode(toy::say({10, 11, 12}));
  REQUIRE(row);
  REQUIRE(row->tokens().size() > 1);
  CHECK(row->tokens()[0] == 10);
  for (const int64_t token : row->tokens()) CHECK(token != 11);
  const Result<DecodeRow> silence = decoder->decode(toy::say({}));
  REQUIRE(silence);
  REQUIRE_FALSE(silence->tokens().empty());
  CHECK(silence->tokens()[0] != toy::kEos);
}

TEST_CASE("loops end") {
  CHECK(length_without_loop(Tokens{1, 2, 3, 1, 2}) == 5);
  CHECK(length_without_loop(Tokens{1, 2, 3, 1, 2, 3}) == 3);
  CHECK(length_without_loop(Tokens{7, 7, 7, 7, 7}) == 5);
  CHECK(length_without_loop(Tokens{7, 7, 7, 7, 7, 7}) == 3);
  CHECK(length_without_loop({}) == 0);

  const auto decoder = *SegmentDecoder::create(toy::network());
  Tokens words = {40, 41, 42, 43};
  for (int i = 0; i < 5; ++i) words.insert(words.end(), {50, 51, 52});
  const Result<DecodeRow> row = decoder->decode(toy::say(words));
  REQUIRE(row);
  CHECK(row->tokens() == Tokens{40, 41, 42, 43, 50, 51, 52});

  // A text that never ends is cut by the length of the audio.
  SegmentOptions options = toy::options();
  options.suppressed = {toy::kEos};
  options.max_tokens_per_second = 10;
  const auto endless =
      *SegmentDecoder::create(*SegmentNetwork::create(options, toy::encoder(), toy::decoder()));
  const Result<DecodeRow> cut = endless->decode(toy::say(count_up(10, 30)));  // 3.84 s
  REQUIRE(cut);
  CHECK(cut->tokens().size() <= 39);
}

TEST_CASE("networks that are something else are refused by name") {
  const auto refused = [](std::shared_ptr<Model> encoder, std::shared_ptr<Model> decoder) {
    const auto network =
        SegmentNetwork::create(toy::options(), std::move(encoder), std::move(decoder));
    REQUIRE_FALSE(network);
    CHECK(network.error().code() == StatusCode::kInvalidArgument);
    return network.error().message();
  };
  CHECK(refused(toy::voice_activity(), toy::decoder()).find("encoder: has 3 inputs") == 0);
  CHECK(refused(toy::encoder(), toy::encoder()) == "decoder: no 'input_ids'");
  auto wrong = std::make_shared<toy::ToyModel>(
      std::vector<TensorSpec>{toy::spec("input_values", DType::kFp32, {-1, -1, -1})},
      toy::encoder()->outputs(), toy::encode);
  CHECK(refused(wrong, toy::decoder()) ==
        "encoder: 'input_values' is FP32 [-1,-1,-1], expected FP32 of 2 dimensions");
  SegmentOptions options = toy::options();
  options.prompt.clear();
  CHECK_FALSE(SegmentNetwork::create(options, toy::encoder(), toy::decoder()));
}

TEST_CASE("a network that answers nonsense is an error") {
  const auto short_answer = [](const std::vector<toy::Tensor>&, std::vector<toy::Tensor>& out) {
    out.assign(3, toy::Tensor::of(Shape{1, 1}, {0.0F}));
    return Status();
  };
  for (const bool encoder : {true, false}) {
    const auto network =
        SegmentNetwork::create(toy::options(), toy::encoder(encoder ? short_answer : toy::encode),
                               toy::decoder(encoder ? toy::decode : short_answer));
    const auto decoder = *SegmentDecoder::create(*network);
    const Result<DecodeRow> row = decoder->decode(toy::say({10}));
    REQUIRE_FALSE(row);
    CHECK(row.error().code() == StatusCode::kInternal);
  }
}
