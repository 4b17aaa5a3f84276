#include "troupe/engine/lanes.hpp"

#include <algorithm>

#include "model_families.hpp"

namespace troupe {

namespace {

/// The rows that a shard has of a matrix.
struct RowRange {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

LaneRows common_rows(const RowRange& lower, const RowRange& upper) {
  const auto begin = std::max(lower.begin, upper.begin);
  const auto end = std::min(lower.end, upper.end);
  if (begin >= end) return {};
  return {begin - lower.begin, begin - upper.begin, end - begin};
}

RowRange share_of(std::uint64_t rows, const Shard& shard) {
  const Share share{rows, shard};
  return {share.begin, share.end};
}

/// The lanes of the first replica from one stage to another.
class StagePair {
public:
  StagePair(const Plan& plan, StageLane::Kind kind, StageIndex lower, StageIndex upper)
      : plan_{plan}, kind_{kind}, lower_{lower}, upper_{upper} {}

  void append_to(std::vector<StageLane>& lanes) const {
    const auto lower_count = plan_.shard_count(lower_);
    const auto upper_count = plan_.shard_count(upper_);
    for (std::uint32_t a = 0; a < lower_count; ++a) {
      for (std::uint32_t b = 0; b < upper_count; ++b) {
        StageLane lane{.kind = kind_,
                       .lower = {0, a, lower_},
                       .upper = {0, b, upper_},
                       .up = {},
                       .down = {},
                       .is_whole = lower_count == upper_count};
        const auto rows = common_rows(rows_of(lower_, a), rows_of(upper_, b));
        if (is_divided() || a == b * lower_count / upper_count) lane.up = rows;
        if (is_divided() || b == a * upper_count / lower_count) lane.down = rows;
        if (lane.up.count + lane.down.count > 0) lanes.push_back(lane);
      }
    }
  }

private:
  /// Whether each shard has rows of its own.
  [[nodiscard]] bool is_divided() const {
    return kind_ == StageLane::Kind::tied || plan_.config.train.sequence_parallel;
  }

  [[nodiscard]] RowRange rows_of(StageIndex stage, std::uint32_t index) const {
    const auto& config = plan_.config;
    const auto shard = plan_.shard(stage, index);
    if (kind_ == StageLane::Kind::tied) return share_of(config.model.vocabulary, shard);
    const auto tokens = std::uint64_t{config.schedule.microbatch_size} * config.model.sequence;
    return is_divided() ? share_of(tokens, shard) : RowRange{0, tokens};
  }

