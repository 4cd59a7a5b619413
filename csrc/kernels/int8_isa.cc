#include "kernels/int8_isa.h"

#include "kernels/int8_table.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace headrace {
namespace {

#if defined(__x86_64__)
bool cpu_has(Isa isa) {
  // __builtin_cpu_supports() also asks whether the operating system keeps the registers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  switch (isa) {
    case Isa::kReference:
      return true;
    case Isa::kAvx2:
      return avx2;
    case Isa::kAvxVnni: {
      unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
      return avx2 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax >> 4 & 1) != 0;
    }
    case Isa::kAvx512Vnni:
      return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vnni");
  }
  return false;
}
#else
bool cpu_has(Isa isa) { return isa == Isa::kReference; }
#endif

}  // namespace

bool has_isa(Isa isa) { return int8_table(isa) != nullptr && cpu_has(isa); }

Isa best_isa() {
  static const Isa best = [] {
    for (const Isa isa : {Isa::kAvx512Vnni, Isa::kAvxVnni, Isa::kAvx2}) {
      if (has_isa(isa)) return isa;
    }
    return Isa::kReference;
  }();
  return best;
}

std::vector<Isa> available_isas() {
  std::vector<Isa> isas;
  for (const Isa isa : {Isa::kReference, Isa::kAvx2, Isa::kAvxVnni, Isa::kAvx512Vnni}) {
    if (has_isa(isa)) isas.push_back(isa);
  }
  return isas;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kReference:
      return "reference";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvxVnni:
      return "avx-vnni";
    case Isa::kAvx512Vnni:
      return "avx512-vnni";
  }
  return "unknown";
}

}  // namespace headrace
