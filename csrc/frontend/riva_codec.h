// The messages of nvidia.riva.asr (proto/headrace/riva_asr.proto): protobuf bytes <-> what the speech room
// speaks. What a client sends are views into its message.
//
// Pure functions of bytes; any thread. Errors: INTERNAL when the bytes are no such message, as gRPC's
// libraries say it; INVALID_ARGUMENT for more than is good.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/buffer.h"
#include "base/status.h"
#include "speech/audio_reader.h"
#include "speech/recognizer.h"

namespace headrace {

// RecognitionConfig, and StreamingRecognitionConfig around it.
struct RivaConfig {
  AudioEncoding encoding = AudioEncoding::kUnspecified;
  int32_t sample_rate_hertz = 0;
  int32_t audio_channel_count = 0;
  bool separate_channels = false;
  std::string_view language_code;
  std::string_view model;
  bool interim_results = false;
  bool word_time_offsets = false;
  bool profanity_filter = false;
  bool speaker_diarization = false;
  SpeechEndpointing endpointing;
  std::vector<SpeechPhrase> phrases;
};

// StreamingRecognizeRequest.
struct RivaStreamMessage {
  std::optional<RivaConfig> config;
  std::string_view audio;
  bool force_end_of_utterance = false;
  std::string_view id;
};

// RecognizeRequest.
struct RivaRecognizeRequest {
  RivaConfig config;
  std::string_view audio;
  std::string_view id;
};

inline constexpr std::size_t kMaxRivaPhrases = 2000;

Result<RivaStreamMessage> decode_riva_stream_message(std::string_view message);
Result<RivaRecognizeRequest> decode_riva_recognize_request(std::string_view message);
// RivaSpeechRecognitionConfigRequest.model_name.
Result<std::string_view> decode_riva_config_request(std::string_view message);

// What a result says of itself beside its text.
struct RivaResultContext {
  int32_t channel_tag = 0;  // from 1 on; 0: unset
  std::string_view language_code;
};

// StreamingRecognizeResponse with one result, after Call::kPrefixBytes of room.
BufferRef encode_riva_stream_result(const SpeechResult& result, const RivaResultContext& context,
                                    std::string_view id);

// RecognizeResponse, put together result by result.
class RivaRecognizeResponse {
 public:
  RivaRecognizeResponse();
  void add(const SpeechResult& result, const RivaResultContext& context);
  BufferRef finish(std::string_view id);

 private:
  std::string bytes_;
};

// RivaSpeechRecognitionConfigResponse: a model that does both, streams and files, is listed as each.
BufferRef encode_riva_config(const std::vector<const SpeechModelInfo*>& models);

}  // namespace headrace
