// troupe/engine/lanes.hpp -- which ranks exchange what, and under which number.
#pragma once

#include <cstdint>
#include <vector>

#include "troupe/engine/plan.hpp"

namespace troupe {

/// A lane between two virtual stages of one line: of the same shard of the same replica.
struct StageLane {
  enum class Kind : std::uint8_t {
    neighbours,  ///< Activations up, gradients down.
    tied,        ///< The halves of a tied embedding's gradient, between the first and last stage.
  };
  Kind kind = Kind::neighbours;
  std::uint32_t line = 0;
  StageIndex lower;
  StageIndex upper;

  friend bool operator==(const StageLane&, const StageLane&) = default;
};

/// Every lane of the plan. A lane's number is its place in this list, the same in every process.
[[nodiscard]] std::vector<StageLane> lanes_of(const Plan& plan);

/// One of the stages that hold the same parameters and sum up their gradients.
struct StageHolder {
  std::uint32_t line = 0;
  StageIndex stage;
  std::uint32_t rank = 0;  ///< Of the grid.
};

/// Which parameters a group holds.
struct HeldPart {
  std::uint32_t position = 0;  ///< In the model, in stages of one copy.
  std::uint32_t shard = 0;
};

/// Member `member` of the group that holds `part`: replica by replica, and in each copy by copy.
/// There are `holder_count` of them.
[[nodiscard]] StageHolder holder_of(const Plan& plan, const HeldPart& part, std::uint32_t member);

/// The number of the lane between members `a` and `b` of the group that holds `part`, over which
/// they sum up gradients; beyond those of `lanes_of`.
[[nodiscard]] std::uint64_t holder_lane(const Plan& plan, const HeldPart& part, std::uint32_t a,
                                        std::uint32_t b);

/// The number of the lane between shards `a` and `b` of a pipeline rank of a replica; beyond those
/// of holders.
[[nodiscard]] std::uint64_t shard_lane(const Plan& plan, std::uint32_t replica, RankIndex pipeline,
                                       std::uint32_t a, std::uint32_t b);

/// The number of the lane over which shard 0 of a pipeline rank of a replica tells shard `follower`
/// its choices; beyond those of holders, and none of those of `shard_lane`.
[[nodiscard]] std::uint64_t choice_lane(const Plan& plan, std::uint32_t replica, RankIndex pipeline,
                                        std::uint32_t follower);

/// The number of the lane over which process `node` hands out weights; beyond all others.
[[nodiscard]] std::uint64_t weight_lane(const Plan& plan, std::uint32_t node);

/// Where each rank of the grid lives, by rank: blocks of neighbouring ranks, as equal as can be, so
/// that the shards of a stage share a node first, then the replicas of neighbouring stages.
/// `node_count` is at most the number of ranks.
[[nodiscard]] std::vector<std::uint32_t> place_ranks(const GridExtent& extent,
                                                     std::uint32_t node_count);

}  // namespace troupe
