// AudioReader: the bytes that a client sends to what a SpeechStream takes: finds out what they are, decodes,
// picks channels, resamples.
//
// Threads: one. Bounds: next() makes a block of some thousand samples at a time, however much the bytes
// hold: compressed silence may be hours.
// A header at the start (RIFF/WAVE, fLaC, OggS) goes before what the client says of encoding, rate and
// channels: clients that send files leave that empty.
//
//   AudioReader reader(options, filters);
//   reader.feed(message);                 // kept alive by the caller until next() has answered false
//   for (Result<bool> more = reader.next(); more && *more; more = reader.next()) {
//     stream.push(reader.samples(0));
//   }
//   reader.end();                         // and next() again
// ---------------------------------------------------------------------------------------------
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "speech/audio_codec.h"
#include "speech/audio_resampler.h"

namespace headrace {

// Numbers are Riva's (proto/headrace/riva_audio.proto).
enum class AudioEncoding : int32_t {
  kUnspecified = 0,
  kLinearPcm = 1,  // 16 bit, little-endian
  kFlac = 2,
  kMulaw = 3,
  kOggOpus = 4,
  kAlaw = 20,
};

struct AudioOptions {
  AudioEncoding encoding = AudioEncoding::kUnspecified;
  // Of audio without a header.
  uint32_t sample_rate = 0;  // Hz
  uint32_t channels = 1;
  // Every channel by itself; otherwise the first is all there is.
  bool separate_channels = false;
};

class AudioReader {
 public:
  AudioReader(const AudioOptions& options, ResamplerFilters& filters);

  // Only after next() has answered false (or never).
  void feed(std::span<const std::byte> bytes) { bytes_ = bytes; }
  // No more bytes come. Once, after the last feed() was read to its end.
  void end() { ending_ = true; }

  // True: samples() are new (they may be none), call again. False: all bytes are taken.
  // Errors: INVALID_ARGUMENT; UNIMPLEMENTED for a codec that this build has not. The reader is done then.
  Result<bool> next();

  // How many samples() there are; 0: not known before there is some audio.
  std::size_t channels() const { return samples_.size(); }
  // At kSpeechSampleRate; until the next call of next().
  std::span<const float> samples(std::size_t channel) const { return samples_[channel]; }
  // Of all channels together, decoded.
  double seconds() const { return seconds_; }

 private:
  // Once the header's first bytes are there. False: they are not.
  Result<bool> choose_codec();
  Result<std::unique_ptr<AudioCodec>> raw_codec() const;
  Status take_block();

  const AudioOptions options_;
  ResamplerFilters& filters_;
  std::array<std::byte, 4> head_{};
  std::size_t head_size_ = 0;
  std::span<const std::byte> rest_of_head_;  // not given to the codec yet
  std::span<const std::byte> bytes_;
  std::unique_ptr<AudioCodec> codec_;
  bool ending_ = false;
  bool ended_ = false;
  AudioBlock block_;
  std::vector<Resampler> resamplers_;  // none: the rate is right
  std::vector<std::vector<float>> samples_;
  double seconds_ = 0;
};

}  // namespace headrace
