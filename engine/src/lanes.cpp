#include "troupe/engine/lanes.hpp"

#include <algorithm>

namespace troupe {

std::vector<StageLane> lanes_of(const Plan& plan) {
  std::vector<StageLane> lanes;
  const auto stage_count = plan.training.stage_count();
  for (std::uint32_t replica = 0; replica < plan.config.parallel.data; ++replica) {
    for (std::uint32_t v = 0; v + 1 < stage_count; ++v) {
      lanes.push_back({StageLane::Kind::neighbours, replica, StageIndex{v}, StageIndex{v + 1}});
    }
    if (plan.config.model.tie_embeddings && stage_count > 1) {
      lanes.push_back({StageLane::Kind::tied, replica, StageIndex{0}, StageIndex{stage_count - 1}});
    }
  }
  return lanes;
}

std::uint64_t replica_lane(const Plan& plan, RankIndex rank, std::uint32_t a, std::uint32_t b) {
  const std::uint64_t replicas = plan.config.parallel.data;
  TROUPE_ASSERT(a != b && a < replicas && b < replicas);
  const auto [low, high] = std::minmax(a, b);
  return lanes_of(plan).size() + (rank.value() * replicas + low) * replicas + high;
}

std::uint64_t weight_lane(const Plan& plan, std::uint32_t node) {
  const std::uint64_t replicas = plan.config.parallel.data;
  return lanes_of(plan).size() + plan.config.parallel.pipeline * replicas * replicas + node;
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
