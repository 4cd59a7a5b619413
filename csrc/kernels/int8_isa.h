// Isa: which instructions the INT8 kernels use. Chosen once by CPUID; each can be forced where the
// processor has it, so that one machine tests several.
//
// Threads: any.
#pragma once

#include <cstdint>
#include <vector>

namespace headrace {

enum class Isa : uint8_t {
  kReference,   // portable C++: slow, what the others are compared with
  kAvx2,        // vpmaddubsw, two products an int16: needs the pairing of int8_pack.h
  kAvxVnni,     // vpdpbusd on 256 bits
  kAvx512Vnni,  // vpdpbusd on 512 bits
};

// The fastest that this processor and this build have.
Isa best_isa();
bool has_isa(Isa isa);
// Those that has_isa(), the reference first.
std::vector<Isa> available_isas();
const char* isa_name(Isa isa);  // "avx512-vnni"

}  // namespace headrace
