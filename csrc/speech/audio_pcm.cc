#include "speech/audio_pcm.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "speech/audio_g711.h"

namespace headrace {
namespace {

template <class T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

// What is no number is silence.
float bounded(double sample) {
  return std::isnan(sample) ? 0.0F : static_cast<float>(std::clamp(sample, -1.0, 1.0));
}

template <SampleFormat kFormat>
float sample_at(const std::byte* at) {
  if constexpr (kFormat == SampleFormat::kU8) {
    return static_cast<float>(static_cast<int>(load<uint8_t>(at)) - 128) / 128.0F;
  } else if constexpr (kFormat == SampleFormat::kS16) {
    return static_cast<float>(load<int16_t>(at)) / 32768.0F;
  } else if constexpr (kFormat == SampleFormat::kS24) {
    const uint32_t bits = static_cast<uint32_t>(load<uint8_t>(at)) << 8 |
                          static_cast<uint32_t>(load<uint8_t>(at + 1)) << 16 |
                          static_cast<uint32_t>(load<uint8_t>(at + 2)) << 24;
    return static_cast<float>(static_cast<int32_t>(bits)) / 2147483648.0F;
  } else if constexpr (kFormat == SampleFormat::kS32) {
    return static_cast<float>(load<int32_t>(at)) / 2147483648.0F;
  } else if constexpr (kFormat == SampleFormat::kF32) {
    return bounded(load<float>(at));
  } else if constexpr (kFormat == SampleFormat::kF64) {
    return bounded(load<double>(at));
  } else if constexpr (kFormat == SampleFormat::kMulaw) {
    return mulaw_sample(load<uint8_t>(at));
  } else {
    return alaw_sample(load<uint8_t>(at));
  }
}

template <SampleFormat kFormat>
void append_channel(std::span<const std::byte> frames, std::size_t frame_bytes, std::size_t channel,
                    std::vector<float>& out) {
  const std::size_t count = frames.size() / frame_bytes;
  if (count == 0) return;
  const std::byte* at = frames.data() + channel * bytes_of(kFormat);
  const std::size_t before = out.size();
  out.resize(before + count);
  for (std::size_t i = 0; i < count; ++i) {
    out[before + i] = sample_at<kFormat>(at + i * frame_bytes);
  }
}

using Append = void (*)(std::span<const std::byte>, std::size_t, std::size_t, std::vector<float>&);
constexpr std::array<Append, 8> kAppend = {
    append_channel<SampleFormat::kU8>,    append_channel<SampleFormat::kS16>,
    append_channel<SampleFormat::kS24>,   append_channel<SampleFormat::kS32>,
    append_channel<SampleFormat::kF32>,   append_channel<SampleFormat::kF64>,
    append_channel<SampleFormat::kMulaw>, append_channel<SampleFormat::kAlaw>};

}  // namespace

Status check_audio_format(uint64_t sample_rate, uint64_t channels) {
  if (sample_rate < kMinSampleRate || sample_rate > kMaxSampleRate) {
    return Status::invalid_argument("a sample rate of " + std::to_string(sample_rate) +
                                    " Hz is out of range: " + std::to_string(kMinSampleRate) +
                                    " to " + std::to_string(kMaxSampleRate));
  }
  if (channels < 1 || channels > kMaxAudioChannels) {
    return Status::invalid_argument(std::to_string(channels) +
                                    " audio channels are out of range: 1 to " +
                                    std::to_string(kMaxAudioChannels));
  }
  return {};
}

PcmCodec::PcmCodec(SampleFormat format, uint32_t sample_rate, uint32_t channels)
    : format_(format),
      sample_rate_(sample_rate),
      channels_(channels),
      frame_bytes_(bytes_of(format) * channels) {}

void PcmCodec::append(std::span<const std::byte> frames, AudioBlock& block) const {
  for (std::size_t i = 0; i < channels_; ++i) {
    kAppend[static_cast<std::size_t>(format_)](frames, frame_bytes_, i, block.channels[i]);
  }
}

Result<bool> PcmCodec::decode(std::span<const std::byte>& bytes, bool, AudioBlock& block) {
  block.sample_rate = sample_rate_;
  block.channels.resize(channels_);
  if (split_size_ != 0) {
    const std::size_t n = std::min(bytes.size(), frame_bytes_ - split_size_);
    std::copy_n(bytes.begin(), n, split_.begin() + static_cast<std::ptrdiff_t>(split_size_));
    bytes = bytes.subspan(n);
    split_size_ += n;
    if (split_size_ < frame_bytes_) return false;
    append({split_.data(), frame_bytes_}, block);
    split_size_ = 0;
  }
  const std::size_t have = block.frames();
  const std::size_t room = have < kBlockFrames ? kBlockFrames - have : 0;
  const std::size_t whole = std::min(bytes.size() / frame_bytes_, room) * frame_bytes_;
  append(bytes.first(whole), block);
  bytes = bytes.subspan(whole);
  if (bytes.size() >= frame_bytes_) return true;
  split_size_ = bytes.size();
  std::copy_n(bytes.begin(), bytes.size(), split_.begin());
  bytes = {};
  return false;
}

}  // namespace headrace
