// Audio as clients send it, written by hand, and what AudioReader makes of it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>
#include <string>
#include <string_view>
#include <vector>

#include "speech/audio_reader.h"

namespace headrace::testing {

template <class T>
void put(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

inline std::vector<float> tone(double hz, uint32_t rate, std::size_t samples, double level = 0.5) {
  std::vector<float> result(samples);
  for (std::size_t i = 0; i < samples; ++i) {
    result[i] = static_cast<float>(
        level * std::sin(2 * std::numbers::pi * hz * static_cast<double>(i) / rate));
  }
  return result;
}

inline std::string pcm16(const std::vector<float>& samples) {
  std::string bytes;
  for (const float sample : samples) {
    put(bytes,
        static_cast<int16_t>(std::lround(std::clamp(sample * 32768.0F, -32768.0F, 32767.0F))));
  }
  return bytes;
}

struct Wav {
  uint16_t tag = 1;
  uint16_t channels = 1;
  uint32_t rate = 16000;
  uint16_t bits = 16;
  bool extensible = false;
  std::string before_data;  // chunks
  uint32_t data_bytes = 0;  // 0: as many as there are
  bool size_unknown = false;
};

inline std::string wav(const Wav& format, std::string_view data) {
  std::string fmt;
  put(fmt, format.extensible ? uint16_t{0xFFFE} : format.tag);
  put(fmt, format.channels);
  put(fmt, format.rate);
  put(fmt, format.rate * format.channels * format.bits / 8);
  put(fmt, static_cast<uint16_t>(format.channels * format.bits / 8));
  put(fmt, format.bits);
  if (format.extensible) {
    put(fmt, uint16_t{22});
    put(fmt, format.bits);
    put(fmt, uint32_t{0});
    put(fmt, format.tag);
    fmt += std::string("\x00\x00\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71", 14);
  }
  std::string bytes = "RIFF";
  put(bytes, uint32_t{0xFFFFFFFF});
  bytes += "WAVEfmt ";
  put(bytes, static_cast<uint32_t>(fmt.size()));
  bytes += fmt + format.before_data + "data";
  const auto size = static_cast<uint32_t>(data.size());
  put(bytes, format.size_unknown ? 0 : format.data_bytes != 0 ? format.data_bytes : size);
  return bytes.append(data);
}

struct Heard {
  Status status;
  std::vector<std::vector<float>> channels;
};

// In pieces of `chunk` bytes; 0: as one.
inline Heard hear(const AudioOptions& options, std::string_view bytes, std::size_t chunk = 0) {
  ResamplerFilters filters;
  AudioReader reader(options, filters);
  Heard heard;
  const auto read = [&] {
    while (true) {
      const Result<bool> more = reader.next();
      if (!more) {
        heard.status = more.error();
        return false;
      }
      heard.channels.resize(std::max(heard.channels.size(), reader.channels()));
      for (std::size_t i = 0; i < reader.channels(); ++i) {
        const std::span<const float> samples = reader.samples(i);
        heard.channels[i].insert(heard.channels[i].end(), samples.begin(), samples.end());
      }
      if (!*more) return true;
    }
  };
  while (!bytes.empty()) {
    // A copy of its own: what is read beyond it is found out.
    const std::string piece(bytes.substr(0, chunk == 0 ? bytes.size() : chunk));
    bytes.remove_prefix(piece.size());
    reader.feed(std::as_bytes(std::span(piece)));
    if (!read()) return heard;
  }
  reader.feed({});
  reader.end();
  read();
  return heard;
}

// How much of `actual` is `expected`, in dB; a multiple of it does not count as equal.
inline double snr_db(std::span<const float> expected, std::span<const float> actual) {
  double signal = 0;
  double noise = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    signal += static_cast<double>(expected[i]) * expected[i];
    const double d = static_cast<double>(actual[i]) - expected[i];
    noise += d * d;
  }
  return 10 * std::log10(signal / std::max(noise, 1e-30));
}

}  // namespace headrace::testing
