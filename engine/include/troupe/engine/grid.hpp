// troupe/engine/grid.hpp -- the grid of ranks: data x tensor x pipeline.
#pragma once

#include <cstdint>

#include "troupe/engine/check.hpp"
#include "troupe/engine/index.hpp"

namespace troupe {

/// How many ranks lie along each axis. All at least 1.
struct GridExtent {
  std::uint32_t data = 1;      ///< Replicas.
  std::uint32_t tensor = 1;    ///< Shards of each stage.
  std::uint32_t pipeline = 1;  ///< Pipeline ranks.

  [[nodiscard]] constexpr std::uint32_t rank_count() const noexcept {
    return data * tensor * pipeline;
  }
  friend constexpr bool operator==(const GridExtent&, const GridExtent&) = default;
};

/// One place in the grid.
struct Coordinate {
  std::uint32_t replica = 0;
  std::uint32_t shard = 0;
  RankIndex pipeline;

  friend constexpr bool operator==(const Coordinate&, const Coordinate&) = default;
};

/// The number of the rank at `coordinate`. Shards are neighbours, then replicas, then pipeline
/// ranks: the axes that exchange most lie closest together.
[[nodiscard]] constexpr std::uint32_t rank_at(const GridExtent& extent, const Coordinate& c) {
  TROUPE_ASSERT(c.replica < extent.data && c.shard < extent.tensor);
  TROUPE_ASSERT(c.pipeline.value() < extent.pipeline);
  return (c.pipeline.value() * extent.data + c.replica) * extent.tensor + c.shard;
}

/// The inverse of `rank_at`.
[[nodiscard]] constexpr Coordinate coordinate_of(const GridExtent& extent, std::uint32_t rank) {
  TROUPE_ASSERT(rank < extent.rank_count());
  return {.replica = rank / extent.tensor % extent.data,
          .shard = rank % extent.tensor,
          .pipeline = RankIndex{rank / extent.tensor / extent.data}};
}

}  // namespace troupe