  const Plan& plan_;
  StageLane::Kind kind_;
  StageIndex lower_;
  StageIndex upper_;
};

}  // namespace

std::uint32_t rank_holding(const Plan& plan, const StagePlace& place) {
  return rank_at(plan.config.parallel,
                 {place.replica, place.shard, plan.training.rank_of_stage[place.stage.value()]});
}

std::vector<StageLane> lanes_of(const Plan& plan) {
  std::vector<StageLane> lanes;
  const auto& schedule = plan.training;
  for (std::uint32_t v = 0; v < schedule.stage_count(); ++v) {
    const StageIndex stage{v};
    if (!schedule.is_last(stage)) {
      StagePair{plan, StageLane::Kind::neighbours, stage, StageIndex{v + 1}}.append_to(lanes);
    } else if (plan.config.model.tie_embeddings && !schedule.is_first(stage)) {
      const StageIndex first{v + 1 - schedule.stages_per_copy()};
      StagePair{plan, StageLane::Kind::tied, first, stage}.append_to(lanes);
    }
  }
  const auto of_replica = lanes.size();
  for (std::uint32_t replica = 1; replica < plan.config.parallel.data; ++replica) {
    for (std::size_t i = 0; i < of_replica; ++i) {
      lanes.push_back(lanes[i]);
      lanes.back().lower.replica = lanes.back().upper.replica = replica;
    }
  }
  return lanes;
}

StageHolder holder_of(const Plan& plan, const HeldPart& part, std::uint32_t member) {
  TROUPE_ASSERT(part.position < plan.training.stages_per_copy());
  TROUPE_ASSERT(member < plan.holder_count());
  const auto copies = plan.training.copy_count;  // One, where there are servers.
  const StageIndex stage{member % copies * plan.training.stages_per_copy() + part.position};
  const StagePlace place{member / copies, part.shard, stage};
  return {place, rank_holding(plan, place)};
}

std::vector<std::uint32_t> ranks_holding(const Plan& plan, const HeldPart& part) {
  std::vector<std::uint32_t> ranks;
  for (std::uint32_t m = 0; m < plan.holder_count(); ++m) {
    ranks.push_back(holder_of(plan, part, m).rank);
  }
  return ranks;
}

std::vector<std::uint32_t> ranks_of_shards(const Plan& plan, std::uint32_t replica,
                                           RankIndex pipeline) {
  const auto& extent = plan.config.parallel;
  std::vector<std::uint32_t> ranks;
  for (std::uint32_t shard = 0; shard < extent.tensor.of(pipeline); ++shard) {
    ranks.push_back(rank_at(extent, {replica, shard, pipeline}));
  }
  return ranks;
}

// Groups have numbers for as many shards as the most that a rank has.

namespace {

/// The lane between two of `count` members, in a table of all pairs.
std::uint64_t pair_number(std::uint64_t count, std::uint32_t a, std::uint32_t b) {
  TROUPE_ASSERT(a != b && a < count && b < count);
  const auto [low, high] = std::minmax(a, b);
  return low * count + high;
}

/// Replicas, and servers as if they were one more.
std::uint64_t column_count(const Plan& plan) {
  return plan.config.parallel.data + (plan.has_servers() ? 1 : 0);
}

std::uint64_t first_shard_lane(const Plan& plan) {
  const std::uint64_t holders = plan.holder_count();
  return lanes_of(plan).size()
         + plan.training.stages_per_copy() * plan.config.parallel.tensor.most() * holders * holders;
}

std::uint64_t first_lane_of_shards(const Plan& plan, std::uint32_t replica, RankIndex pipeline) {
  TROUPE_ASSERT(replica < column_count(plan));
  const std::uint64_t shards = plan.config.parallel.tensor.most();
  const auto group = std::uint64_t{replica} * plan.config.parallel.pipeline + pipeline.value();
  return first_shard_lane(plan) + group * shards * shards;
}

}  // namespace

std::uint64_t holder_lane(const Plan& plan, const HeldPart& part, std::uint32_t a,
                          std::uint32_t b) {
  const std::uint64_t holders = plan.holder_count();
  const auto group = std::uint64_t{part.position} * plan.config.parallel.tensor.most() + part.shard;
  return lanes_of(plan).size() + group * holders * holders + pair_number(holders, a, b);
}

std::uint64_t shard_lane(const Plan& plan, std::uint32_t replica, RankIndex pipeline,
                         std::uint32_t a, std::uint32_t b) {
  return first_lane_of_shards(plan, replica, pipeline)
         + pair_number(plan.config.parallel.tensor.most(), a, b);
}

/// In the table of pairs the half below the diagonal is free.
std::uint64_t choice_lane(const Plan& plan, std::uint32_t replica, RankIndex pipeline,
                          std::uint32_t follower) {
  const std::uint64_t shards = plan.config.parallel.tensor.most();
  TROUPE_ASSERT(follower > 0 && follower < shards);
  return first_lane_of_shards(plan, replica, pipeline) + follower * shards;
}

std::uint64_t weight_lane(const Plan& plan, std::uint32_t node) {
  const auto& extent = plan.config.parallel;
  const std::uint64_t shards = extent.tensor.most();
  return first_shard_lane(plan) + column_count(plan) * extent.pipeline * shards * shards + node;
}

std::vector<std::uint32_t> place_ranks(const Plan& plan, std::uint32_t node_count) {
  const auto& extent = plan.config.parallel;
  const auto rank_count = extent.rank_count();
  TROUPE_ASSERT(node_count >= 1 && node_count <= rank_count);
  std::vector<std::uint32_t> node_of_rank(rank_count);
  for (std::uint32_t node = 0; node < node_count; ++node) {
    const auto begin = std::uint64_t{node} * rank_count / node_count;
    const auto end = (std::uint64_t{node} + 1) * rank_count / node_count;
    for (auto rank = begin; rank < end; ++rank) node_of_rank[rank] = node;
  }
  for (auto server = rank_count; server < plan.rank_count(); ++server) {
    auto at = coordinate_of(extent, server);
    at.replica = 0;
    node_of_rank.push_back(node_of_rank[rank_at(extent, at)]);
  }
  return node_of_rank;
}

}  // namespace troupe
