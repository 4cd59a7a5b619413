#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <string>

#include "speech/audio_pcm.h"

namespace headrace {
namespace {

enum WaveFormat : uint16_t {
  kWavePcm = 1,
  kWaveFloat = 3,
  kWaveAlaw = 6,
  kWaveMulaw = 7,
  kWaveExtensible = 0xFFFE,
};
constexpr std::size_t kFormatBytes = 16;      // of a "fmt " chunk, without extensions
constexpr std::size_t kExtensibleBytes = 40;  // with that of WAVE_FORMAT_EXTENSIBLE

uint32_t little(const std::byte* at, std::size_t bytes) {
  uint32_t value = 0;
  for (std::size_t i = 0; i < bytes; ++i) value |= static_cast<uint32_t>(at[i]) << (8 * i);
  return value;
}

std::optional<SampleFormat> sample_format(uint32_t tag, uint32_t bits) {
  if (tag == kWavePcm && bits == 8) return SampleFormat::kU8;
  if (tag == kWavePcm && bits == 16) return SampleFormat::kS16;
  if (tag == kWavePcm && bits == 24) return SampleFormat::kS24;
  if (tag == kWavePcm && bits == 32) return SampleFormat::kS32;
  if (tag == kWaveFloat && bits == 32) return SampleFormat::kF32;
  if (tag == kWaveFloat && bits == 64) return SampleFormat::kF64;
  if (tag == kWaveAlaw && bits == 8) return SampleFormat::kAlaw;
  if (tag == kWaveMulaw && bits == 8) return SampleFormat::kMulaw;
  return std::nullopt;
}

class WavCodec final : public AudioCodec {
 public:
  Result<bool> decode(std::span<const std::byte>& bytes, bool last, AudioBlock& block) override {
    while (state_ != State::kData) {
      if (bytes.empty()) {
        if (last) return Status::invalid_argument("the WAV header has no end");
        return false;
      }
      if (state_ == State::kSkip) {
        skip(bytes);
      } else if (gather(bytes)) {
        Status status = header_part();
        if (!status.ok()) return status;
      }
    }
    std::span<const std::byte> data = bytes;
    if (left_ && data.size() > *left_) data = data.first(static_cast<std::size_t>(*left_));
    const std::size_t offered = data.size();
    const Result<bool> more = samples_->decode(data, last, block);
    const std::size_t taken = offered - data.size();
    bytes = bytes.subspan(taken);
    if (left_) *left_ -= taken;
    if (left_ && *left_ == 0) bytes = {};  // the rest is no audio
    return more;
  }

 private:
  // kRiff: the first 12 bytes. kChunk: a chunk's name and size. kFormat: the start of "fmt ".
  enum class State : uint8_t { kRiff, kChunk, kFormat, kSkip, kData };

  void skip(std::span<const std::byte>& bytes) {
    const auto n = static_cast<std::size_t>(std::min<uint64_t>(bytes.size(), skip_));
    bytes = bytes.subspan(n);
    skip_ -= n;
    if (skip_ == 0) want(State::kChunk, 8);
  }

  void want(State state, std::size_t bytes) {
    state_ = state;
    wanted_ = bytes;
    size_ = 0;
  }

  void skip_next(uint64_t bytes) {
    skip_ = bytes;
    state_ = State::kSkip;
    if (bytes == 0) want(State::kChunk, 8);
  }

  // True: what this state wants is in part_.
  bool gather(std::span<const std::byte>& bytes) {
    const std::size_t n = std::min(bytes.size(), wanted_ - size_);
    std::copy_n(bytes.begin(), n, part_.begin() + static_cast<std::ptrdiff_t>(size_));
    bytes = bytes.subspan(n);
    size_ += n;
    return size_ == wanted_;
  }

  bool named(const char* name, std::size_t at = 0) const {
    return std::memcmp(part_.data() + at, name, 4) == 0;
  }

  Status header_part() {
    if (state_ == State::kRiff) {
      if (!named("WAVE", 8)) return Status::invalid_argument("a RIFF file that is no WAVE");
      want(State::kChunk, 8);
      return {};
    }
    if (state_ == State::kFormat) return format_part();
    const uint32_t bytes = little(part_.data() + 4, 4);
    if (named("fmt ") && samples_ == nullptr) {
      if (bytes < kFormatBytes)
        return Status::invalid_argument("the WAV header's fmt is too short");
      chunk_bytes_ = bytes;
      want(State::kFormat, std::min<std::size_t>(bytes, kExtensibleBytes));
    } else if (named("data")) {
      if (samples_ == nullptr) {
        return Status::invalid_argument("the WAV header does not tell its format before the data");
      }
      state_ = State::kData;
      if (bytes != 0 && bytes != UINT32_MAX) left_ = bytes;
    } else {
      skip_next(uint64_t{bytes} + bytes % 2);
    }
    return {};
  }

  Status format_part() {
    uint32_t tag = little(part_.data(), 2);
    const uint32_t channels = little(part_.data() + 2, 2);
    const uint32_t rate = little(part_.data() + 4, 4);
    const uint32_t bits = little(part_.data() + 14, 2);
    if (tag == kWaveExtensible) {
      // The sub-format's GUID begins with the tag.
      if (wanted_ < kExtensibleBytes) {
        return Status::invalid_argument("the WAV header's extension is too short");
      }
      tag = little(part_.data() + 24, 2);
    }
    const std::optional<SampleFormat> format = sample_format(tag, bits);
    if (!format) {
      return Status::invalid_argument(
          "WAV of format " + std::to_string(tag) + " with " + std::to_string(bits) +
          " bits is not supported: PCM (8, 16, 24, 32), float (32, 64), A-law and mu-law are");
    }
    Status status = check_audio_format(rate, channels);
    if (!status.ok()) return status;
    samples_ = std::make_unique<PcmCodec>(*format, rate, channels);
    skip_next(uint64_t{chunk_bytes_} - wanted_ + chunk_bytes_ % 2);
    return {};
  }

  State state_ = State::kRiff;
  std::array<std::byte, kExtensibleBytes> part_{};
  std::size_t wanted_ = 12;
  std::size_t size_ = 0;
  uint32_t chunk_bytes_ = 0;
  uint64_t skip_ = 0;
  std::optional<uint64_t> left_;  // of the data chunk; unset: all that comes
  std::unique_ptr<PcmCodec> samples_;
};

}  // namespace

std::unique_ptr<AudioCodec> make_wav_codec() { return std::make_unique<WavCodec>(); }

}  // namespace headrace
