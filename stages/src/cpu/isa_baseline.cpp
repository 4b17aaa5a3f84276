#define TROUPE_ISA baseline
#define TROUPE_VECTOR_BYTES 16
#include "isa_table.hpp"

namespace troupe::stages {

const Isa baseline_isa = baseline::make_isa("baseline");

}  // namespace troupe::stages
