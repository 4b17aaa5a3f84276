#include "isa.hpp"

#include <vector>

namespace troupe::stages {

std::span<const Isa* const> available_isas() {
  static const std::vector<const Isa*> isas = [] {
    std::vector<const Isa*> found{&baseline_isa};
#ifdef TROUPE_X86_64
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      found.push_back(&avx2_isa);
      if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")
          && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
        found.push_back(&avx512_isa);
      }
    }
#endif
    return found;
  }();
  return isas;
}

}  // namespace troupe::stages
