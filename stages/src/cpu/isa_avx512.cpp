#define TROUPE_ISA avx512
#define TROUPE_VECTOR_BYTES 64
#include "isa_table.hpp"

namespace troupe::stages {

const Isa avx512_isa = avx512::make_isa("avx512");

}  // namespace troupe::stages
