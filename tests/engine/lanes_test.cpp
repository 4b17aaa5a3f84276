#include "troupe/engine/lanes.hpp"

#include <algorithm>
#include <set>
#include <tuple>
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

using Kind = StageLane::Kind;

/// All rows of a shard and its like, of `row_count` each.
StageLane whole_lane(Kind kind, std::uint32_t replica, std::uint32_t shard, std::uint32_t lower,
                     std::uint32_t upper, std::uint64_t row_count) {
  return {.kind = kind,
          .lower = {replica, shard, StageIndex{lower}},
          .upper = {replica, shard, StageIndex{upper}},
          .up = {0, 0, row_count},
          .down = {0, 0, row_count},
          .is_whole = true};
}

constexpr std::uint64_t tokens = 4 * 4;  // Of a microbatch.
constexpr std::uint64_t words = 256;

TEST(Lanes, JoinNeighboursAndTheEndsOfATiedModelInEachReplica) {
  const auto plan = plan_of(2, 2, 2, true);
  const auto lanes = lanes_of(plan);
  ASSERT_EQ(lanes.size(), 2U * (3 + 1));
  EXPECT_EQ(lanes[4], whole_lane(Kind::neighbours, 1, 0, 0, 1, tokens));
  EXPECT_EQ(lanes[7], whole_lane(Kind::tied, 1, 0, 0, 3, words));
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
  EXPECT_EQ(lanes[1], whole_lane(Kind::tied, 0, 0, 0, 1, words));
  EXPECT_EQ(lanes[2], whole_lane(Kind::neighbours, 0, 0, 2, 3, tokens));
  EXPECT_EQ(lanes[3], whole_lane(Kind::tied, 0, 0, 2, 3, words));

  EXPECT_EQ(plan.holder_count(), 4U);
  const auto holder = holder_of(plan, {0, 0}, 3);  // The second copy in the second replica.
  EXPECT_EQ(holder.place, (StagePlace{1, 0, StageIndex{2}}));
  EXPECT_EQ(holder.rank, rank_at(config.parallel, {1, 0, RankIndex{1}}));
  EXPECT_EQ(ranks_holding(plan, {0, 0}), (std::vector<std::uint32_t>{0, 2, 1, 3}))
      << "ranks 0 and 1 are the replicas of pipeline rank 0";
}

TEST(Lanes, JoinEachShardToItsLike) {
  auto config = plan_of(2, 2, 1, true).config;
  config.model.heads = 2;
  config.parallel.tensor = 2;
  const auto plan = make_plan(config).value();
  const auto lanes = lanes_of(plan);
  ASSERT_EQ(lanes.size(), 4U * 2);
  EXPECT_EQ(lanes[5], whole_lane(Kind::neighbours, 1, 1, 0, 1, tokens));
  EXPECT_EQ(lanes[7], whole_lane(Kind::tied, 1, 1, 0, 1, words / 2));
  EXPECT_EQ(plan.holder_count(), 2U);
  const auto holder = holder_of(plan, {.position = 1, .shard = 1}, 1);
  EXPECT_EQ(holder.rank, rank_at(config.parallel, {1, 1, RankIndex{1}}));
  EXPECT_EQ(holder.place, (StagePlace{1, 1, StageIndex{1}}));
  const std::vector shards{rank_at(config.parallel, {1, 0, RankIndex{1}}), holder.rank};
  EXPECT_EQ(ranks_of_shards(plan, 1, RankIndex{1}), shards);
}

/// A plan whose ranks have numbers of shards of their own.
Plan uneven_plan(const ShardCounts& tensor, bool divides_rows) {
  auto config = plan_of(1, 2, 1, true).config;
  config.model.heads = config.model.feed_forward = 12;
  config.model.hidden = 48;
  config.model.sequence = 12;
  config.parallel.tensor = tensor;
  config.train.sequence_parallel = divides_rows;
  return make_plan(config).value();
}

std::vector<StageLane> lanes_of_kind(const Plan& plan, Kind kind) {
  auto lanes = lanes_of(plan);
  std::erase_if(lanes, [&](const StageLane& lane) { return lane.kind != kind; });
  return lanes;
}

