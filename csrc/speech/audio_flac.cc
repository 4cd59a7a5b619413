// FLAC by libFLAC. The library asks for bytes and cannot wait for them: a frame that is not whole yet is
// tried again from its start when a quarter more has come.
#include <FLAC/stream_decoder.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "speech/audio_codec.h"

namespace headrace {
namespace {

constexpr std::size_t kMarkBytes = 4;    // "fLaC"
constexpr std::size_t kBlockHeader = 4;  // last flag and type, 24 bits of length
constexpr std::size_t kStreamInfo = 34;
constexpr std::size_t kMostFrame =
    4 << 20;  // 65535 samples of 8 channels of 32 bits, packed, are less
constexpr int kMostMetadata = 1024;

class FlacCodec final : public AudioCodec {
 public:
  FlacCodec() : decoder_(FLAC__stream_decoder_new()) {}
  ~FlacCodec() override { FLAC__stream_decoder_delete(decoder_); }

  Status open() {
    const auto status =
        FLAC__stream_decoder_init_stream(decoder_, &on_read, nullptr, &on_tell, nullptr, nullptr,
                                         &on_write, nullptr, &on_error, this);
    if (status == FLAC__STREAM_DECODER_INIT_STATUS_OK) return {};
    return Status::internal("libFLAC cannot be started");
  }

  Result<bool> decode(std::span<const std::byte>& bytes, bool last, AudioBlock& block) override {
    if (!complete_) held_.insert(held_.end(), bytes.begin(), bytes.end());
    bytes = {};
    block_ = &block;
    if (!opened_) {
      const Result<bool> known = read_metadata();
      if (!known) return known.error();
      if (!*known && last) return Status::invalid_argument("the FLAC header has no end");
      if (!*known) return false;
    }
    block.sample_rate = sample_rate_;
    block.channels.resize(channels_);
    while (!complete_ && start_ < held_.size() && (last || held_.size() - start_ >= retry_at_)) {
      const Result<bool> whole = decode_frame();
      if (!whole) return whole.error();
      if (!*whole && last) {  // cut off in the middle of it
        if (frames_ == 0) return Status::invalid_argument("no FLAC frame is whole");
        complete_ = true;
      }
      if (!*whole) break;
      if (block.frames() >= kBlockFrames) {
        // Their removal costs what is left: not every time.
        if (start_ > held_.size() / 2) drop_decoded();
        return true;
      }
    }
    drop_decoded();
    return false;
  }

 private:
  // libFLAC gets the mark and STREAMINFO only; other metadata may be long, and is passed over here.
  Result<bool> read_metadata() {
    if (header_.empty()) {
      if (held_.size() < kMarkBytes + kBlockHeader + kStreamInfo) return false;
      const auto at = held_.begin() + kMarkBytes;
      if ((std::to_integer<int>(at[0]) & 0x7F) != 0 || length(kMarkBytes) != kStreamInfo) {
        return Status::invalid_argument("the FLAC header does not begin with STREAMINFO");
      }
      last_block_ = (std::to_integer<int>(at[0]) & 0x80) != 0;
      header_.assign(held_.begin(), at + kBlockHeader + kStreamInfo);
      header_[kMarkBytes] |= std::byte{0x80};  // it is the last
      start_ = header_.size();
    }
    while (!last_block_ || skip_ != 0) {
      const std::size_t n = std::min(skip_, held_.size() - start_);
      start_ += n;
      skip_ -= n;
      if (skip_ != 0 || (!last_block_ && held_.size() - start_ < kBlockHeader)) {
        drop_decoded();
        return false;
      }
      if (last_block_) break;
      if (++metadata_ > kMostMetadata) {
        return Status::invalid_argument("the FLAC header has too many parts");
      }
      last_block_ = (std::to_integer<int>(held_[start_]) & 0x80) != 0;
      skip_ = length(start_);
      start_ += kBlockHeader;
    }
    drop_decoded();
    return start_decoding();
  }

  std::size_t length(std::size_t block) const {
    return std::to_integer<std::size_t>(held_[block + 1]) << 16 |
           std::to_integer<std::size_t>(held_[block + 2]) << 8 |
           std::to_integer<std::size_t>(held_[block + 3]);
  }

  Result<bool> start_decoding() {
    std::swap(held_, header_);  // for as long as the library reads it
    Status status = open();
    if (status.ok() && !FLAC__stream_decoder_process_until_end_of_metadata(decoder_)) {
      status = Status::invalid_argument("the FLAC header is malformed");
    }
    std::swap(held_, header_);
    if (status.ok()) {
      // STREAMINFO: 20 bits of rate after 10 bytes, 3 of channels, 5 of bits, 36 of length.
      const auto byte = [&](std::size_t i) {
        return std::to_integer<uint64_t>(header_[kMarkBytes + kBlockHeader + i]);
      };
      const uint64_t rate = byte(10) << 12 | byte(11) << 4 | byte(12) >> 4;
      const uint64_t channels = (byte(12) >> 1 & 7) + 1;
      total_ = (byte(13) & 0x0F) << 32 | byte(14) << 24 | byte(15) << 16 | byte(16) << 8 | byte(17);
      sample_rate_ = static_cast<uint32_t>(rate);
      channels_ = static_cast<std::size_t>(channels);
      status = check_audio_format(rate, channels);
    }
    if (!status.ok()) return status;
    FLAC__stream_decoder_flush(decoder_);
    read_ = 0;
    opened_ = true;
    return true;
  }

