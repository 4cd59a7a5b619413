#include "speech/audio_reader.h"

#include <doctest/doctest.h>

#include <limits>
#include <random>

#include "speech/audio_bytes.h"
#include "speech/audio_g711.h"

using namespace headrace;
using namespace headrace::testing;

namespace {

AudioOptions raw(AudioEncoding encoding, uint32_t rate = 16000, uint32_t channels = 1) {
  AudioOptions options;
  options.encoding = encoding;
  options.sample_rate = rate;
  options.channels = channels;
  return options;
}

const AudioOptions kNothingSaid = raw(AudioEncoding::kUnspecified, 0, 0);

StatusCode code_of(const AudioOptions& options, std::string_view bytes) {
  return hear(options, bytes).status.code();
}

}  // namespace

TEST_CASE("16 bit PCM is the same however it is cut") {
  std::string bytes;
  std::mt19937 random(1);
  std::vector<float> expected;
  for (int i = 0; i < 30000; ++i) {
    const auto sample = static_cast<int16_t>(random());
    put(bytes, sample);
    expected.push_back(static_cast<float>(sample) / 32768.0F);
  }
  for (const std::size_t chunk : {0, 1, 3, 7, 3200, 20001}) {
    CAPTURE(chunk);
    const Heard heard = hear(raw(AudioEncoding::kLinearPcm), bytes, chunk);
    REQUIRE(heard.status.ok());
    REQUIRE(heard.channels.size() == 1);
    CHECK(heard.channels[0] == expected);
  }
  // Half a sample at the end is none.
  CHECK(hear(raw(AudioEncoding::kLinearPcm), bytes + "x", 5).channels[0] == expected);
}

TEST_CASE("a WAV header goes before what the client says") {
  const std::vector<float> samples = tone(440, 16000, 1000);
  const std::string data = pcm16(samples);
  for (const bool extensible : {false, true}) {
    Wav format;
    format.extensible = extensible;
    format.before_data = std::string(
        "LIST\x05\x00\x00\x00"
        "abcde\x00",
        14);  // padded to even
    const std::string file = wav(format, data);
    for (const std::size_t chunk : {0, 1, 2, 13, 44, 45, 100}) {
      CAPTURE(chunk);
      for (const AudioOptions& options : {kNothingSaid, raw(AudioEncoding::kMulaw, 8000)}) {
        const Heard heard = hear(options, file, chunk);
        REQUIRE(heard.status.ok());
        REQUIRE(heard.channels.size() == 1);
        REQUIRE(heard.channels[0].size() == samples.size());
        CHECK(snr_db(samples, heard.channels[0]) > 80);
      }
    }
  }
}

TEST_CASE("a WAV file's data end where its size says; without a size they last") {
  const std::string data = pcm16(tone(440, 16000, 1000));
  Wav format;
  CHECK(hear(kNothingSaid, wav(format, data) + "LIST....", 11).channels[0].size() == 1000);
  format.size_unknown = true;
  CHECK(hear(kNothingSaid, wav(format, data), 11).channels[0].size() == 1000);
  format.size_unknown = false;
  format.data_bytes = 0xFFFFFFFF;
  CHECK(hear(kNothingSaid, wav(format, data)).channels[0].size() == 1000);
  format.data_bytes = 4000;  // more than comes
  CHECK(hear(kNothingSaid, wav(format, data)).channels[0].size() == 1000);
}

TEST_CASE("every sample format of WAV") {
  const std::vector<float> samples = tone(440, 16000, 500, 0.7);
  const auto write = [&](auto put_one) {
    std::string data;
    for (const float sample : samples) put_one(data, static_cast<double>(sample));
    return data;
  };
  struct Case {
    uint16_t tag;
    uint16_t bits;
    std::string data;
    double snr;
  };
  const std::vector<Case> cases = {
      {1, 8,
       write([](auto& d, double s) { put(d, static_cast<uint8_t>(std::lround(s * 127) + 128)); }),
       35},
      {1, 24, write([](auto& d, double s) {
         const auto v = static_cast<int32_t>(std::lround(s * 8388607));
         for (int k = 0; k < 3; ++k) put(d, static_cast<uint8_t>(v >> (8 * k)));
       }),
       100},
      {1, 32, write([](auto& d, double s) { put(d, static_cast<int32_t>(s * 2147483647)); }), 110},
      {3, 32, write([](auto& d, double s) { put(d, static_cast<float>(s)); }), 140},
      {3, 64, write([](auto& d, double s) { put(d, s); }), 140},
  };
  for (const Case& one : cases) {
    CAPTURE(one.bits);
    Wav format;
    format.tag = one.tag;
    format.bits = one.bits;
    for (const bool extensible : {false, true}) {
      format.extensible = extensible;
      const Heard heard = hear(kNothingSaid, wav(format, one.data), 101);
      REQUIRE(heard.status.ok());
      REQUIRE(heard.channels[0].size() == samples.size());
      CHECK(snr_db(samples, heard.channels[0]) > one.snr);
    }
  }
}

TEST_CASE("floats that are none, or too loud, stay within the bounds") {
  std::string data;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  for (const float sample : {nan, inf, -inf, 3.0F, -0.25F}) put(data, sample);
  Wav format;
  format.tag = 3;
  format.bits = 32;
  CHECK(hear(kNothingSaid, wav(format, data)).channels[0] ==
        std::vector<float>{0, 1, -1, 1, -0.25F});
}