TEST(Lanes, LetOneOfSeveralEqualShardsSend) {
  const auto plan = uneven_plan({2, 1}, false);
  const auto lanes = lanes_of_kind(plan, Kind::neighbours);
  constexpr LaneRows all{0, 0, 48};
  ASSERT_EQ(lanes.size(), 2U);
  EXPECT_EQ(lanes[0].up, all);
  EXPECT_EQ(lanes[0].down, all);
  EXPECT_EQ(lanes[1].lower, (StagePlace{0, 1, StageIndex{0}}));
  EXPECT_EQ(lanes[1].upper, (StagePlace{0, 0, StageIndex{1}}));
  EXPECT_EQ(lanes[1].up, LaneRows{}) << "shard 0 sends the same";
  EXPECT_EQ(lanes[1].down, all);
  EXPECT_FALSE(lanes[0].is_whole) << "the gradient goes to two";
}

TEST(Lanes, CarryTheRowsThatBothShardsHave) {
  const auto plan = uneven_plan({1, 3}, true);
  const auto lanes = lanes_of_kind(plan, Kind::neighbours);
  ASSERT_EQ(lanes.size(), 3U);
  for (std::uint32_t shard = 0; shard < 3; ++shard) {
    EXPECT_EQ(lanes[shard].upper.shard, shard);
    EXPECT_EQ(lanes[shard].up, (LaneRows{shard * std::uint64_t{16}, 0, 16}));
    EXPECT_EQ(lanes[shard].down, lanes[shard].up);
  }
}

/// Whatever the counts: every shard gets every row that it has exactly once, from somebody who has
/// it, and in the right place.
TEST(Lanes, BringEveryRowOnceToEveryShardThatHasIt) {
  for (const bool divides_rows : {false, true}) {
    for (std::uint32_t a : {1U, 2U, 3U, 4U, 6U}) {
      for (std::uint32_t b : {1U, 2U, 3U, 4U, 6U}) {
        const auto plan = uneven_plan({a, b}, divides_rows);
        for (const auto kind : {Kind::neighbours, Kind::tied}) {
          SCOPED_TRACE(testing::Message() << a << " to " << b << " rows " << divides_rows
                                          << " tied " << (kind == Kind::tied));
          const std::uint64_t rows = kind == Kind::tied ? words : 48;
          const bool divided = kind == Kind::tied || divides_rows;
          const auto first_of = [&](std::uint32_t shard, std::uint32_t count) {
            return divided ? (rows * shard + count - 1) / count : 0;
          };
          const auto end_of = [&](std::uint32_t shard, std::uint32_t count) {
            return divided ? first_of(shard + 1, count) : rows;
          };
          std::vector<std::multiset<std::uint64_t>> up(b);
          std::vector<std::multiset<std::uint64_t>> down(a);
          const auto lanes = lanes_of_kind(plan, kind);
          for (const auto& lane : lanes) {
            const auto lower = lane.lower.shard;
            const auto upper = lane.upper.shard;
            EXPECT_EQ(lane.is_whole, a == b);
            for (const auto* way : {&lane.up, &lane.down}) {
              for (std::uint64_t i = 0; i < way->count; ++i) {
                const auto row = first_of(lower, a) + way->in_lower + i;
                EXPECT_EQ(row, first_of(upper, b) + way->in_upper + i);
                EXPECT_LT(row, std::min(end_of(lower, a), end_of(upper, b)));
                (way == &lane.up ? up[upper] : down[lower]).insert(row);
              }
            }
          }
          for (std::uint32_t shard = 0; shard < b; ++shard) {
            EXPECT_EQ(up[shard].size(), end_of(shard, b) - first_of(shard, b));
            EXPECT_EQ(std::set(up[shard].begin(), up[shard].end()).size(), up[shard].size());
          }
          for (std::uint32_t shard = 0; shard < a; ++shard) {
            EXPECT_EQ(down[shard].size(), end_of(shard, a) - first_of(shard, a));
            EXPECT_EQ(std::set(down[shard].begin(), down[shard].end()).size(), down[shard].size());
          }
        }
      }
    }
  }
}

class LaneNumbers : public testing::TestWithParam<std::tuple<ShardCounts, Synchronization>> {};

