#include "troupe/storage/masking.hpp"

#include <algorithm>

#include "troupe/engine/check.hpp"
#include "troupe/engine/random.hpp"
#include "troupe/storage/sampler.hpp"

namespace troupe::storage {

std::uint32_t masked_count_of(std::uint32_t sequence) noexcept {
  return static_cast<std::uint32_t>(std::max<std::uint64_t>(1, std::uint64_t{15} * sequence / 100));
}

std::uint64_t masking_key(std::uint64_t seed, std::uint64_t sample) noexcept {
  return mixed(seed, sample);
}

void mask_tokens(std::uint64_t key, std::int32_t mask, std::span<std::int32_t> tokens,
                 std::span<std::int32_t> targets) {
  TROUPE_ASSERT(!tokens.empty() && targets.size() == tokens.size() && mask > 0);
  std::ranges::fill(targets, -1);
  const auto count = masked_count_of(static_cast<std::uint32_t>(tokens.size()));
  for (std::uint32_t i = 0; i < count; ++i) {
    const auto position = permuted(i, tokens.size(), key);
    auto& token = tokens[position];
    targets[position] = token;
    Random random{key ^ (position + 1)};
    const auto chance = random.below(10);
    if (chance < 8) {
      token = mask;
    } else if (chance == 8) {
      token = static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(mask)));
    }
  }
}

}  // namespace troupe::storage
