#define TROUPE_ISA avx2
#define TROUPE_VECTOR_BYTES 32
#include "isa_table.hpp"

namespace troupe::stages {

const Isa avx2_isa = avx2::make_isa("avx2");

}  // namespace troupe::stages
