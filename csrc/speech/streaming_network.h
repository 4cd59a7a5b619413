// StreamingNetwork: a network that hears a stream chunk by chunk and remembers what it has heard in caches that
// go in and come out with each chunk: icefall's zipformer2 encoder, or NeMo's cache-aware CTC model.
//
//   zipformer2  x [N, T, F], NAME... -> encoder_out [N, T', D], new_NAME...
//   NeMo        audio_signal [N, F, T], length [N], cache_last_channel, cache_last_time,
//               cache_last_channel_len -> logprobs [N, T', V], encoded_lengths, the caches as ..._next...
//
// Caches are f32 or int64 and zero at first. A cache's axis of streams is its dynamic one.
//
// Threads: StreamingNetwork is immutable and shared, a StreamingEncoder belongs to one thread, a StreamingState
// to whoever has its stream.
//
//   StreamingState state(network);
//   std::array rows{StreamingEncoder::Row{features, &state}};       // several streams in one run
//   Result<StreamingEncoder::Heard> heard = encoder->run(rows);
// ---------------------------------------------------------------------------------------------
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backends/backend.h"
#include "base/status.h"

namespace headrace {

struct StreamingNetworkOptions {
  std::size_t chunk = 0;  // feature frames of a run (T)
  std::size_t shift = 0;  // by which it moves on, at most `chunk`
  // Of caches with more than one dynamic dimension: all of them, -1 for streams.
  std::map<std::string, std::vector<int64_t>> caches{};
};

class StreamingNetwork {
 public:
  // INVALID_ARGUMENT says what of the signature is not as above.
  static Result<std::shared_ptr<const StreamingNetwork>> create(StreamingNetworkOptions options,
                                                                std::shared_ptr<Model> model);

  struct Cache {
    std::size_t input = 0;
    std::size_t output = 0;
    DType dtype = DType::kFp32;
    std::vector<int64_t> dims;  // -1: streams
    std::size_t outer = 0;      // product of the dims before
    std::size_t inner = 0;      // bytes of those behind
  };

  std::size_t chunk() const { return options.chunk; }
  std::size_t shift() const { return options.shift; }
  std::size_t state_bytes() const;  // of one stream

  StreamingNetworkOptions options;
  std::shared_ptr<Model> model;
  std::vector<Cache> caches;
  std::size_t bands = 0;
  std::size_t features = 0;  // input
  bool bands_first = false;  // [N, F, T]
  bool has_length = false;
  std::size_t length = 0;  // input
  std::size_t heard = 0;   // output
};

// A stream's caches. Takes no memory before the first run.
class StreamingState {
 public:
  void reset() { caches_.clear(); }

 private:
  friend class StreamingEncoder;
  std::vector<std::vector<std::byte>> caches_;
};

class StreamingEncoder {
 public:
  static Result<std::unique_ptr<StreamingEncoder>> create(
      std::shared_ptr<const StreamingNetwork> network);

  struct Row {
    const float* features = nullptr;  // [chunk, bands]
    StreamingState* state = nullptr;  // of one stream; once a run
  };
  struct Heard {
    const float* data = nullptr;  // [row][frames][width], until the next run
    std::size_t frames = 0;
    std::size_t width = 0;
  };
  Result<Heard> run(std::span<const Row> rows);

 private:
  StreamingEncoder(std::shared_ptr<const StreamingNetwork> network,
                   std::unique_ptr<Instance> instance)
      : network_(std::move(network)), instance_(std::move(instance)) {}
  Status lend_features(std::span<const Row> rows);
  Status lend_caches(std::span<const Row> rows);
  Status keep_caches(std::span<const Row> rows);

  std::shared_ptr<const StreamingNetwork> network_;
  std::unique_ptr<Instance> instance_;
  std::vector<float> features_;
  std::vector<int64_t> lengths_;
  std::vector<std::vector<std::byte>> gathered_;  // a cache each, of all rows
};

}  // namespace headrace
