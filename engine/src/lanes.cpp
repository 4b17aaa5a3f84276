#include "troupe/engine/lanes.hpp"

#include <algorithm>

namespace troupe {

std::vector<StageLane> lanes_of(const Plan& plan) {
  std::vector<StageLane> lanes;
  const auto& schedule = plan.training;
  for (std::uint32_t replica = 0; replica < plan.config.parallel.data; ++replica) {
    for (std::uint32_t v = 0; v < schedule.stage_count(); ++v) {
      const StageIndex stage{v};
      if (!schedule.is_last(stage)) {
        lanes.push_back({StageLane::Kind::neighbours, replica, stage, StageIndex{v + 1}});
      } else if (plan.config.model.tie_embeddings && !schedule.is_first(stage)) {
        const StageIndex first{v + 1 - schedule.stages_per_copy()};
        lanes.push_back({StageLane::Kind::tied, replica, first, stage});
      }
    }
  }
  return lanes;
}

StageHolder holder_of(const Plan& plan, std::uint32_t position, std::uint32_t member) {
  TROUPE_ASSERT(position < plan.training.stages_per_copy() && member < plan.holder_count());
  const auto copies = plan.training.copy_count;
  const StageIndex stage{member % copies * plan.training.stages_per_copy() + position};
  const auto replica = member / copies;
  const auto pipeline = plan.training.rank_of_stage[stage.value()];
  return {replica, stage, rank_at(plan.config.parallel, {replica, 0, pipeline})};
}

std::uint64_t holder_lane(const Plan& plan, std::uint32_t position, std::uint32_t a,
                          std::uint32_t b) {
  const std::uint64_t holders = plan.holder_count();
  TROUPE_ASSERT(a != b && a < holders && b < holders);
  const auto [low, high] = std::minmax(a, b);
  return lanes_of(plan).size() + (position * holders + low) * holders + high;
}

std::uint64_t weight_lane(const Plan& plan, std::uint32_t node) {
  const std::uint64_t holders = plan.holder_count();
  return lanes_of(plan).size() + plan.training.stages_per_copy() * holders * holders + node;
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
