#include "troupe/engine/lanes.hpp"

#include <algorithm>

namespace troupe {

std::vector<StageLane> lanes_of(const Plan& plan) {
  std::vector<StageLane> lanes;
  const auto& schedule = plan.training;
  for (std::uint32_t line = 0; line < plan.config.parallel.line_count(); ++line) {
    for (std::uint32_t v = 0; v < schedule.stage_count(); ++v) {
      const StageIndex stage{v};
      if (!schedule.is_last(stage)) {
        lanes.push_back({StageLane::Kind::neighbours, line, stage, StageIndex{v + 1}});
      } else if (plan.config.model.tie_embeddings && !schedule.is_first(stage)) {
        const StageIndex first{v + 1 - schedule.stages_per_copy()};
        lanes.push_back({StageLane::Kind::tied, line, first, stage});
      }
    }
  }
  return lanes;
}

StageHolder holder_of(const Plan& plan, const HeldPart& part, std::uint32_t member) {
  const auto& extent = plan.config.parallel;
  TROUPE_ASSERT(part.position < plan.training.stages_per_copy() && part.shard < extent.tensor);
  TROUPE_ASSERT(member < plan.holder_count());
  const auto copies = plan.training.copy_count;
  const StageIndex stage{member % copies * plan.training.stages_per_copy() + part.position};
  const auto line = member / copies * extent.tensor + part.shard;
  return {line, stage, rank_in_line(extent, line, plan.training.rank_of_stage[stage.value()])};
}

namespace {

/// The lane between two of `count` members, in a table of all pairs.
std::uint64_t pair_number(std::uint64_t count, std::uint32_t a, std::uint32_t b) {
  TROUPE_ASSERT(a != b && a < count && b < count);
  const auto [low, high] = std::minmax(a, b);
  return low * count + high;
}

std::uint64_t first_shard_lane(const Plan& plan) {
  const std::uint64_t holders = plan.holder_count();
  return lanes_of(plan).size()
         + plan.training.stages_per_copy() * plan.config.parallel.tensor * holders * holders;
}

std::uint64_t first_lane_of_shards(const Plan& plan, std::uint32_t replica, RankIndex pipeline) {
  const std::uint64_t shards = plan.config.parallel.tensor;
  const auto group = std::uint64_t{replica} * plan.config.parallel.pipeline + pipeline.value();
  return first_shard_lane(plan) + group * shards * shards;
}

}  // namespace

std::uint64_t holder_lane(const Plan& plan, const HeldPart& part, std::uint32_t a,
                          std::uint32_t b) {
  const std::uint64_t holders = plan.holder_count();
  const auto group = std::uint64_t{part.position} * plan.config.parallel.tensor + part.shard;
  return lanes_of(plan).size() + group * holders * holders + pair_number(holders, a, b);
}

std::uint64_t shard_lane(const Plan& plan, std::uint32_t replica, RankIndex pipeline,
                         std::uint32_t a, std::uint32_t b) {
  return first_lane_of_shards(plan, replica, pipeline)
         + pair_number(plan.config.parallel.tensor, a, b);
}

/// In the table of pairs the half below the diagonal is free.
std::uint64_t choice_lane(const Plan& plan, std::uint32_t replica, RankIndex pipeline,
                          std::uint32_t follower) {
  const std::uint64_t shards = plan.config.parallel.tensor;
  TROUPE_ASSERT(follower > 0 && follower < shards);
  return first_lane_of_shards(plan, replica, pipeline) + follower * shards;
}

std::uint64_t weight_lane(const Plan& plan, std::uint32_t node) {
  const auto& extent = plan.config.parallel;
  const std::uint64_t shards = extent.tensor;
  return first_shard_lane(plan) + extent.data * extent.pipeline * shards * shards + node;
}

std::vector<std::uint32_t> place_ranks(const GridExtent& extent, std::uint32_t node_count) {
  const auto rank_count = extent.rank_count();
  TROUPE_ASSERT(node_count >= 1 && node_count <= rank_count);
  std::vector<std::uint32_t> node_of_rank(rank_count);
  for (std::uint32_t node = 0; node < node_count; ++node) {
    const auto begin = std::uint64_t{node} * rank_count / node_count;
    const auto end = (std::uint64_t{node} + 1) * rank_count / node_count;
    for (auto rank = begin; rank < end; ++rank) node_of_rank[rank] = node;
  }
  return node_of_rank;
}

}  // namespace troupe
