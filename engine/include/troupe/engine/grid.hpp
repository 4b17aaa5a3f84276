// troupe/engine/grid.hpp -- the grid of ranks: data x tensor x pipeline.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "troupe/engine/check.hpp"
#include "troupe/engine/index.hpp"

namespace troupe {

/// Into how many shards the stages of each pipeline rank are divided. All at least 1.
struct ShardCounts {
  /// Implicit, so that a number can be written for it.
  // NOLINTNEXTLINE(google-explicit-constructor)
  ShardCounts(std::uint32_t everywhere = 1) : by_rank{everywhere} {}
  ShardCounts(std::initializer_list<std::uint32_t> counts) : by_rank{counts} {}

  [[nodiscard]] std::uint32_t of(RankIndex rank) const {
    return by_rank.size() == 1 ? by_rank.front() : by_rank.at(rank.value());
  }
  [[nodiscard]] std::uint32_t most() const { return *std::ranges::max_element(by_rank); }
  friend bool operator==(const ShardCounts&, const ShardCounts&) = default;

  std::vector<std::uint32_t> by_rank;  ///< Or one number for all ranks.
};

/// "2", or "[2, 1]".
[[nodiscard]] inline std::string to_string(const ShardCounts& counts) {
  if (counts.by_rank.size() == 1) return std::to_string(counts.most());
  std::string text;
  for (const auto count : counts.by_rank)
    text += (text.empty() ? "" : ", ") + std::to_string(count);
  return "[" + text + "]";
}

/// How many ranks lie along each axis. All at least 1.
struct GridExtent {
  std::uint32_t data = 1;      ///< Replicas.
  ShardCounts tensor{};        ///< Shards of the stages of each pipeline rank.
  std::uint32_t pipeline = 1;  ///< Pipeline ranks.

  /// The number of the first rank of a pipeline rank; of that behind the last, all there are.
  [[nodiscard]] std::uint32_t first_rank(RankIndex rank) const {
    if (tensor.by_rank.size() == 1) return rank.value() * data * tensor.most();
    std::uint32_t first = 0;
    for (std::uint32_t p = 0; p < rank.value(); ++p) first += data * tensor.of(RankIndex{p});
    return first;
  }
  [[nodiscard]] std::uint32_t rank_count() const { return first_rank(RankIndex{pipeline}); }
  friend bool operator==(const GridExtent&, const GridExtent&) = default;
};

/// One place in the grid; or, as if it were one replica more, beside it: a parameter server of what
/// the shard of the pipeline rank has in every replica.
struct Coordinate {
  std::uint32_t replica = 0;
  std::uint32_t shard = 0;
  RankIndex pipeline;

  friend constexpr bool operator==(const Coordinate&, const Coordinate&) = default;
};

/// "pipeline rank 1 of replica 0", where it has shards "shard 1 of pipeline rank 1 of replica 0";
/// "the parameter server of pipeline rank 1".
[[nodiscard]] inline std::string describe(const GridExtent& extent, const Coordinate& at) {
  const bool is_server = at.replica == extent.data;
  const auto rank = "pipeline rank " + std::to_string(at.pipeline.value())
                    + (is_server ? "" : " of replica " + std::to_string(at.replica));
  const auto part = extent.tensor.of(at.pipeline) == 1
                        ? rank
                        : "shard " + std::to_string(at.shard) + " of " + rank;
  return (is_server ? "the parameter server of " : "") + part;
}

/// The number of the rank at `coordinate`. Shards are neighbours, then replicas, then pipeline
/// ranks: the axes that exchange most lie closest together. Servers have the numbers beyond.
[[nodiscard]] inline std::uint32_t rank_at(const GridExtent& extent, const Coordinate& c) {
  TROUPE_ASSERT(c.pipeline.value() < extent.pipeline);
  TROUPE_ASSERT(c.replica <= extent.data && c.shard < extent.tensor.of(c.pipeline));
  const auto first = extent.first_rank(c.pipeline);
  if (c.replica == extent.data) return extent.rank_count() + first / extent.data + c.shard;
  return first + c.replica * extent.tensor.of(c.pipeline) + c.shard;
}

/// The inverse of `rank_at`.
[[nodiscard]] inline Coordinate coordinate_of(const GridExtent& extent, std::uint32_t rank) {
  if (rank >= extent.rank_count()) {
    // There are as many servers as one replica has ranks.
    const auto server = rank - extent.rank_count();
    TROUPE_ASSERT(server < extent.rank_count() / extent.data);
    const auto at = coordinate_of({1, extent.tensor, extent.pipeline}, server);
    return {.replica = extent.data, .shard = at.shard, .pipeline = at.pipeline};
  }
  std::uint32_t p = 0;
  auto left = rank;
  while (left >= extent.data * extent.tensor.of(RankIndex{p})) {
    left -= extent.data * extent.tensor.of(RankIndex{p});
    ++p;
  }
  const auto shards = extent.tensor.of(RankIndex{p});
  return {.replica = left / shards, .shard = left % shards, .pipeline = RankIndex{p}};
}

}  // namespace troupe
