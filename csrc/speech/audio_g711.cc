#include "speech/audio_g711.h"

#include <array>
#include <cstddef>

namespace headrace {
namespace {

// Tables 2a and 2b of G.711, scaled to 16 bits: sign, three bits of exponent, four of mantissa.
constexpr float mulaw(std::size_t code) {
  const auto bits = static_cast<uint32_t>(~code & 0xFF);  // written inverted
  const uint32_t exponent = bits >> 4 & 7;
  const auto magnitude = static_cast<int32_t>((((bits & 0x0F) << 3) + 0x84) << exponent) - 0x84;
  return static_cast<float>((bits & 0x80) != 0 ? -magnitude : magnitude) / 32768.0F;
}

constexpr float alaw(std::size_t code) {
  const auto bits = static_cast<uint32_t>(code ^ 0x55);  // every other bit is written inverted
  const uint32_t exponent = bits >> 4 & 7;
  const uint32_t mantissa = ((bits & 0x0F) << 4) + 8;
  const auto magnitude =
      static_cast<int32_t>(exponent == 0 ? mantissa : (mantissa + 0x100) << (exponent - 1));
  return static_cast<float>((bits & 0x80) != 0 ? magnitude : -magnitude) / 32768.0F;
}

template <float (*kSample)(std::size_t)>
constexpr std::array<float, 256> table() {
  std::array<float, 256> samples{};
  for (std::size_t i = 0; i < samples.size(); ++i) samples[i] = kSample(i);
  return samples;
}

constexpr std::array<float, 256> kMulaw = table<mulaw>();
constexpr std::array<float, 256> kAlaw = table<alaw>();

}  // namespace

float mulaw_sample(uint8_t code) { return kMulaw[code]; }
float alaw_sample(uint8_t code) { return kAlaw[code]; }

}  // namespace headrace
