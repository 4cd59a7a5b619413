// Stands for int8_tables_x86.cc on other processors.
#include "kernels/int8_table.h"

namespace headrace {

const Int8Table* int8_table(Isa isa) {
  return isa == Isa::kReference ? int8_reference_table() : nullptr;
}

}  // namespace headrace
