#include "rank_order_sum.hpp"

#include <algorithm>
#include <array>

namespace troupe::transport {

namespace {

/// `target` is `one` or `other` or overlaps neither.
void add(const float* one, const float* other, float* target, std::size_t count) {
#pragma GCC ivdep
  for (std::size_t i = 0; i < count; ++i) target[i] = one[i] + other[i];
}

}  // namespace

void add_in_rank_order(std::span<const float* const> sources, std::span<float* const> targets,
                       std::size_t count) {
  constexpr std::size_t block = 1024;  // Floats added up in the first-level cache.
  std::array<float, block> sum;
  for (std::size_t begin = 0; begin < count; begin += block) {
    const auto length = std::min(block, count - begin);
    const auto* so_far = sources[0] + begin;
    for (std::size_t s = 1; s < sources.size(); ++s) {
      auto* const target = s + 1 == sources.size() ? targets[0] + begin : sum.data();
      add(so_far, sources[s] + begin, target, length);
      so_far = target;
    }
    for (auto* target : targets) {
      if (target + begin != so_far) std::copy_n(so_far, length, target + begin);
    }
  }
}

}  // namespace troupe::transport
