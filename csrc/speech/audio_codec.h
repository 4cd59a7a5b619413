// AudioCodec: bytes of one audio format to samples. What audio_reader.h chooses from.
//
// Threads: one. Bounds: decode() answers after about kBlockFrames frames, or the one frame (of FLAC, an
// Ogg packet) that goes beyond; what it keeps of the input is bounded by the format (at most 4 MiB).
// Errors: INVALID_ARGUMENT, for bytes that are not of the format and for sample rates and channels out
// of range. After one the codec is done.
// ---------------------------------------------------------------------------------------------
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/status.h"

namespace headrace {

inline constexpr uint32_t kMinSampleRate = 4000;  // Hz
inline constexpr uint32_t kMaxSampleRate = 192000;
inline constexpr uint32_t kMaxAudioChannels = 8;

// Samples as they were written: planar, f32 in [-1, 1].
struct AudioBlock {
  uint32_t sample_rate = 0;  // Hz; 0: not known yet
  std::vector<std::vector<float>> channels;

  std::size_t frames() const { return channels.empty() ? 0 : channels.front().size(); }
  void clear() {
    for (std::vector<float>& channel : channels) channel.clear();
  }
};

class AudioCodec {
 public:
  static constexpr std::size_t kBlockFrames = 8192;

  virtual ~AudioCodec() = default;
  // Takes bytes from the front of `bytes` and appends samples to `block`. True: there may be more to
  // decode, call again (with what is left of the bytes). False: all bytes are taken. `last`: no bytes
  // come after these.
  virtual Result<bool> decode(std::span<const std::byte>& bytes, bool last, AudioBlock& block) = 0;
};

// INVALID_ARGUMENT unless both are within the limits above.
Status check_audio_format(uint64_t sample_rate, uint64_t channels);

// UNIMPLEMENTED, naming the library, where the build did not find it.
Result<std::unique_ptr<AudioCodec>> make_flac_codec();
Result<std::unique_ptr<AudioCodec>> make_ogg_opus_codec();

}  // namespace headrace
