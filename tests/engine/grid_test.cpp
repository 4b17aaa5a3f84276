#include "troupe/engine/grid.hpp"

#include <algorithm>
#include <vector>

#include <gtest/gtest.h>

namespace troupe {
namespace {

constexpr std::uint32_t axis_max = 4;

/// Calls `body(extent)` for every grid with axes of one to four ranks, and for those of up to three
/// pipeline ranks whose stages have numbers of shards of their own.
template <class Body>
void for_every_grid(Body body) {
  const auto call = [&](const GridExtent& extent) {
    SCOPED_TRACE(testing::Message() << "data=" << extent.data << " tensor="
                                    << to_string(extent.tensor) << " pipeline=" << extent.pipeline);
    body(extent);
  };
  for (std::uint32_t data = 1; data <= axis_max; ++data) {
    for (std::uint32_t tensor = 1; tensor <= axis_max; ++tensor) {
      for (std::uint32_t pipeline = 1; pipeline <= axis_max; ++pipeline) {
        call({.data = data, .tensor = tensor, .pipeline = pipeline});
      }
      for (std::uint32_t second = 1; second <= axis_max; ++second) {
        call({.data = data, .tensor = {tensor, second}, .pipeline = 2});
        call({.data = data, .tensor = {tensor, second, tensor}, .pipeline = 3});
      }
    }
  }
}

TEST(Grid, RanksAndCoordinatesAreOneToOne) {
  for_every_grid([](const GridExtent& extent) {
    std::vector<bool> seen(extent.rank_count(), false);
    for (std::uint32_t replica = 0; replica < extent.data; ++replica) {
      for (std::uint32_t p = 0; p < extent.pipeline; ++p) {
        for (std::uint32_t shard = 0; shard < extent.tensor.of(RankIndex{p}); ++shard) {
          const Coordinate at{replica, shard, RankIndex{p}};
          const auto rank = rank_at(extent, at);
          ASSERT_LT(rank, extent.rank_count());
          EXPECT_FALSE(seen[rank]) << "rank " << rank << " is in two places";
          seen[rank] = true;
          EXPECT_EQ(coordinate_of(extent, rank), at);
        }
      }
    }
    EXPECT_EQ(std::ranges::count(seen, false), 0);
  });
}

TEST(Grid, ServersHaveTheNumbersBeyondItsRanksAsOneReplicaWould) {
  for_every_grid([](const GridExtent& extent) {
    auto next = extent.rank_count();
    for (std::uint32_t p = 0; p < extent.pipeline; ++p) {
      for (std::uint32_t shard = 0; shard < extent.tensor.of(RankIndex{p}); ++shard, ++next) {
        const Coordinate server{extent.data, shard, RankIndex{p}};
        EXPECT_EQ(rank_at(extent, server), next);
        EXPECT_EQ(coordinate_of(extent, next), server);
      }
    }
    EXPECT_EQ(next, extent.rank_count() + extent.rank_count() / extent.data);
  });
}

TEST(Grid, ShardsAreNeighboursThenReplicasThenPipelineRanks) {
  for_every_grid([](const GridExtent& extent) {
    for (std::uint32_t rank = 0; rank + 1 < extent.rank_count(); ++rank) {
      const auto at = coordinate_of(extent, rank);
      auto next = at;
      if (++next.shard == extent.tensor.of(at.pipeline)) {
        next.shard = 0;
        if (++next.replica == extent.data) {
          next = {.replica = 0, .shard = 0, .pipeline = RankIndex{at.pipeline.value() + 1}};
        }
      }
      EXPECT_EQ(coordinate_of(extent, rank + 1), next);
    }
  });
}

TEST(Grid, NamesTheShardsOfARankThatHasThem) {
  const GridExtent extent{.data = 1, .tensor = {2, 1}, .pipeline = 2};
  EXPECT_EQ(describe(extent, {0, 1, RankIndex{0}}), "shard 1 of pipeline rank 0 of replica 0");
  EXPECT_EQ(describe(extent, {0, 0, RankIndex{1}}), "pipeline rank 1 of replica 0");
  EXPECT_EQ(describe(extent, {1, 1, RankIndex{0}}),
            "the parameter server of shard 1 of pipeline rank 0");
  EXPECT_EQ(describe(extent, {1, 0, RankIndex{1}}), "the parameter server of pipeline rank 1");
  EXPECT_EQ(to_string(extent.tensor), "[2, 1]");
  EXPECT_EQ(to_string(ShardCounts{3}), "3");
}

TEST(GridDeathTest, APlaceOutsideTheGridIsAProgrammerError) {
  const GridExtent extent{.data = 2, .tensor = 1, .pipeline = 3};
  EXPECT_DEATH((void)rank_at(extent, {3, 0, RankIndex{0}}), "c.replica <= extent.data");
  EXPECT_DEATH((void)rank_at(extent, {0, 0, RankIndex{3}}), "c.pipeline.value");
  EXPECT_DEATH((void)coordinate_of(extent, 9), "extent.rank_count");
}

}  // namespace
}  // namespace troupe
