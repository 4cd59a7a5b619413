// SegmentNetwork: an encoder and an autoregressive decoder with a cache of keys and values, as two networks
// of fixed names (docs/SPEECH.md): how a segment of speech becomes text. Whisper and Moonshine are such.
//
//   encoder  input_values [1, samples]  or  input_features [1, bands, frames]
//            -> cross.I.key, cross.I.value [1, H, S, D] of every decoder layer I
//   decoder  input_ids, positions [B, T], self_mask [B, 1, T, P + T], cross_mask [B, 1, 1, S],
//            past.I.key/value [B, H, P, D], cross.I.key/value [B, H, S, D]
//            -> logits [B, T, V], present.I.key/value [B, H, T, D] (of the T new positions)
//
// Threads: immutable and shared.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backends/backend.h"
#include "base/status.h"
#include "speech/log_mel.h"

namespace headrace {

struct SegmentOptions {
  std::vector<int64_t> prompt;  // what every text begins with; not empty
  int64_t eos = 0;
  float max_tokens_per_second = 6.5F;     // more is a loop, not speech
  float min_context_s = 0;                // shorter audio is filled up with silence
  float max_context_s = 30;               // longer audio is cut
  std::vector<int64_t> suppressed;        // never chosen
  std::vector<int64_t> suppressed_first;  // not as the first token of a text
};

class SegmentNetwork {
 public:
  // INVALID_ARGUMENT says what of the networks' signatures is not as above.
  static Result<std::shared_ptr<const SegmentNetwork>> create(SegmentOptions options,
                                                              std::shared_ptr<Model> encoder,
                                                              std::shared_ptr<Model> decoder);

  // Positions of a key and its value.
  struct Pair {
    std::size_t key = 0;
    std::size_t value = 0;
  };
  struct Layer {
    Pair encoded;  // outputs of the encoder
    Pair past;     // inputs of the decoder
    Pair cross;
    Pair present;  // outputs of the decoder
  };

  SegmentOptions options;
  std::shared_ptr<Model> encoder;
  std::shared_ptr<Model> decoder;
  std::optional<LogMel> mel;  // of networks that take features
  std::vector<Layer> layers;
  std::size_t heads = 0;
  std::size_t head_size = 0;
  std::size_t input_ids = 0;  // inputs of the decoder
  std::size_t positions = 0;
  std::size_t self_mask = 0;
  std::size_t cross_mask = 0;
  std::size_t logits = 0;  // output of the decoder
};

}  // namespace headrace
