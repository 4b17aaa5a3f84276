#include "troupe/engine/grid.hpp"

#include <vector>

#include <gtest/gtest.h>

namespace troupe {
namespace {

constexpr std::uint32_t axis_max = 4;

/// Calls `body(extent)` for every grid with axes of one to four ranks.
template <class Body>
void for_every_grid(Body body) {
  for (std::uint32_t data = 1; data <= axis_max; ++data) {
    for (std::uint32_t tensor = 1; tensor <= axis_max; ++tensor) {
      for (std::uint32_t pipeline = 1; pipeline <= axis_max; ++pipeline) {
        SCOPED_TRACE(testing::Message()
                     << "data=" << data << " tensor=" << tensor << " pipeline=" << pipeline);
        body(GridExtent{.data = data, .tensor = tensor, .pipeline = pipeline});
      }
    }
  }
}

TEST(Grid, RanksAndCoordinatesAreOneToOne) {
  for_every_grid([](const GridExtent& extent) {
    std::vector<bool> seen(extent.rank_count(), false);
    for (std::uint32_t replica = 0; replica < extent.data; ++replica) {
      for (std::uint32_t shard = 0; shard < extent.tensor; ++shard) {
        for (std::uint32_t p = 0; p < extent.pipeline; ++p) {
          const Coordinate at{replica, shard, RankIndex{p}};
          const auto rank = rank_at(extent, at);
          ASSERT_LT(rank, extent.rank_count());
          EXPECT_FALSE(seen[rank]) << "rank " << rank << " is in two places";
          seen[rank] = true;
          EXPECT_EQ(coordinate_of(extent, rank), at);
        }
      }
    }
  });
}

TEST(Grid, ShardsAreNeighboursThenReplicasThenPipelineRanks) {
  for_every_grid([](const GridExtent& extent) {
    for (std::uint32_t rank = 0; rank < extent.rank_count(); ++rank) {
      const auto at = coordinate_of(extent, rank);
      if (at.shard + 1 < extent.tensor) {
        EXPECT_EQ(rank_at(extent, {at.replica, at.shard + 1, at.pipeline}), rank + 1);
      }
      if (at.replica + 1 < extent.data) {
        EXPECT_EQ(rank_at(extent, {at.replica + 1, at.shard, at.pipeline}), rank + extent.tensor);
      }
      if (at.pipeline.value() + 1 < extent.pipeline) {
        const RankIndex next{at.pipeline.value() + 1};
        EXPECT_EQ(rank_at(extent, {at.replica, at.shard, next}),
                  rank + extent.tensor * extent.data);
      }
    }
  });
}

TEST(GridDeathTest, APlaceOutsideTheGridIsAProgrammerError) {
  const GridExtent extent{.data = 2, .tensor = 1, .pipeline = 3};
  EXPECT_DEATH((void)rank_at(extent, {2, 0, RankIndex{0}}), "c.replica < extent.data");
  EXPECT_DEATH((void)rank_at(extent, {0, 0, RankIndex{3}}), "c.pipeline.value");
  EXPECT_DEATH((void)coordinate_of(extent, 6), "extent.rank_count");
}

}  // namespace
}  // namespace troupe
