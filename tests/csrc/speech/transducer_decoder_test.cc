#include "speech/transducer_decoder.h"

#include <doctest/doctest.h>

#include <array>
#include <bit>
#include <cmath>
#include <string>

#include "speech/toy_networks.h"

using namespace headrace;

namespace {

constexpr int64_t kBlank = 4;
using Specs = std::vector<TensorSpec>;

// The last token.
Status remember(const std::vector<toy::Tensor>& in, std::vector<toy::Tensor>& out) {
  if (!std::has_single_bit(static_cast<uint64_t>(in[0].shape[0]))) {
    return Status::internal("rows");
  }
  std::vector<float> last;
  for (int64_t row = 0; row < in[0].shape[0]; ++row) {
    last.push_back(static_cast<float>(in[0].as<int64_t>()[row]));
  }
  out.push_back(toy::Tensor::of(Shape{in[0].shape[0], 1}, last));
  return {};
}

// Frame 0: perhaps token 0, rather nothing. Others: token 1 after 0, otherwise token 2.
Status join(const std::vector<toy::Tensor>& in, std::vector<toy::Tensor>& out) {
  if (!std::has_single_bit(static_cast<uint64_t>(in[0].shape[0]))) {
    return Status::internal("rows");
  }
  std::vector<float> logits;
  for (int64_t row = 0; row < in[0].shape[0]; ++row) {
    std::array<float, kBlank + 1> own{-30, -30, -30, -30, -30};
    if (in[0].as<float>()[row] == 0) {
      own[0] = std::log(0.4F);
      own[kBlank] = std::log(0.6F);
    } else {
      own[in[1].as<float>()[row] == 0 ? 1 : 2] = 0;
    }
    logits.insert(logits.end(), own.begin(), own.end());
  }
  out.push_back(toy::Tensor::of(Shape{in[0].shape[0], kBlank + 1}, logits));
  return {};
}

Result<std::shared_ptr<const TransducerNetwork>> create(Specs decoder_in, Specs decoder_out,
                                                        Specs joiner_in, Specs joiner_out,
                                                        int64_t blank = kBlank) {
  return TransducerNetwork::create(
      blank, -1,
      std::make_shared<toy::ToyModel>(std::move(decoder_in), std::move(decoder_out), remember),
      std::make_shared<toy::ToyModel>(std::move(joiner_in), std::move(joiner_out), join));
}

const TensorSpec kY = toy::spec("y", DType::kInt64, {-1, 1});
const TensorSpec kPredicted = toy::spec("decoder_out", DType::kFp32, {-1, 1});
const TensorSpec kHeard = toy::spec("encoder_out", DType::kFp32, {-1, 1});
const TensorSpec kLogit = toy::spec("logit", DType::kFp32, {-1, kBlank + 1});

std::shared_ptr<const TransducerNetwork> network() {
  return *create({kY}, {kPredicted}, {kHeard, kPredicted}, {kLogit});
}

}  // namespace

TEST_CASE("transducer decoder: an unfinished phrase is worth nothing to the next utterance") {
  const auto decoder = *TransducerDecoder::create(network());
  const auto phrases =
      std::make_shared<PhraseTrie>(std::vector<PhraseTrie::Phrase>{{.tokens = {0, 3}, .boost = 3}});
  TransducerState state(*network(), 2, phrases);
  const std::array<float, 2> frames{0, 1};
  const std::array first{TransducerDecoder::Row{&frames[0], &state}};
  REQUIRE(decoder->decode(first, 1, 1).ok());
  REQUIRE(state.best().tokens().size() == 1);
  CHECK(state.best().tokens()[0] == 0);
  state.next_utterance();
  CHECK(state.best().tokens().empty());
  const std::array second{TransducerDecoder::Row{&frames[1], &state}};
  REQUIRE(decoder->decode(second, 1, 1).ok());
  REQUIRE(state.best().tokens().size() == 1);
  // Token 0 was the less likely one.
  CHECK(state.best().tokens()[0] == 2);
}

TEST_CASE("transducer decoder: rows in powers of two, that do not see each other") {
  const auto decoder = *TransducerDecoder::create(network());
  const std::array<float, 2> loud{1, 1};
  const std::array<float, 2> quiet{0, 1};
  for (std::size_t count = 1; count <= 9; ++count) {
    std::vector<TransducerState> states(count, TransducerState(*network(), 3, nullptr));
    std::vector<TransducerDecoder::Row> rows;
    for (std::size_t i = 0; i < count; ++i) {
      rows.push_back({i % 2 == 0 ? loud.data() : quiet.data(), &states[i]});
    }
    REQUIRE(decoder->decode(rows, 2, 1).ok());
    for (std::size_t i = 0; i < count; ++i) {
      const auto tokens = states[i].best().tokens();
      CHECK(tokens.size() == (i % 2 == 0 ? 2 : 1));
      CHECK(tokens.back() == 2);
    }
  }
}

TEST_CASE("transducer network: what is not as it must be is named") {
  const auto refuse = [](Specs decoder_in, Specs decoder_out, Specs joiner_in, Specs joiner_out,
                         int64_t blank = kBlank) {
    const auto made = create(std::move(decoder_in), std::move(decoder_out), std::move(joiner_in),
                             std::move(joiner_out), blank);
    return made ? std::string() : made.error().message();
  };
  const Specs joined{kHeard, kPredicted};
  CHECK(refuse({kY}, {kPredicted}, joined, {kLogit}).empty());
  const TensorSpec one = toy::spec("y", DType::kInt64, {1, 1});
  CHECK(refuse({one}, {kPredicted}, joined, {kLogit}).find("decoder: 'y' is [1,1]: its first") ==
        0);
  CHECK(refuse({kY, kHeard}, {kPredicted}, joined, {kLogit}).find("decoder: has inputs") == 0);
  CHECK(refuse({kY}, {kPredicted}, {kHeard, kPredicted, kY}, {kLogit}).find("joiner: has inputs") ==
        0);
  const TensorSpec wide = toy::spec("decoder_out", DType::kFp32, {-1, 7});
  CHECK(refuse({kY}, {wide}, joined, {kLogit}).find("joiner: 'decoder_out' is 1 wide") == 0);
  CHECK(refuse({kY}, {kPredicted}, joined, {kLogit}, 5).find("joiner: has 5 tokens") == 0);
  const TensorSpec open = toy::spec("y", DType::kInt64, {-1, -1});
  CHECK(refuse({open}, {kPredicted}, joined, {kLogit}).find("no fixed number") !=
        std::string::npos);
}
