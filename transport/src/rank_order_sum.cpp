#include "rank_order_sum.hpp"

#include <algorithm>
#include <array>

namespace troupe::transport {

void add_in_rank_order(std::span<const float* const> sources, std::span<float* const> targets,
                       std::size_t count) {
  constexpr std::size_t block = 1024;  // Floats added up in the first-level cache.
  std::array<float, block> sum;
  for (std::size_t begin = 0; begin < count; begin += block) {
    const auto length = std::min(block, count - begin);
    std::copy_n(sources[0] + begin, length, sum.begin());
    for (const auto* source : sources.subspan(1)) {
      const auto* addend = source + begin;
      for (std::size_t i = 0; i < length; ++i) sum[i] += addend[i];
    }
    for (auto* target : targets) std::copy_n(sum.begin(), length, target + begin);
  }
}

}  // namespace troupe::transport
