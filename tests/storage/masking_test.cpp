#include "troupe/storage/masking.hpp"

#include <algorithm>
#include <numeric>
#include <set>
#include <vector>

#include <gtest/gtest.h>

namespace troupe::storage {
namespace {

constexpr std::int32_t mask = 256;

struct Masked {
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> targets;

  friend bool operator==(const Masked&, const Masked&) = default;
};

/// Of the tokens 0, 1, 2, ...
Masked masked(std::uint32_t sequence, std::uint64_t key) {
  Masked result{std::vector<std::int32_t>(sequence), std::vector<std::int32_t>(sequence, 77)};
  std::iota(result.tokens.begin(), result.tokens.end(), 0);
  mask_tokens(key, mask, result.tokens, result.targets);
  return result;
}

TEST(Masking, HidesFifteenOfAHundredTokensAndAtLeastOne) {
  EXPECT_EQ(masked_count_of(1), 1U);
  EXPECT_EQ(masked_count_of(13), 1U);
  EXPECT_EQ(masked_count_of(14), 2U);
  EXPECT_EQ(masked_count_of(128), 19U);
  for (const std::uint32_t sequence : {1U, 7U, 100U}) {
    for (std::uint64_t sample = 0; sample < 50; ++sample) {
      const auto targets = masked(sequence, masking_key(1, sample)).targets;
      EXPECT_EQ(std::ranges::count_if(targets, [](auto t) { return t >= 0; }),
                static_cast<std::ptrdiff_t>(masked_count_of(sequence)));
    }
  }
}

TEST(Masking, ReplacesEightInTenByTheMaskAndOneByAnyToken) {
  std::uint32_t hidden = 0;
  std::uint32_t kept = 0;
  std::uint32_t others = 0;
  std::set<std::int32_t> positions;
  for (std::uint64_t sample = 0; sample < 1000; ++sample) {
    const auto [tokens, targets] = masked(200, masking_key(5, sample));
    for (std::int32_t i = 0; i < 200; ++i) {
      const auto at = static_cast<std::size_t>(i);
      if (targets[at] < 0) {
        EXPECT_EQ(tokens[at], i) << "is not to be told";
        continue;
      }
      EXPECT_EQ(targets[at], i) << "what it was";
      positions.insert(i);
      if (tokens[at] == mask) {
        ++hidden;
      } else if (tokens[at] == i) {
        ++kept;
      } else {
        ++others;
        EXPECT_GE(tokens[at], 0);
        EXPECT_LT(tokens[at], mask);
      }
    }
  }
  EXPECT_EQ(hidden + kept + others, 30'000U);
  // Three standard deviations; any token is now and then the one that was there.
  EXPECT_NEAR(hidden, 24'000, 210);
  EXPECT_NEAR(kept, 3'000 + 3'000 / 256, 160);
  EXPECT_EQ(positions.size(), 200U) << "everywhere";
}

TEST(Masking, DependsOnSeedAndSampleAlone) {
  EXPECT_EQ(masked(64, masking_key(3, 17)), masked(64, masking_key(3, 17)));
  EXPECT_NE(masked(64, masking_key(3, 17)), masked(64, masking_key(3, 18)));
  EXPECT_NE(masked(64, masking_key(3, 17)), masked(64, masking_key(4, 17)));
}

}  // namespace
}  // namespace troupe::storage
