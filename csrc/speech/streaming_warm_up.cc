// Before a recogniser is handed out: every worker's networks run with silence. What does not fit is an error of the
// load then, and the first streams meet no shapes that are new to the networks.
#include <algorithm>
#include <bit>
#include <new>
#include <string>

#include "speech/streaming_core.h"

namespace headrace {
namespace {

// Log-mel energies of silence.
constexpr float kSilence = -16;
// Chunks of so many streams; larger batches meet shapes that are new.
constexpr std::size_t kMostRows = 8;

Status failed(const Status& status, std::size_t rows) {
  const std::string hint =
      rows == 1 ? "" : " (" + std::to_string(rows) + " streams at once; max_batch: 1 has one)";
  if (status.code() == StatusCode::kInvalidArgument) {
    return Status::invalid_argument(status.message() + hint);
  }
  return {StatusCode::kFailedPrecondition, status.message() + hint};
}

Status named(const std::string& network, const Status& status) {
  if (status.ok() || status.message().starts_with(network)) return status;
  return {status.code(), network + ": " + status.message()};
}

}  // namespace

// What the networks answer, against each other's signatures.
Status StreamingCore::check_width(std::size_t width) const {
  const auto count = static_cast<int64_t>(width);
  if (networks_.transducer != nullptr) {
    const int64_t expected = networks_.transducer->joiner->inputs()[0].dims[1];
    if (expected == -1 || expected == count) return {};
    return Status::invalid_argument("encoder: 'encoder_out' is " + std::to_string(count) +
                                    " wide, but the joiner expects " + std::to_string(expected));
  }
  if (networks_.blank >= 0 && networks_.blank < count) return {};
  return Status::invalid_argument("encoder: has " + std::to_string(count) +
                                  " tokens, but blank is " + std::to_string(networks_.blank));
}

Status StreamingCore::warm_up(StreamingWorker& worker) const try {
  const StreamingNetwork& network = *networks_.encoder;
  const std::vector<float> silence(network.chunk() * network.bands, kSilence);
  const std::size_t most = std::min(options_.max_batch, kMostRows);
  for (std::size_t rows = 1; rows <= most; ++rows) {
    std::vector<StreamingState> states(rows);
    std::vector<StreamingEncoder::Row> chunks;
    for (StreamingState& state : states) chunks.push_back({silence.data(), &state});
    Result<StreamingEncoder::Heard> heard = worker.encoder->run(chunks);
    if (!heard) return failed(named("encoder", heard.error()), rows);
    if (Status status = check_width(heard->width); !status.ok()) return status;
    if (worker.transducer == nullptr || rows < most) continue;
    const std::size_t hypotheses = most * std::max(options_.paths, options_.phrase_paths);
    for (std::size_t n = 1; n <= std::bit_ceil(hypotheses); n *= 2) {
      std::vector<TransducerState> said(n, {*networks_.transducer, 1, nullptr});
      std::vector<TransducerDecoder::Row> frames;
      for (TransducerState& state : said) frames.push_back({heard->data, &state});
      Status status = worker.transducer->decode(frames, 1, heard->width);
      if (!status.ok()) return failed(status, 1);
    }
  }
  return {};
} catch (const std::bad_alloc&) {
  return Status::resource_exhausted("encoder: no memory for its caches");
}

}  // namespace headrace