TEST_CASE("G.711: the values of the recommendation") {
  // Of 16 bits: the loudest, the quietest, and some between (ITU-T G.711, tables 1a to 2b).
  CHECK(mulaw_sample(0x00) * 32768 == -32124);
  CHECK(mulaw_sample(0x80) * 32768 == 32124);
  CHECK(mulaw_sample(0xFF) == 0);
  CHECK(mulaw_sample(0x7F) == 0);
  CHECK(mulaw_sample(0xFE) * 32768 == 8);
  CHECK(alaw_sample(0xD5) * 32768 == 8);
  CHECK(alaw_sample(0x55) * 32768 == -8);
  CHECK(alaw_sample(0xAA) * 32768 == 32256);
  CHECK(alaw_sample(0x2A) * 32768 == -32256);
  const Heard heard = hear(raw(AudioEncoding::kMulaw), std::string("\x00\x80\xFE", 3), 1);
  REQUIRE(heard.status.ok());
  CHECK(heard.channels[0][2] * 32768 == 8);
  CHECK(hear(raw(AudioEncoding::kAlaw, 8000), std::string(800, '\x55')).channels[0].size() == 1600);
}

TEST_CASE("channels: the first, or each by itself") {
  const std::vector<float> left = tone(300, 16000, 900);
  const std::vector<float> right = tone(700, 16000, 900, 0.3);
  std::vector<float> both;
  for (std::size_t i = 0; i < left.size(); ++i) {
    both.push_back(left[i]);
    both.push_back(right[i]);
  }
  AudioOptions options = raw(AudioEncoding::kLinearPcm, 16000, 2);
  for (const std::size_t chunk : {0, 1, 3, 6}) {
    const Heard first = hear(options, pcm16(both), chunk);
    REQUIRE(first.channels.size() == 1);
    CHECK(snr_db(left, first.channels[0]) > 80);
    AudioOptions separate = options;
    separate.separate_channels = true;
    const Heard each = hear(separate, pcm16(both), chunk);
    REQUIRE(each.channels.size() == 2);
    CHECK(snr_db(left, each.channels[0]) > 80);
    CHECK(snr_db(right, each.channels[1]) > 75);
  }
}

TEST_CASE("what cannot be heard is INVALID_ARGUMENT") {
  const std::string noise(64, 'x');
  CHECK(code_of(kNothingSaid, noise) == StatusCode::kInvalidArgument);
  CHECK(code_of(raw(AudioEncoding::kFlac), noise) == StatusCode::kInvalidArgument);
  CHECK(code_of(raw(AudioEncoding::kOggOpus), noise) == StatusCode::kInvalidArgument);
  CHECK(code_of(raw(static_cast<AudioEncoding>(7)), noise) == StatusCode::kInvalidArgument);
  for (const uint32_t rate : {0, 3999, 192001}) {
    CHECK(code_of(raw(AudioEncoding::kLinearPcm, rate), noise) == StatusCode::kInvalidArgument);
  }
  CHECK(code_of(raw(AudioEncoding::kLinearPcm, 16000, 9), noise) == StatusCode::kInvalidArgument);
  CHECK(code_of(kNothingSaid, "RIFFxxxxAVI LIST") == StatusCode::kInvalidArgument);
  CHECK(code_of(kNothingSaid, "RIF") == StatusCode::kInvalidArgument);
  CHECK(code_of(kNothingSaid, "RIFFxxxxWAVEfmt ") == StatusCode::kInvalidArgument);
  CHECK(code_of(kNothingSaid, std::string("RIFFxxxxWAVEdata\x04\x00\x00\x00", 20)) ==
        StatusCode::kInvalidArgument);
  for (const auto& [tag, bits] : {std::pair<uint16_t, uint16_t>{2, 4}, {1, 12}, {85, 16}}) {
    Wav format;
    format.tag = tag;
    format.bits = bits;
    CHECK(code_of(kNothingSaid, wav(format, noise)) == StatusCode::kInvalidArgument);
  }
  Wav format;
  format.channels = 300;
  CHECK(code_of(kNothingSaid, wav(format, noise)) == StatusCode::kInvalidArgument);
  format.channels = 1;
  format.rate = 1;
  CHECK(code_of(kNothingSaid, wav(format, noise)) == StatusCode::kInvalidArgument);
}

TEST_CASE("compressed audio that is none: refused, or the library is named") {
  for (const std::string mark : {"fLaC", "OggS"}) {
    for (const std::size_t chunk : {0, 1, 100}) {
      const Heard heard = hear(kNothingSaid, mark + std::string(5000, '\x11'), chunk);
      const bool built = heard.status.code() != StatusCode::kUnimplemented;
      if (built) CHECK(heard.status.code() == StatusCode::kInvalidArgument);
      if (!built) CHECK(heard.status.message().find("lib") != std::string::npos);
      CHECK(heard.channels.empty());
    }
  }
}

TEST_CASE("no audio is no error here") {
  const Heard heard = hear(kNothingSaid, "");
  CHECK(heard.status.ok());
  CHECK(heard.channels.empty());
}
