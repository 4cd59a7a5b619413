// Opus in Ogg (RFC 7845) by libogg and libopus, decoded at kSpeechSampleRate: it needs no resampler.
#include <ogg/ogg.h>
#include <opus/opus_multistream.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <string_view>

#include "speech/audio_codec.h"
#include "speech/recognizer.h"

namespace headrace {
namespace {

constexpr uint32_t kOpusRate = 48000;                                // of granule positions
constexpr std::size_t kMostFrames = kSpeechSampleRate / 1000 * 120;  // a packet's
constexpr std::size_t kMostUnfinished = 4
                                        << 20;  // bytes without a whole packet; tags carry pictures
constexpr std::size_t kFeedBytes = 4096;

class OggOpusCodec final : public AudioCodec {
 public:
  OggOpusCodec() {
    ogg_sync_init(&sync_);
    ogg_stream_init(&stream_, 0);
  }
  ~OggOpusCodec() override {
    if (decoder_ != nullptr) opus_multistream_decoder_destroy(decoder_);
    ogg_stream_clear(&stream_);
    ogg_sync_clear(&sync_);
  }

  Result<bool> decode(std::span<const std::byte>& bytes, bool last, AudioBlock& block) override {
    while (true) {
      const Result<bool> got = decode_held(block);
      if (!got) return got.error();
      if (*got) return true;
      if (bytes.empty()) {
        if (last && state_ != State::kAudio) return malformed("its headers have no end");
        return false;
      }
      const std::size_t n = std::min(bytes.size(), kFeedBytes);
      unfinished_ += n;
      if (unfinished_ > kMostUnfinished) return malformed("a packet is too long");
      std::memcpy(ogg_sync_buffer(&sync_, static_cast<long>(n)), bytes.data(), n);
      ogg_sync_wrote(&sync_, static_cast<long>(n));
      bytes = bytes.subspan(n);
    }
  }

 private:
  enum class State : uint8_t { kHead, kTags, kAudio };

  static Status malformed(const std::string& why) {
    return Status::invalid_argument("the Ogg Opus stream is malformed: " + why);
  }

  // What is there. True: the block is full.
  Result<bool> decode_held(AudioBlock& block) {
    while (true) {
      ogg_packet packet;
      int found = 0;
      while (in_page_ && (found = ogg_stream_packetout(&stream_, &packet)) != 0) {
        if (found < 0) return malformed("a page is missing");
        unfinished_ = 0;
        Status status = take(packet, block);
        if (!status.ok()) return status;
        if (block.frames() >= kBlockFrames) return true;
      }
      in_page_ = false;
      ogg_page page;
      found = ogg_sync_pageout(&sync_, &page);
      if (found < 0)
        return malformed("a page does not begin where one should, or its sum is wrong");
      if (found == 0) return false;
      if (ogg_page_bos(&page) != 0) {
        // One stream after the other may come, of the same format.
        if (state_ != State::kAudio && started_) return malformed("it has several streams");
        ogg_stream_reset_serialno(&stream_, ogg_page_serialno(&page));
        state_ = State::kHead;
        started_ = true;
      }
      if (!started_ || ogg_stream_pagein(&stream_, &page) != 0) {
        return malformed("a page of a stream that has not begun");
      }
      in_page_ = true;
    }
  }

  Status take(const ogg_packet& packet, AudioBlock& block) {
    const std::string_view bytes(reinterpret_cast<const char*>(packet.packet),
                                 static_cast<std::size_t>(packet.bytes));
    if (state_ == State::kHead) {
      Status status = read_head(bytes);
      if (status.ok()) state_ = State::kTags;
      return status;
    }
    if (state_ == State::kTags) {
      if (!bytes.starts_with("OpusTags")) return malformed("no OpusTags");
      state_ = State::kAudio;
      return {};
    }
    block.sample_rate = kSpeechSampleRate;
    block.channels.resize(channels_);
    return decode_packet(packet, block);
  }

