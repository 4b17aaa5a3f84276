#include "troupe/engine/partition.hpp"

#include <algorithm>
#include <array>
#include <functional>
#include <limits>

#include <gtest/gtest.h>

#include "troupe/engine/random.hpp"

namespace troupe {
namespace {

std::vector<std::uint32_t> counts_of(const Partition& partition) {
  std::vector<std::uint32_t> counts;
  for (const auto& stage : partition) counts.push_back(stage.layer_count());
  return counts;
}

ModelSpec with_layers(std::uint32_t layers) {
  ModelSpec model;
  model.layers = layers;
  return model;
}

/// As many stages, where everything costs the same.
std::vector<PartCosts> everywhere(std::uint32_t stage_count, const PartCosts& costs = {}) {
  return std::vector(stage_count, costs);
}

double costliest(std::span<const std::uint32_t> counts, std::span<const PartCosts> costs) {
  double most = 0.0;
  for (std::size_t stage = 0; stage < counts.size(); ++stage) {
    most = std::max(most, (stage == 0 ? costs[stage].embedding : 0.0)
                              + (stage + 1 == counts.size() ? costs[stage].head : 0.0)
                              + costs[stage].layer * counts[stage]);
  }
  return most;
}

/// The cheapest costliest stage over every way to split.
double costliest_of_best(std::uint32_t layers, std::span<const PartCosts> costs) {
  const auto stages = costs.size();
  double best = std::numeric_limits<double>::infinity();
  std::vector<std::uint32_t> counts;
  const std::function<void(std::uint32_t)> split = [&](std::uint32_t left) {
    if (counts.size() + 1 == stages) {
      counts.push_back(left);
      best = std::min(best, costliest(counts, costs));
      counts.pop_back();
      return;
    }
    const auto stages_after = static_cast<std::uint32_t>(stages - counts.size() - 1);
    for (std::uint32_t count = 1; count + stages_after <= left; ++count) {
      counts.push_back(count);
      split(left - count);
      counts.pop_back();
    }
  };
  split(layers);
  return best;
}

TEST(Partition, GivesEarlierStagesMoreLayersWhenSplitsAreEqual) {
  const auto partition = balance(with_layers(8), everywhere(3));
  ASSERT_TRUE(partition);
  EXPECT_EQ(*partition, (Partition{{.layer_begin = 0, .layer_end = 3, .has_embedding = true},
                                   {.layer_begin = 3, .layer_end = 6},
                                   {.layer_begin = 6, .layer_end = 8, .has_head = true}}));
}

TEST(Partition, IsEvenAmongSplitsWithTheSameCostliestStage) {
  EXPECT_EQ(counts_of(*balance(with_layers(7), everywhere(3))),
            (std::vector<std::uint32_t>{3, 2, 2}));
}

TEST(Partition, TakesLayersFromTheStagesThatHaveTheEnds) {
  EXPECT_EQ(counts_of(*balance(with_layers(12),
                               everywhere(4, {.embedding = 0.1, .layer = 1.0, .head = 2.5}))),
            (std::vector<std::uint32_t>{3, 4, 4, 1}));
}

TEST(Partition, OfOneStageHasEverything) {
  EXPECT_EQ(
      *balance(with_layers(5), everywhere(1, {.head = 3.0})),
      (Partition{{.layer_begin = 0, .layer_end = 5, .has_embedding = true, .has_head = true}}));
}

TEST(Partition, HasTheCheapestCostliestStageOfAllSplits) {
  constexpr std::uint64_t seed = 7;
  Random random{seed};
  for (std::uint32_t layers = 1; layers <= 10; ++layers) {
    for (std::uint32_t stages = 1; stages <= std::min(layers, 5U); ++stages) {
      for (int repeat = 0; repeat < 20; ++repeat) {
        const PartCosts one{.embedding = 0.25 * static_cast<double>(random.below(9)),
                            .layer = 0.25 * static_cast<double>(1 + random.below(8)),
                            .head = 0.25 * static_cast<double>(random.below(33))};
        auto costs = everywhere(stages, one);
        // Half of the time each stage works at a speed of its own.
        for (auto& [embedding, layer, head] : costs) {
          const auto speed = repeat % 2 == 0 ? 1U : 1U << random.below(3);
          embedding /= speed;
          layer /= speed;
          head /= speed;
        }
        const auto counts = counts_of(*balance(with_layers(layers), costs));
        EXPECT_EQ(costliest(counts, costs), costliest_of_best(layers, costs))
            << "seed " << seed << ", " << layers << " layers, " << stages << " stages, costs "
            << one.embedding << ' ' << one.layer << ' ' << one.head;
      }
    }
  }
}

TEST(Partition, RefusesFewerLayersThanStages) {
  const auto partition = balance(with_layers(3), everywhere(4));
  ASSERT_FALSE(partition);
  EXPECT_EQ(partition.error().code, Errc::invalid_config);
  EXPECT_EQ(partition.error().context,
            "the model has 3 layers, too few for 4 virtual stages of at least one layer each: use "
            "fewer stages or chunks, or more layers");
}

TEST(Partition, FollowsAnExplicitList) {
  const std::array<std::uint32_t, 3> list{1, 3, 2};
  const auto partition = partition_of(with_layers(6), 3, list);
  ASSERT_TRUE(partition);
  EXPECT_EQ(*partition, (Partition{{.layer_begin = 0, .layer_end = 1, .has_embedding = true},
                                   {.layer_begin = 1, .layer_end = 4},
                                   {.layer_begin = 4, .layer_end = 6, .has_head = true}}));
}

TEST(Partition, RefusesAListThatDoesNotFit) {
  const auto message = [](std::vector<std::uint32_t> list) {
    const auto partition = partition_of(with_layers(6), 3, list);
    return partition ? std::string{"accepted"} : partition.error().context;
  };
  EXPECT_EQ(message({3, 3}),
            "layers_per_stage = [3, 3] has 2 entries; give one for each of the 3 virtual stages");
  EXPECT_EQ(message({3, 0, 3}),
            "layers_per_stage = [3, 0, 3] gives virtual stage 1 no layer; every stage needs at "
            "least one");
  EXPECT_EQ(message({1, 2, 4}),
            "layers_per_stage = [1, 2, 4] adds up to 7 layers; the model has 6");
  EXPECT_EQ(message({4294967295U, 1, 6}),
            "layers_per_stage = [4294967295, 1, 6] adds up to 4294967302 layers; the model has 6");
}

}  // namespace
}  // namespace troupe
