#include "speech/audio_reader.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "speech/audio_pcm.h"
#include "speech/recognizer.h"

namespace headrace {

AudioReader::AudioReader(const AudioOptions& options, ResamplerFilters& filters)
    : options_(options), filters_(filters) {}

Result<std::unique_ptr<AudioCodec>> AudioReader::raw_codec() const {
  SampleFormat format = SampleFormat::kS16;
  switch (options_.encoding) {
    case AudioEncoding::kLinearPcm:
      break;
    case AudioEncoding::kMulaw:
      format = SampleFormat::kMulaw;
      break;
    case AudioEncoding::kAlaw:
      format = SampleFormat::kAlaw;
      break;
    case AudioEncoding::kFlac:
      return Status::invalid_argument(
          "the encoding is FLAC, but the audio does not begin with fLaC");
    case AudioEncoding::kOggOpus:
      return Status::invalid_argument(
          "the encoding is OGGOPUS, but the audio does not begin with OggS");
    case AudioEncoding::kUnspecified:
      return Status::invalid_argument(
          "the audio has no WAV, FLAC or Ogg header, and no encoding is specified");
    default:
      return Status::invalid_argument("audio encoding " +
                                      std::to_string(static_cast<int32_t>(options_.encoding)) +
                                      " is not known");
  }
  const uint32_t channels = std::max<uint32_t>(options_.channels, 1);
  Status status = check_audio_format(options_.sample_rate, channels);
  if (!status.ok()) return status;
  return std::unique_ptr<AudioCodec>(
      std::make_unique<PcmCodec>(format, options_.sample_rate, channels));
}

Result<bool> AudioReader::choose_codec() {
  const std::size_t n = std::min(bytes_.size(), head_.size() - head_size_);
  std::copy_n(bytes_.begin(), n, head_.begin() + static_cast<std::ptrdiff_t>(head_size_));
  head_size_ += n;
  bytes_ = bytes_.subspan(n);
  const auto begins = [&](const char* mark) {
    return std::memcmp(head_.data(), mark, std::min(head_size_, head_.size())) == 0;
  };
  const bool marked = begins("RIFF") || begins("RF64") || begins("fLaC") || begins("OggS");
  if (head_size_ == 0 || (head_size_ < head_.size() && marked && !ending_)) return false;
  const bool whole = head_size_ == head_.size();
  Result<std::unique_ptr<AudioCodec>> codec =
      !whole                             ? raw_codec()
      : begins("RIFF") || begins("RF64") ? Result<std::unique_ptr<AudioCodec>>(make_wav_codec())
      : begins("fLaC")                   ? make_flac_codec()
      : begins("OggS")                   ? make_ogg_opus_codec()
                                         : raw_codec();
  if (!codec) return codec.error();
  codec_ = *std::move(codec);
  rest_of_head_ = {head_.data(), head_size_};
  return true;
}

Result<bool> AudioReader::next() {
  for (std::vector<float>& channel : samples_) channel.clear();
  if (ended_) return false;
  if (codec_ == nullptr) {
    const Result<bool> chosen = choose_codec();
    if (!chosen) return chosen.error();
    if (!*chosen) {
      ended_ = ending_;
      return false;
    }
  }
  block_.clear();
  bool more = true;
  if (!rest_of_head_.empty()) {
    const Result<bool> decoded = codec_->decode(rest_of_head_, false, block_);
    if (!decoded) return decoded.error();
  } else {
    const Result<bool> decoded = codec_->decode(bytes_, ending_, block_);
    if (!decoded) return decoded.error();
    more = *decoded;
  }
  Status status = take_block();
  if (!status.ok()) return status;
  if (!more && ending_) {
    ended_ = true;
    for (std::size_t i = 0; i < resamplers_.size(); ++i) resamplers_[i].finish(samples_[i]);
    return true;
  }
  return more || block_.frames() != 0;
}

Status AudioReader::take_block() {
  if (block_.channels.empty()) return {};
  const std::size_t wanted = options_.separate_channels ? block_.channels.size() : 1;
  if (samples_.empty()) {
    samples_.resize(wanted);
    if (block_.sample_rate != kSpeechSampleRate) {
      const std::shared_ptr<const ResamplerFilter> filter = filters_.get(block_.sample_rate);
      resamplers_.assign(wanted, Resampler(filter));
    }
  }
  if (samples_.size() != wanted) {
    return Status::invalid_argument("the audio changes its number of channels");
  }
  for (std::size_t i = 0; i < wanted; ++i) {
    if (resamplers_.empty()) {
      samples_[i].swap(block_.channels[i]);
    } else {
      resamplers_[i].push(block_.channels[i], samples_[i]);
    }
  }
  seconds_ += static_cast<double>(resamplers_.empty() ? samples_[0].size() : block_.frames()) /
              block_.sample_rate;
  return {};
}

}  // namespace headrace
