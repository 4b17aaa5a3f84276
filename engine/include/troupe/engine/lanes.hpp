// troupe/engine/lanes.hpp -- which ranks exchange what, and under which number.
#pragma once

#include <cstdint>
#include <vector>

#include "troupe/engine/plan.hpp"

namespace troupe {

/// A shard of a virtual stage in a replica; or its server, with as many replicas as there are for
/// the replica.
struct StagePlace {
  std::uint32_t replica = 0;
  std::uint32_t shard = 0;
  StageIndex stage;

  friend bool operator==(const StagePlace&, const StagePlace&) = default;
};

/// The rank of the grid that holds the place.
[[nodiscard]] std::uint32_t rank_holding(const Plan& plan, const StagePlace& place);

/// Rows of a matrix that travel over a lane in one direction.
struct LaneRows {
  std::uint64_t in_lower = 0;  ///< Where they begin in the buffers of the lower end.
  std::uint64_t in_upper = 0;  ///< Where they begin in those of the upper end.
  std::uint64_t count = 0;     ///< None: nothing travels.

  friend bool operator==(const LaneRows&, const LaneRows&) = default;
};

/// A lane between shards of two virtual stages of one replica.
struct StageLane {
  enum class Kind : std::uint8_t {
    neighbours,  ///< Activations up, gradients down: [tokens of a microbatch, hidden].
    tied,  ///< The halves of a tied embedding's gradient, between the first and last stage: [words,
           ///< hidden].
  };
  Kind kind = Kind::neighbours;
  StagePlace lower;
  StagePlace upper;
  LaneRows up;
  LaneRows down;
  /// The stages have as many shards: all of a buffer travels, and over no other lane.
  bool is_whole = true;

  friend bool operator==(const StageLane&, const StageLane&) = default;
};

/// Every lane of the plan. A lane's number is its place in this list, the same in every process.
///
/// Where each shard has all rows, shard r of R receives from shard r S / R of the S of the other
/// stage. Where each has its own, two shards exchange the rows that both have; and so do the ends
/// of a tied model with words.
[[nodiscard]] std::vector<StageLane> lanes_of(const Plan& plan);

/// One of the stages that hold the same parameters and sum up their gradients.
struct StageHolder {
  StagePlace place;
  std::uint32_t rank = 0;  ///< Of the grid.
};

/// Which parameters a group holds.
struct HeldPart {
  std::uint32_t position = 0;  ///< In the model, in stages of one copy.
  std::uint32_t shard = 0;
};

/// Member `member` of the group that holds `part`: replica by replica, and in each copy by copy;
/// the last is their server, if they have one. There are `holder_count` of them.
[[nodiscard]] StageHolder holder_of(const Plan& plan, const HeldPart& part, std::uint32_t member);

/// The ranks of the members of the group that holds `part`, in order.
[[nodiscard]] std::vector<std::uint32_t> ranks_holding(const Plan& plan, const HeldPart& part);

/// The ranks of the shards of a pipeline rank of a replica, or of its servers, in order.
[[nodiscard]] std::vector<std::uint32_t> ranks_of_shards(const Plan& plan, std::uint32_t replica,
                                                         RankIndex pipeline);

/// The number of the lane between members `a` and `b` of the group that holds `part`, over which
/// they sum up gradients and exchange weights; beyond those of `lanes_of`.
[[nodiscard]] std::uint64_t holder_lane(const Plan& plan, const HeldPart& part, std::uint32_t a,
                                        std::uint32_t b);

/// The number of the lane between shards `a` and `b` of a pipeline rank of a replica, or of its
/// servers; beyond those of holders.
[[nodiscard]] std::uint64_t shard_lane(const Plan& plan, std::uint32_t replica, RankIndex pipeline,
                                       std::uint32_t a, std::uint32_t b);

/// The number of the lane over which shard 0 of a pipeline rank of a replica tells shard `follower`
/// its choices; beyond those of holders, and none of those of `shard_lane`.
[[nodiscard]] std::uint64_t choice_lane(const Plan& plan, std::uint32_t replica, RankIndex pipeline,
                                        std::uint32_t follower);

/// The number of the lane over which process `node` hands out weights; beyond all others.
[[nodiscard]] std::uint64_t weight_lane(const Plan& plan, std::uint32_t node);

/// Where each rank of the grid lives, by rank: blocks of neighbouring ranks, as equal as can be, so
/// that the shards of a stage share a node first, then the replicas of neighbouring stages. Behind
/// the ranks of the grid the servers, each with the first replica of what it serves. `node_count`
/// is at most the number of ranks of the grid.
[[nodiscard]] std::vector<std::uint32_t> place_ranks(const Plan& plan, std::uint32_t node_count);

}  // namespace troupe