  Status read_head(std::string_view head) {
    if (head.starts_with("\x7F"
                         "FLAC")) {
      return Status::unimplemented("FLAC in Ogg is not supported: send it as plain FLAC");
    }
    if (head.starts_with("\x01vorbis")) {
      return Status::unimplemented("Ogg Vorbis is not supported: Ogg Opus is");
    }
    constexpr std::size_t kShortest = 19;
    if (!head.starts_with("OpusHead") || head.size() < kShortest) {
      return Status::invalid_argument("the Ogg stream is not Opus");
    }
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(head[i]); };
    if (byte(8) >> 4 != 0) return malformed("its version is not known");
    const std::size_t channels = byte(9);
    const uint32_t family = byte(18);
    Status status = check_audio_format(kSpeechSampleRate, channels);
    if (!status.ok()) return status;
    if (decoder_ != nullptr && channels != channels_) return malformed("it changes its channels");
    // In samples of ours; those that nobody should hear.
    skip_ = (uint32_t{byte(10)} | uint32_t{byte(11)} << 8) / (kOpusRate / kSpeechSampleRate);
    preskip_ = skip_;
    produced_ = 0;
    const auto gain = static_cast<int16_t>(byte(16) | byte(17) << 8);  // dB, 8 bits of fraction
    gain_ = std::pow(10.0F, static_cast<float>(gain) / (20.0F * 256.0F));
    int streams = 1;
    int coupled = channels == 2 ? 1 : 0;
    std::array<unsigned char, 256> mapping{0, 1};
    if (family == 0) {
      if (channels > 2) return malformed("more channels than its mapping has");
    } else {
      if (head.size() < kShortest + 2 + channels) return malformed("its mapping is cut off");
      streams = byte(19);
      coupled = byte(20);
      for (std::size_t i = 0; i < channels; ++i) mapping[i] = byte(21 + i);
    }
    if (decoder_ != nullptr) opus_multistream_decoder_destroy(decoder_);
    int error = OPUS_OK;
    decoder_ = opus_multistream_decoder_create(static_cast<opus_int32>(kSpeechSampleRate),
                                               static_cast<int>(channels), streams, coupled,
                                               mapping.data(), &error);
    if (decoder_ == nullptr) return malformed("its channel mapping");
    channels_ = channels;
    samples_.resize(kMostFrames * channels);
    return {};
  }

  Status decode_packet(const ogg_packet& packet, AudioBlock& block) {
    const int decoded = opus_multistream_decode_float(
        decoder_, packet.packet, static_cast<opus_int32>(packet.bytes), samples_.data(),
        static_cast<int>(kMostFrames), 0);
    if (decoded < 0) return malformed(opus_strerror(decoded));
    auto count = static_cast<std::size_t>(decoded);
    const std::size_t before = std::min<std::size_t>(count, skip_);
    skip_ -= static_cast<uint32_t>(before);
    produced_ += count;
    // The last page's position tells where the audio ends, within the last packet.
    if (packet.e_o_s != 0 && packet.granulepos > 0) {
      const uint64_t end =
          static_cast<uint64_t>(packet.granulepos) / (kOpusRate / kSpeechSampleRate);
      const uint64_t over = produced_ > end ? produced_ - end : 0;
      if (end >= preskip_ && over <= count - before) count -= static_cast<std::size_t>(over);
    }
    for (std::size_t c = 0; c < channels_; ++c) {
      for (std::size_t i = before; i < count; ++i) {
        block.channels[c].push_back(std::clamp(samples_[i * channels_ + c] * gain_, -1.0F, 1.0F));
      }
    }
    return {};
  }

  ogg_sync_state sync_{};
  ogg_stream_state stream_{};
  OpusMSDecoder* decoder_ = nullptr;
  State state_ = State::kHead;
  bool started_ = false;
  bool in_page_ = false;  // stream_ may have packets
  std::size_t unfinished_ = 0;
  std::size_t channels_ = 0;
  uint32_t skip_ = 0;
  uint32_t preskip_ = 0;
  uint64_t produced_ = 0;  // with what was skipped
  float gain_ = 1;
  std::vector<float> samples_;  // of a packet, interleaved
};

}  // namespace

Result<std::unique_ptr<AudioCodec>> make_ogg_opus_codec() {
  return std::unique_ptr<AudioCodec>(std::make_unique<OggOpusCodec>());
}

}  // namespace headrace
