// troupe/engine/grid.hpp -- the grid of ranks: data x tensor x pipeline.
#pragma once

#include <cstdint>
#include <string>

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
  /// Pipelines side by side: one of each shard of each replica.
  [[nodiscard]] constexpr std::uint32_t line_count() const noexcept { return data * tensor; }
  friend constexpr bool operator==(const GridExtent&, const GridExtent&) = default;
};

/// One place in the grid.
struct Coordinate {
  std::uint32_t replica = 0;
  std::uint32_t shard = 0;
  RankIndex pipeline;

  friend constexpr bool operator==(const Coordinate&, const Coordinate&) = default;
};

/// "pipeline rank 1 of replica 0", where there are shards "shard 1 of pipeline rank 1 of replica
/// 0".
[[nodiscard]] inline std::string describe(const GridExtent& extent, const Coordinate& at) {
  const auto rank = "pipeline rank " + std::to_string(at.pipeline.value()) + " of replica "
                    + std::to_string(at.replica);
  return extent.tensor == 1 ? rank : "shard " + std::to_string(at.shard) + " of " + rank;
}

/// The number of the rank at `coordinate`. Shards are neighbours, then replicas, then pipeline
/// ranks: the axes that exchange most lie closest together.
[[nodiscard]] constexpr std::uint32_t rank_at(const GridExtent& extent, const Coordinate& c) {
  TROUPE_ASSERT(c.replica < extent.data && c.shard < extent.tensor);
  TROUPE_ASSERT(c.pipeline.value() < extent.pipeline);
  return (c.pipeline.value() * extent.data + c.replica) * extent.tensor + c.shard;
}

/// The number of the rank of pipeline rank `pipeline` in line `line`: of shards that are
/// neighbours, then of replicas.
[[nodiscard]] constexpr std::uint32_t rank_in_line(const GridExtent& extent, std::uint32_t line,
                                                   RankIndex pipeline) {
  TROUPE_ASSERT(line < extent.line_count() && pipeline.value() < extent.pipeline);
  return pipeline.value() * extent.line_count() + line;
}

/// The inverse of `rank_at`.
[[nodiscard]] constexpr Coordinate coordinate_of(const GridExtent& extent, std::uint32_t rank) {
  TROUPE_ASSERT(rank < extent.rank_count());
  return {.replica = rank / extent.tensor % extent.data,
          .shard = rank % extent.tensor,
          .pipeline = RankIndex{rank / extent.tensor / extent.data}};
}

}  // namespace troupe
