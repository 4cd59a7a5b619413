#include "kernels/int8_table.h"

namespace headrace {

const Int8Table* int8_table(Isa isa) {
  switch (isa) {
    case Isa::kReference:
      return int8_reference_table();
    case Isa::kAvx2:
      return int8_avx2_table();
    case Isa::kAvxVnni:
      return int8_avx_vnni_table();
    case Isa::kAvx512Vnni:
      return int8_avx512_vnni_table();
  }
  return nullptr;
}

}  // namespace headrace
