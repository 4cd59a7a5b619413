// Samples that are written one after the other, channels interleaved: PCM, float, G.711. And RIFF/WAVE, a
// header before them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/status.h"
#include "speech/audio_codec.h"

namespace headrace {

// Little-endian. kU8 is PCM of 8 bits; the two of G.711 have 8 bits, too.
enum class SampleFormat : uint8_t { kU8, kS16, kS24, kS32, kF32, kF64, kMulaw, kAlaw };

constexpr std::size_t bytes_of(SampleFormat format) {
  constexpr std::array<std::size_t, 8> kBytes = {1, 2, 3, 4, 4, 8, 1, 1};
  return kBytes[static_cast<std::size_t>(format)];
}

// A frame (a sample of every channel) may be split between two decode() calls; half a one at the end is
// dropped.
class PcmCodec final : public AudioCodec {
 public:
  // check_audio_format() has passed them.
  PcmCodec(SampleFormat format, uint32_t sample_rate, uint32_t channels);

  Result<bool> decode(std::span<const std::byte>& bytes, bool last, AudioBlock& block) override;

 private:
  void append(std::span<const std::byte> frames, AudioBlock& block) const;

  const SampleFormat format_;
  const uint32_t sample_rate_;
  const std::size_t channels_;
  const std::size_t frame_bytes_;
  std::array<std::byte, 8 * kMaxAudioChannels> split_{};  // the start of a frame
  std::size_t split_size_ = 0;
};

// From its "RIFF" on: PCM of 8 to 32 bits, float of 32 and 64, G.711, plain or WAVE_FORMAT_EXTENSIBLE. A data
// chunk whose size is 0 or larger than what comes lasts to the end, as writers that do not know it
// leave it; what follows one is ignored.
std::unique_ptr<AudioCodec> make_wav_codec();

}  // namespace headrace