  // One frame from start_ on. False: it is not whole.
  Result<bool> decode_frame() {
    read_ = start_;
    starved_ = wrote_ = false;
    const bool processed = FLAC__stream_decoder_process_single(decoder_) != 0;
    if (!problem_.ok()) return problem_;
    FLAC__uint64 position = 0;
    if (processed && wrote_ && FLAC__stream_decoder_get_decode_position(decoder_, &position) != 0) {
      start_ = static_cast<std::size_t>(position);
      retry_at_ = 0;
      ++frames_;
      complete_ = total_ != 0 && decoded_ >= total_;  // what follows is somebody's tag
      // Bytes that the library has read ahead are given to it again, which costs a copy and no thought.
      FLAC__stream_decoder_flush(decoder_);
      return true;
    }
    FLAC__stream_decoder_flush(decoder_);
    if (!starved_ || held_.size() - start_ > kMostFrame) {
      return Status::invalid_argument("the FLAC stream is malformed");
    }
    const std::size_t waiting = held_.size() - start_;
    retry_at_ = waiting + std::max<std::size_t>(waiting / 4, 1);
    return false;
  }

  void drop_decoded() {
    held_.erase(held_.begin(), held_.begin() + static_cast<std::ptrdiff_t>(start_));
    start_ = 0;
    if (complete_) held_.clear();
  }

  static FLAC__StreamDecoderReadStatus on_read(const FLAC__StreamDecoder*, FLAC__byte* to,
                                               std::size_t* bytes, void* self) {
    auto& codec = *static_cast<FlacCodec*>(self);
    const std::size_t n = std::min(*bytes, codec.held_.size() - codec.read_);
    if (n == 0) {
      codec.starved_ = true;
      *bytes = 0;
      return FLAC__STREAM_DECODER_READ_STATUS_ABORT;
    }
    std::memcpy(to, codec.held_.data() + codec.read_, n);
    codec.read_ += n;
    *bytes = n;
    return FLAC__STREAM_DECODER_READ_STATUS_CONTINUE;
  }

  static FLAC__StreamDecoderTellStatus on_tell(const FLAC__StreamDecoder*, FLAC__uint64* offset,
                                               void* self) {
    *offset = static_cast<FlacCodec*>(self)->read_;
    return FLAC__STREAM_DECODER_TELL_STATUS_OK;
  }

  static FLAC__StreamDecoderWriteStatus on_write(const FLAC__StreamDecoder*,
                                                 const FLAC__Frame* frame,
                                                 const FLAC__int32* const* samples, void* self) {
    auto& codec = *static_cast<FlacCodec*>(self);
    codec.wrote_ = true;
    if (frame->header.channels != codec.channels_) {
      codec.problem_ = Status::invalid_argument("the FLAC stream changes its channels");
      return FLAC__STREAM_DECODER_WRITE_STATUS_ABORT;
    }
    const float scale =
        1.0F / static_cast<float>(uint64_t{1} << (frame->header.bits_per_sample - 1));
    for (std::size_t c = 0; c < codec.channels_; ++c) {
      std::vector<float>& out = codec.block_->channels[c];
      for (uint32_t i = 0; i < frame->header.blocksize; ++i) {
        // A predictor that is crafted goes beyond the bits.
        out.push_back(std::clamp(static_cast<float>(samples[c][i]) * scale, -1.0F, 1.0F));
      }
    }
    codec.decoded_ += frame->header.blocksize;
    return FLAC__STREAM_DECODER_WRITE_STATUS_CONTINUE;
  }

  static void on_error(const FLAC__StreamDecoder*, FLAC__StreamDecoderErrorStatus error,
                       void* self) {
    auto& codec = *static_cast<FlacCodec*>(self);
    codec.problem_ = Status::invalid_argument(std::string("FLAC: ") +
                                              FLAC__StreamDecoderErrorStatusString[error]);
  }

  FLAC__StreamDecoder* const decoder_;
  AudioBlock* block_ = nullptr;  // in decode() and finish()
  std::vector<std::byte> held_;  // not decoded yet, from start_ on
  std::size_t start_ = 0;
  std::size_t read_ = 0;      // by the library
  std::size_t retry_at_ = 0;  // held bytes with which the next frame is tried again
  std::vector<std::byte> header_;
  bool last_block_ = false;  // of the metadata
  std::size_t skip_ = 0;     // of it
  int metadata_ = 0;
  bool opened_ = false;
  bool starved_ = false;
  bool wrote_ = false;
  bool complete_ = false;
  uint32_t sample_rate_ = 0;
  std::size_t channels_ = 0;
  uint64_t total_ = 0;  // 0: not known
  uint64_t decoded_ = 0;
  uint64_t frames_ = 0;
  Status problem_;
};

}  // namespace

Result<std::unique_ptr<AudioCodec>> make_flac_codec() {
  return std::unique_ptr<AudioCodec>(std::make_unique<FlacCodec>());
}

}  // namespace headrace
