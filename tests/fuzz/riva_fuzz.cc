// What a speech client sends: messages of nvidia.riva.asr, and audio of every format. The first byte says
// which; audio in pieces of any size is the same as in one.
#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "frontend/riva_codec.h"
#include "fuzz/input.h"
#include "speech/audio_reader.h"

using namespace headrace;
using namespace headrace::fuzz;

namespace {

// More than this of compressed silence says nothing new.
constexpr double kMostSeconds = 60;

struct Heard {
  StatusCode code = StatusCode::kOk;
  bool cut_short = false;
  std::vector<std::vector<float>> channels;
};

// False: it has ended.
bool read(AudioReader& reader, Heard& heard) {
  while (true) {
    const Result<bool> more = reader.next();
    if (!more) {
      heard.code = more.error().code();
      FUZZ_CHECK(heard.code == StatusCode::kInvalidArgument ||
                 heard.code == StatusCode::kUnimplemented);
      FUZZ_CHECK(!more.error().message().empty());
      return false;
    }
    heard.channels.resize(std::max(heard.channels.size(), reader.channels()));
    FUZZ_CHECK(heard.channels.size() <= kMaxAudioChannels);
    for (std::size_t i = 0; i < reader.channels(); ++i) {
      const std::span<const float> samples = reader.samples(i);
      heard.channels[i].insert(heard.channels[i].end(), samples.begin(), samples.end());
    }
    if (reader.seconds() > kMostSeconds) heard.cut_short = true;
    if (heard.cut_short) return false;
    if (!*more) return true;
  }
}

Heard hear(const AudioOptions& options, std::string_view bytes, std::size_t chunk) {
  ResamplerFilters filters;
  AudioReader reader(options, filters);
  Heard heard;
  while (!bytes.empty()) {
    const std::string piece(bytes.substr(0, chunk));
    bytes.remove_prefix(piece.size());
    reader.feed(std::as_bytes(std::span(piece)));
    if (!read(reader, heard)) return heard;
  }
  reader.feed({});
  reader.end();
  read(reader, heard);
  return heard;
}

void audio(uint8_t choice, std::string_view bytes) {
  constexpr AudioEncoding kEncodings[] = {AudioEncoding::kUnspecified, AudioEncoding::kLinearPcm,
                                          AudioEncoding::kMulaw, AudioEncoding::kAlaw};
  constexpr uint32_t kRates[] = {16000, 8000, 44100, 44101};
  AudioOptions options;
  options.encoding = kEncodings[choice & 3];
  options.sample_rate = kRates[choice >> 2 & 3];
  options.channels = 1 + (choice >> 4 & 1);
  options.separate_channels = (choice >> 5 & 1) != 0;
  const std::size_t chunk = bytes.empty() ? 1 : 1 + static_cast<uint8_t>(bytes.back()) % 97;
  const Heard whole = hear(options, bytes, bytes.size() + 1);
  const Heard pieces = hear(options, bytes, chunk);
  if (whole.cut_short || pieces.cut_short) return;
  FUZZ_CHECK(whole.code == pieces.code);
  if (whole.code == StatusCode::kOk) FUZZ_CHECK(whole.channels == pieces.channels);
  for (const std::vector<float>& channel : whole.channels) {
    for (const float sample : channel) FUZZ_CHECK(sample > -2 && sample < 2);  // no NaN
  }
}

void messages(std::string_view bytes) {
  const auto inside = [&](std::string_view view) {
    FUZZ_CHECK(view.empty() || (view.data() >= bytes.data() &&
                                view.data() + view.size() <= bytes.data() + bytes.size()));
  };
  if (const auto decoded = decode_riva_stream_message(bytes)) {
    inside(decoded->audio);
    inside(decoded->id);
    if (decoded->config) {
      inside(decoded->config->model);
      FUZZ_CHECK(decoded->config->phrases.size() <= kMaxRivaPhrases);
    }
  }
  if (const auto decoded = decode_riva_recognize_request(bytes)) {
    inside(decoded->audio);
    inside(decoded->config.language_code);
  }
  if (const auto decoded = decode_riva_config_request(bytes)) inside(*decoded);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  if ((data[0] & 0x80) != 0) {
    messages(bytes);
  } else {
    audio(data[0], bytes);
  }
  return 0;
}
