// G.711 (ITU-T): eight bits to a sample of 14 (mu-law) or 13 (A-law) bits, here as f32 in [-1, 1].
#pragma once

#include <cstdint>

namespace headrace {

float mulaw_sample(uint8_t code);
float alaw_sample(uint8_t code);

}  // namespace headrace
