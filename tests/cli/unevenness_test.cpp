#include "unevenness.hpp"

#include <cmath>

#include <gtest/gtest.h>

namespace troupe::cli {
namespace {

/// Passes that usually take 100 ns, one behind the other, each by such a factor longer.
std::vector<TimedPass> passes_of(const std::vector<double>& factors, std::int64_t begin_ns = 0) {
  std::vector<TimedPass> passes;
  for (const auto factor : factors) {
    const auto end_ns = begin_ns + std::llround(100.0 * factor);
    passes.push_back({begin_ns, end_ns, 100.0});
    begin_ns = end_ns;
  }
  return passes;
}

TEST(Unevenness, AStepSlowsAnActorByWhatItsPassesTookOverTheMean) {
  const auto found = unevenness_of({{passes_of({1.5, 1.5}), passes_of({0.75, 0.75})},
                                    {passes_of({0.5, 0.5}), passes_of({1.25, 1.25})}});
  EXPECT_EQ(found.slowdowns, (std::vector<std::vector<double>>{{1.5, 0.75}, {0.5, 1.25}}));
  EXPECT_EQ(found.pass_spread, 0.0);
}

TEST(Unevenness, LongPassesCountForMore) {
  auto passes = passes_of({2.0});
  passes.push_back({200, 600, 400.0});
  const auto found = unevenness_of({{passes}, {passes_of({0.8})}});
  EXPECT_EQ(found.slowdowns, (std::vector<std::vector<double>>{{1.2}, {0.8}}));
}

TEST(Unevenness, WhatActorsShareIsNoSpread) {
  const std::vector<double> factors{0.8, 1.2, 1.1, 0.9};
  EXPECT_NEAR(unevenness_of({{passes_of(factors), passes_of(factors)}}).pass_spread, 0.0, 1e-12);
}

TEST(Unevenness, WhatTheyDoNotShareIs) {
  const std::vector<double> steady(6, 1.0);
  // The first meets 1.0 all the time, and differs by 0.2; the second meets 0.8 and 1.2 in parts.
  const std::vector<double> shaken{0.8, 1.2, 0.8, 1.2, 0.8, 1.2};
  const auto found = unevenness_of({{passes_of(shaken), passes_of(steady)}});
  EXPECT_GT(found.pass_spread, 0.9 * 0.2 / std::sqrt(2.0));
  EXPECT_LT(found.pass_spread, 0.2 / std::sqrt(2.0));
  const auto opposite = unevenness_of(
      {{passes_of({0.8, 1.2, 0.8, 1.2, 0.8, 1.2}), passes_of({1.2, 0.8, 1.2, 0.8, 1.2, 0.8})}});
  EXPECT_GT(opposite.pass_spread, found.pass_spread);
}

TEST(Unevenness, APassThatRunsAloneSaysNothingOfWhatIsShared) {
  const std::vector<double> shaken{0.8, 1.2};
  EXPECT_EQ(unevenness_of({{passes_of(shaken)}}).pass_spread, 0.0);
  EXPECT_EQ(unevenness_of({{passes_of(shaken), passes_of(shaken, 200)}}).pass_spread, 0.0);
  // Two meet for a part of either.
  EXPECT_EQ(unevenness_of({{passes_of(shaken), passes_of(shaken, 150)}}).pass_spread, 0.0);
}

TEST(Unevenness, KeepsStepsFromAllOverTheTime) {
  std::vector<StepPasses> steps;
  for (int i = 0; i < 1000; ++i) {
    // Those that are kept may all be slow ones by chance.
    steps.push_back({passes_of({(i < 500 ? 0.5 : 1.5) * (i % 4 == 0 ? 2.0 : 1.0)})});
  }
  const auto slowdowns = unevenness_of(steps).slowdowns;
  ASSERT_LE(slowdowns.size(), 256U);
  ASSERT_GE(slowdowns.size(), 128U);
  EXPECT_NEAR(slowdowns.front().front(), 0.5, 0.01);
  EXPECT_NEAR(slowdowns.back().front(), 1.5, 0.01);
  auto sum = 0.0;
  for (const auto& of_step : slowdowns) sum += of_step.front();
  EXPECT_NEAR(sum / static_cast<double>(slowdowns.size()), 1.0, 1e-12);
}

}  // namespace
}  // namespace troupe::cli
