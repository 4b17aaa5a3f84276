// troupe/engine/lanes.hpp -- which ranks exchange what, and under which number.
#pragma once

#include <cstdint>
#include <vector>

#include "troupe/engine/plan.hpp"

namespace troupe {

/// A lane between two virtual stages of one replica.
struct StageLane {
  enum class Kind : std::uint8_t {
    neighbours,  ///< Activations up, gradients down.
    tied,        ///< The halves of a tied embedding's gradient, between the first and last stage.
  };
  Kind kind = Kind::neighbours;
  std::uint32_t replica = 0;
  StageIndex lower;
  StageIndex upper;

  friend bool operator==(const StageLane&, const StageLane&) = default;
};

/// Every lane of the plan. A lane's number is its place in this list, the same in every process.
[[nodiscard]] std::vector<StageLane> lanes_of(const Plan& plan);

/// The number of the lane between replicas `a` and `b` of pipeline rank `rank`, over which they
/// reduce gradients; beyond those of `lanes_of`.
[[nodiscard]] std::uint64_t replica_lane(const Plan& plan, RankIndex rank, std::uint32_t a,
                                         std::uint32_t b);

/// The number of the lane over which process `node` hands out weights; beyond all others.
[[nodiscard]] std::uint64_t weight_lane(const Plan& plan, std::uint32_t node);

/// Where each rank of the grid lives, by rank: blocks of neighbouring ranks, as equal as can be, so
/// that the shards of a stage share a node first, then the replicas of neighbouring stages.
/// `node_count` is at most the number of ranks.
[[nodiscard]] std::vector<std::uint32_t> place_ranks(const GridExtent& extent,
                                                     std::uint32_t node_count);

}  // namespace troupe
