#include "speech/streaming_network.h"

#include <doctest/doctest.h>

#include <string>

#include "speech/toy_streaming.h"

using namespace headrace;
using toy::spell;

TEST_CASE("streaming network: what is not as it must be is named") {
  const auto refuse = [](StreamingNetworkOptions options, std::vector<TensorSpec> inputs,
                         std::vector<TensorSpec> outputs) {
    const auto made = StreamingNetwork::create(
        std::move(options),
        std::make_shared<toy::ToyModel>(std::move(inputs), std::move(outputs), spell));
    return made ? std::string() : made.error().message();
  };
  const TensorSpec x = toy::spec("x", DType::kFp32, {-1, 10, 4});
  const TensorSpec cache = toy::spec("c", DType::kFp32, {2, -1});
  const TensorSpec heard = toy::spec("encoder_out", DType::kFp32, {-1, 2, 8});
  const TensorSpec next = toy::spec("new_c", DType::kFp32, {2, -1});
  const StreamingNetworkOptions options{10, 8, {}};
  CHECK(refuse(options, {x, cache}, {heard, next}).empty());
  CHECK(refuse(options, {cache}, {heard, next}).find("no input 'x'") != std::string::npos);
  CHECK(refuse({12, 8, {}}, {x, cache}, {heard, next}).find("chunk_frames is 12") !=
        std::string::npos);
  CHECK(refuse({10, 11, {}}, {x, cache}, {heard, next}).find("shift_frames") != std::string::npos);
  CHECK(refuse(options, {x}, {heard}).find("no caches") != std::string::npos);
  CHECK(refuse(options, {x, cache}, {heard}).find("no output 'new_c'") != std::string::npos);
  CHECK(refuse(options, {x, cache}, {next}).find("no output 'encoder_out'") != std::string::npos);
  const TensorSpec open = toy::spec("c", DType::kFp32, {-1, -1});
  CHECK(refuse(options, {x, open}, {heard, next}).find("one dynamic") != std::string::npos);
  CHECK(refuse({10, 8, {{"c", {2, -1}}}}, {x, open}, {heard, next}).empty());
  CHECK(refuse({10, 8, {{"c", {int64_t{1} << 40, -1}}}}, {x, open}, {heard, next}).find("size") !=
        std::string::npos);
  CHECK(refuse({10, 8, {{"c", {-1}}}}, {x, open}, {heard, next}).find("1 dimensions") !=
        std::string::npos);
  CHECK(refuse({10, 8, {{"c", {3, -1}}}}, {x, cache}, {heard, next}).find("caches says") !=
        std::string::npos);
  const TensorSpec alone = toy::spec("x", DType::kFp32, {1, 10, 4});
  CHECK(refuse(options, {alone, cache}, {heard, next}).find("takes 1 streams only") !=
        std::string::npos);
}