TEST_P(LaneNumbers, AreEachOfOneLane) {
  auto config = plan_of(3, 2, 1, true).config;
  config.model.heads = 2;
  std::tie(config.parallel.tensor, config.train.synchronization) = GetParam();
  const auto plan = make_plan(config).value();
  std::set<std::uint64_t> numbers;
  std::size_t count = lanes_of(plan).size();
  for (std::uint64_t number = 0; number < count; ++number) numbers.insert(number);
  for (std::uint32_t position = 0; position < 2; ++position) {
    for (std::uint32_t shard = 0; shard < plan.shard_count(StageIndex{position}); ++shard) {
      for (std::uint32_t a = 0; a < plan.holder_count(); ++a) {
        for (std::uint32_t b = a + 1; b < plan.holder_count(); ++b, ++count) {
          const HeldPart part{position, shard};
          numbers.insert(holder_lane(plan, part, a, b));
          EXPECT_EQ(holder_lane(plan, part, a, b), holder_lane(plan, part, b, a));
        }
      }
    }
  }
  for (std::uint32_t replica = 0; replica < plan.holder_count(); ++replica) {
    for (std::uint32_t pipeline = 0; pipeline < 2; ++pipeline) {
      if (config.parallel.tensor.of(RankIndex{pipeline}) == 1) continue;
      count += 2;
      numbers.insert(shard_lane(plan, replica, RankIndex{pipeline}, 1, 0));
      numbers.insert(choice_lane(plan, replica, RankIndex{pipeline}, 1));
    }
  }
  for (std::uint32_t node = 0; node < 6; ++node, ++count) numbers.insert(weight_lane(plan, node));
  EXPECT_EQ(numbers.size(), count);
}

INSTANTIATE_TEST_SUITE_P(Lanes, LaneNumbers,
                         testing::Combine(testing::Values(ShardCounts{2}, ShardCounts{2, 1},
                                                          ShardCounts{1, 2}),
                                          testing::Values(Synchronization::all_reduce,
                                                          Synchronization::parameter_server)));

TEST(Placement, KeepsShardsTogetherThenReplicasAndSharesEqually) {
  const auto plan_of = [](const GridExtent& extent) {
    Plan plan;
    plan.config.parallel = extent;
    return plan;
  };
  const GridExtent extent{.data = 2, .tensor = 2, .pipeline = 3};
  for (std::uint32_t nodes = 1; nodes <= extent.rank_count(); ++nodes) {
    const auto node_of_rank = place_ranks(plan_of(extent), nodes);
    std::vector<std::uint32_t> rank_counts(nodes, 0);
    for (std::uint32_t rank = 0; rank < node_of_rank.size(); ++rank) {
      ++rank_counts.at(node_of_rank[rank]);
      EXPECT_TRUE(rank == 0 || node_of_rank[rank] >= node_of_rank[rank - 1]) << "blocks";
    }
    const auto [least, most] = std::minmax_element(rank_counts.begin(), rank_counts.end());
    EXPECT_LE(*most - *least, 1U) << nodes << " nodes";
  }
  // Of 2 (2 + 1 + 1) ranks, half on either of two nodes.
  const GridExtent uneven{.data = 2, .tensor = {2, 1, 1}, .pipeline = 3};
  const auto halves = place_ranks(plan_of(uneven), 2);
  EXPECT_EQ(halves[rank_at(uneven, {1, 1, RankIndex{0}})], 0U);
  EXPECT_EQ(halves[rank_at(uneven, {0, 0, RankIndex{1}})], 1U);
  const auto by_stage = place_ranks(plan_of(extent), 3);
  EXPECT_EQ(by_stage[rank_at(extent, {0, 0, RankIndex{1}})],
            by_stage[rank_at(extent, {1, 1, RankIndex{1}})]);
}

TEST(Placement, PutsServersWithTheFirstReplicaOfWhatTheyServe) {
  Plan plan;
  plan.config.parallel = {.data = 3, .tensor = {2, 1}, .pipeline = 2};
  plan.config.train.synchronization = Synchronization::parameter_server;
  const auto& extent = plan.config.parallel;
  for (std::uint32_t nodes = 1; nodes <= extent.rank_count(); ++nodes) {
    const auto node_of_rank = place_ranks(plan, nodes);
    ASSERT_EQ(node_of_rank.size(), 9U + 3U);
    for (const auto& [shard, pipeline] :
         {std::pair{0U, 0U}, std::pair{1U, 0U}, std::pair{0U, 1U}}) {
      EXPECT_EQ(node_of_rank[rank_at(extent, {3, shard, RankIndex{pipeline}})],
                node_of_rank[rank_at(extent, {0, shard, RankIndex{pipeline}})]);
    }
  }
}

}  // namespace
}  // namespace troupe
