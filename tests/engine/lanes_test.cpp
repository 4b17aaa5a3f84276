#include "troupe/engine/lanes.hpp"

#include <algorithm>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/engine/schedule_text.hpp"

namespace troupe {
namespace {

Plan plan_of(std::uint32_t data, std::uint32_t pipeline, std::uint32_t chunks, bool tied) {
  Config config;
  config.model = {.layers = 8, .heads = 1, .hidden = 4, .sequence = 4, .tie_embeddings = tied};
  config.parallel = {.data = data, .tensor = 1, .pipeline = pipeline};
  config.schedule.chunks = chunks;
  config.schedule.name = chunks > 1 ? "interleaved-1f1b" : "1f1b";
  return make_plan(config).value();
}

TEST(Lanes, JoinNeighboursAndTheEndsOfATiedModelInEachReplica) {
  const auto plan = plan_of(2, 2, 2, true);
  const auto lanes = lanes_of(plan);
  ASSERT_EQ(lanes.size(), 2U * (3 + 1));
  EXPECT_EQ(lanes[4], (StageLane{StageLane::Kind::neighbours, 1, StageIndex{0}, StageIndex{1}}));
  EXPECT_EQ(lanes[7], (StageLane{StageLane::Kind::tied, 1, StageIndex{0}, StageIndex{3}}));
  EXPECT_EQ(lanes_of(plan_of(2, 2, 2, false)).size(), 6U);
  EXPECT_TRUE(lanes_of(plan_of(1, 1, 1, true)).empty()) << "one stage holds both halves";
}

TEST(Lanes, StayWithinACopyOfTheModel) {
  auto config = plan_of(2, 2, 1, true).config;
  config.schedule.microbatches = 2;
  const auto schedule = from_csv("0F0,0B0,3F1,3B1\n1F0,1B0,2F1,2B1\n", "two directions");
  const auto plan = make_plan(config, *schedule).value();
  const auto lanes = lanes_of(plan);
  ASSERT_EQ(lanes.size(), 2U * 4);
  EXPECT_EQ(lanes[1], (StageLane{StageLane::Kind::tied, 0, StageIndex{0}, StageIndex{1}}));
  EXPECT_EQ(lanes[2], (StageLane{StageLane::Kind::neighbours, 0, StageIndex{2}, StageIndex{3}}));
  EXPECT_EQ(lanes[3], (StageLane{StageLane::Kind::tied, 0, StageIndex{2}, StageIndex{3}}));

  EXPECT_EQ(plan.holder_count(), 4U);
  const auto holder = holder_of(plan, {0, 0}, 3);  // The second copy in the second replica.
  EXPECT_EQ(holder.line, 1U);
  EXPECT_EQ(holder.stage, StageIndex{2});
  EXPECT_EQ(holder.rank, rank_at(config.parallel, {1, 0, RankIndex{1}}));
}

TEST(Lanes, JoinEachShardToItsLike) {
  auto config = plan_of(2, 2, 1, true).config;
  config.model.heads = 2;
  config.parallel.tensor = 2;
  const auto plan = make_plan(config).value();
  const auto lanes = lanes_of(plan);
  ASSERT_EQ(lanes.size(), 4U * 2);
  EXPECT_EQ(lanes[6], (StageLane{StageLane::Kind::neighbours, 3, StageIndex{0}, StageIndex{1}}));
  EXPECT_EQ(plan.holder_count(), 2U);
  const auto holder = holder_of(plan, {.position = 1, .shard = 1}, 1);
  EXPECT_EQ(holder.rank, rank_at(config.parallel, {1, 1, RankIndex{1}}));
  EXPECT_EQ(holder.line, 3U);
}

TEST(Lanes, HaveNumbersOfTheirOwn) {
  auto config = plan_of(3, 2, 1, true).config;
  config.model.heads = 2;
  config.parallel.tensor = 2;
  const auto plan = make_plan(config).value();
  std::set<std::uint64_t> numbers;
  std::size_t count = lanes_of(plan).size();
  for (std::uint64_t number = 0; number < count; ++number) numbers.insert(number);
  for (std::uint32_t position = 0; position < 2; ++position) {
    for (std::uint32_t shard = 0; shard < 2; ++shard) {
      for (std::uint32_t a = 0; a < 3; ++a) {
        for (std::uint32_t b = a + 1; b < 3; ++b, ++count) {
          const HeldPart part{position, shard};
          numbers.insert(holder_lane(plan, part, a, b));
          EXPECT_EQ(holder_lane(plan, part, a, b), holder_lane(plan, part, b, a));
        }
      }
    }
  }
  for (std::uint32_t replica = 0; replica < 3; ++replica) {
    for (std::uint32_t pipeline = 0; pipeline < 2; ++pipeline, count += 2) {
      numbers.insert(shard_lane(plan, replica, RankIndex{pipeline}, 1, 0));
      numbers.insert(choice_lane(plan, replica, RankIndex{pipeline}, 1));
    }
  }
  for (std::uint32_t node = 0; node < 6; ++node, ++count) numbers.insert(weight_lane(plan, node));
  EXPECT_EQ(numbers.size(), count);
}

TEST(Placement, KeepsShardsTogetherThenReplicasAndSharesEqually) {
  const GridExtent extent{.data = 2, .tensor = 2, .pipeline = 3};
  for (std::uint32_t nodes = 1; nodes <= extent.rank_count(); ++nodes) {
    const auto node_of_rank = place_ranks(extent, nodes);
    std::vector<std::uint32_t> rank_counts(nodes, 0);
    for (std::uint32_t rank = 0; rank < node_of_rank.size(); ++rank) {
      ++rank_counts.at(node_of_rank[rank]);
      EXPECT_TRUE(rank == 0 || node_of_rank[rank] >= node_of_rank[rank - 1]) << "blocks";
    }
    const auto [least, most] = std::minmax_element(rank_counts.begin(), rank_counts.end());
    EXPECT_LE(*most - *least, 1U) << nodes << " nodes";
  }
  const auto by_stage = place_ranks(extent, 3);
  EXPECT_EQ(by_stage[rank_at(extent, {0, 0, RankIndex{1}})],
            by_stage[rank_at(extent, {1, 1, RankIndex{1}})]);
}

}  // namespace
}  // namespace troupe
