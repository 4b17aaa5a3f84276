#include "troupe/actors/local_ranks.hpp"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <string>

#include "troupe/stages/cpu_device.hpp"
#include "troupe/stages/transformer_stage.hpp"
#include "troupe/transport/delayed_link.hpp"
#include "troupe/transport/linked_group.hpp"

namespace troupe::actors {

namespace {

Expected<std::unique_ptr<stages::Stage>> make_model_stage(const Plan& plan, const StagePlan& stage,
                                                          stages::Device& device,
                                                          stages::Stream& stream,
                                                          const stages::StagePeers& peers,
                                                          const stages::CustomKernels& kernels) {
  auto made = stages::make_transformer_stage(device, stream,
                                             stages::StageProps::of(plan, stage, peers, kernels));
  if (!made) return made.error();
  return std::unique_ptr<stages::Stage>{std::move(*made)};
}

RankParts with_defaults(RankParts parts) {
  if (!parts.make_device) parts.make_device = stages::make_cpu_device;
  if (!parts.make_stage) {
    parts.make_stage = [kernels = parts.custom_kernels](auto&... what) {
      return make_model_stage(what..., kernels);
    };
  }
  if (!parts.make_link) parts.make_link = transport::make_in_process_link;
  if (!parts.make_group) parts.make_group = transport::make_in_process_group;
  return parts;
}

std::string stream_name(const GridExtent& extent, const Coordinate& at) {
  const auto pipeline = std::to_string(at.pipeline.value());
  const auto name = at.replica == extent.data ? "s" + pipeline
                                              : "p" + pipeline + "d" + std::to_string(at.replica);
  return extent.tensor.of(at.pipeline) == 1 ? name : name + "t" + std::to_string(at.shard);
}

}  // namespace

LocalRanks::LocalRanks(std::shared_ptr<const Plan> plan, RankParts parts)
    : plan_{std::move(plan)},
      parts_{with_defaults(std::move(parts))},
      device_{parts_.make_device()} {}

LocalRanks::~LocalRanks() {
  close_lanes();
  empty_streams();
}

std::vector<std::uint32_t> LocalRanks::all_of(const Plan& plan) {
  std::vector<std::uint32_t> ranks(plan.rank_count());
  std::iota(ranks.begin(), ranks.end(), 0U);
  return ranks;
}

Expected<std::unique_ptr<LocalRanks>> LocalRanks::make(std::shared_ptr<const Plan> plan,
                                                       std::vector<std::uint32_t> ranks,
                                                       RankParts parts) {
  std::unique_ptr<LocalRanks> made{new LocalRanks{plan, std::move(parts)}};
  if (auto can = check_device(*plan, made->device_->memory_space()); !can) return can.error();
  const auto& extent = plan->config.parallel;
  made->ranks_.resize(ranks.size());
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    made->ranks_[i].rank = ranks[i];
    made->make_places(made->ranks_[i]);
  }
  // A stage is made with its peers.
  const auto column_count = extent.data + (plan->has_servers() ? 1 : 0);
  for (std::uint32_t replica = 0; replica < column_count; ++replica) {
    for (std::uint32_t p = 0; p < extent.pipeline; ++p) {
      if (extent.tensor.of(RankIndex{p}) == 1) continue;
      if (auto joined = made->join_shards(replica, RankIndex{p}); !joined) return joined.error();
      if (plan->config.schedule.policy == Policy::in_order || replica == extent.data) continue;
      auto connected = made->connect_choices(replica, RankIndex{p});
      if (!connected) return connected.error();
    }
  }
  for (std::uint32_t position = 0;
       plan->holder_count() > 1 && position < plan->training.stages_per_copy(); ++position) {
    for (std::uint32_t shard = 0; shard < plan->shard_count(StageIndex{position}); ++shard) {
      if (auto joined = made->join_holders({position, shard}); !joined) return joined.error();
    }
  }
  for (auto& rank : made->ranks_) {
    if (auto built = made->build(rank); !built) return built.error();
  }
  made->make_batches();
  const auto lanes = lanes_of(*plan);
  for (std::uint64_t number = 0; number < lanes.size(); ++number) {
    if (auto wired = made->wire(number, lanes[number]); !wired) return wired.error();
  }
  return made;
}

/// What its groups and lanes are given to, and its streams.
void LocalRanks::make_places(LocalRank& rank) {
  const auto& config = plan_->config;
  rank.coordinate = coordinate_of(config.parallel, rank.rank);
  rank.stages.resize(plan_->training.stages_of(rank.coordinate.pipeline).size());
  const auto name = stream_name(config.parallel, rank.coordinate);
  rank.stream = device_->make_stream(name, config.run.threads_per_stage);
  if (plan_->holder_count() > 1) rank.reduce_stream = device_->make_stream(name + "r", 1);
  if (config.parallel.tensor.of(rank.coordinate.pipeline) > 1)
    rank.shard_stream = device_->make_stream(name + "s", 1);
}

Expected<Done> LocalRanks::build(LocalRank& rank) {
  const auto stages = plan_->training.stages_of(rank.coordinate.pipeline);
  for (std::size_t i = 0; i < stages.size(); ++i) {
    auto& held = rank.stages[i];
    const stages::StagePeers peers{
        .shards = {.group = rank.shards.get(), .stream = rank.shard_stream.get()},
        .holders = {.group = held.holders.get(), .stream = rank.reduce_stream.get()}};
    auto made =
        parts_.make_stage(*plan_, plan_->stages[stages[i].value()], *device_, *rank.stream, peers);
    if (!made) return made.error();
    held.stage = std::move(*made);
  }
  return Done{};
}

void LocalRanks::make_batches() {
  const auto& config = plan_->config;
  stages::Batch batch{.microbatch_count = config.schedule.microbatches,
                      .microbatch_size = config.schedule.microbatch_size,
                      .sequence = config.model.sequence,
                      .tokens = {},
                      .targets = {}};
  const auto widths = config.model.batch_widths();
  const auto sequences = std::size_t{batch.microbatch_count} * batch.microbatch_size;
  batch.tokens.resize(sequences * widths.tokens);
  batch.segments.resize(sequences * widths.segments);
  batch.lengths.resize(sequences * widths.lengths, static_cast<std::int32_t>(batch.sequence));
  batch.targets.resize(sequences * widths.targets);
  batch.target_count = static_cast<std::uint32_t>(batch.targets.size()) * config.parallel.data;
  batches_.resize(2 + config.train.staleness);
  for (auto& batches : batches_) {
    batches.resize(config.parallel.data + 1);
    for (const auto& rank : ranks_) {
      if (rank.coordinate.replica < config.parallel.data) batches[rank.coordinate.replica] = batch;
    }
  }
}

/// Neighbours on one rank get a lane like all others. Where buffers differ, or one goes to several,
/// each end keeps its own.
Expected<Done> LocalRanks::wire(std::uint64_t number, const StageLane& lane) {
  auto* lower = find(lane.lower);
  auto* upper = find(lane.upper);
  if (lower == nullptr && upper == nullptr) return Done{};
  const auto lower_rank = rank_holding(*plan_, lane.lower);
  const auto upper_rank = rank_holding(*plan_, lane.upper);
  const bool is_tied = lane.kind == StageLane::Kind::tied;
  transport::LinkPair ends;
  if (lower != nullptr && upper != nullptr) {
    ends = parts_.make_link(lane.is_whole ? transport::HandOver::swap : transport::HandOver::copy);
  } else {
    auto link = parts_.connect(number, lower != nullptr ? upper_rank : lower_rank);
    if (!link) return link.error();
    (lower != nullptr ? ends.first : ends.second) = std::move(*link);
  }
  const std::chrono::microseconds delay{plan_->config.run.link_delay_us};
  const bool is_delayed = !is_tied && delay.count() > 0 && lower_rank != upper_rank;
  const auto row_bytes = std::size_t{plan_->config.model.hidden} * sizeof(float);
  const auto give = [&](std::vector<LaneEnd>& edge, std::unique_ptr<transport::Link> link,
                        Part sent, Part received) {
    if (is_delayed) link = transport::make_delayed_link(std::move(link), delay);
    edge.push_back({std::move(link), lane.is_whole, sent, received});
  };
  const auto part = [&](std::uint64_t begin, const LaneRows& rows) {
    return Part{begin * row_bytes, rows.count * row_bytes};
  };
  if (lower != nullptr) {
    give(is_tied ? lower->tied : lower->next, std::move(ends.first),
         part(lane.up.in_lower, lane.up), part(lane.down.in_lower, lane.down));
  }
  if (upper != nullptr) {
    give(is_tied ? upper->tied : upper->previous, std::move(ends.second),
         part(lane.down.in_upper, lane.down), part(lane.up.in_upper, lane.up));
  }
  return Done{};
}

Expected<Done> LocalRanks::join_holders(const HeldPart& part) {
  GroupPlan group{.ranks = ranks_holding(*plan_, part),
                  .lane = [this, part](std::uint32_t a,
                                       std::uint32_t b) { return holder_lane(*plan_, part, a, b); },
                  .wire = plan_->config.train.gradient_wire};
  auto members = join(group);
  if (!members) return members.error();
  for (std::uint32_t m = 0; m < members->size(); ++m) {
    const auto holder = holder_of(*plan_, part, m);
    if ((*members)[m]) find(holder.place)->holders = std::move((*members)[m]);
  }
  return Done{};
}

Expected<Done> LocalRanks::join_shards(std::uint32_t replica, RankIndex pipeline) {
  GroupPlan group{.ranks = ranks_of_shards(*plan_, replica, pipeline),
                  .lane = [=, this](std::uint32_t a, std::uint32_t b) {
                    return shard_lane(*plan_, replica, pipeline, a, b);
                  }};
  auto members = join(group);
  if (!members) return members.error();
  for (std::uint32_t shard = 0; shard < members->size(); ++shard) {
    if ((*members)[shard]) find(group.ranks[shard])->shards = std::move((*members)[shard]);
  }
  return Done{};
}

Expected<Done> LocalRanks::connect_choices(std::uint32_t replica, RankIndex pipeline) {
  const auto& extent = plan_->config.parallel;
  // Of each microbatch at most F, I and W.
  const auto choice_max = std::size_t{3} * plan_->training.microbatch_count
                          * plan_->training.stages_of(pipeline).size();
  const auto leader_rank = rank_at(extent, {replica, 0, pipeline});
  auto* leader = find(leader_rank);
  for (std::uint32_t shard = 1; shard < extent.tensor.of(pipeline); ++shard) {
    const auto follower_rank = rank_at(extent, {replica, shard, pipeline});
    auto* follower = find(follower_rank);
    if (leader == nullptr && follower == nullptr) continue;
    transport::LinkPair ends;
    if (leader != nullptr && follower != nullptr) {
      ends = transport::make_in_process_link(transport::HandOver::copy);
    } else {
      auto link = parts_.connect(choice_lane(*plan_, replica, pipeline, shard),
                                 leader != nullptr ? follower_rank : leader_rank);
      if (!link) return link.error();
      (leader != nullptr ? ends.first : ends.second) = std::move(*link);
    }
    const auto give = [&](LocalRank* rank, std::unique_ptr<transport::Link> end) {
      if (rank == nullptr) return;
      rank->choices.push_back(std::make_unique<ChoiceLane>(std::move(end), choice_max));
    };
    give(leader, std::move(ends.first));
    give(follower, std::move(ends.second));
  }
  return Done{};
}

Expected<std::vector<std::unique_ptr<transport::Collective>>> LocalRanks::join(
    const GroupPlan& group) {
  const auto member_count = static_cast<std::uint32_t>(group.ranks.size());
  std::vector<std::uint32_t> here;
  for (std::uint32_t m = 0; m < member_count; ++m) {
    if (find(group.ranks[m]) != nullptr) here.push_back(m);
  }
  if (here.size() == member_count) return parts_.make_group(member_count, group.wire);
  std::vector<std::vector<std::unique_ptr<transport::Link>>> links(member_count);
  for (const auto m : here) {
    auto elsewhere = links_elsewhere(group, m);
    if (!elsewhere) return elsewhere.error();
    links[m] = std::move(*elsewhere);
    for (const auto other : here) {
      if (other == m) break;
      std::tie(links[m][other], links[other][m]) =
          transport::make_in_process_link(transport::HandOver::copy);
    }
  }
  std::vector<std::unique_ptr<transport::Collective>> members(member_count);
  for (const auto m : here) {
    members[m] = transport::make_linked_member(m, std::move(links[m]), {}, group.wire);
  }
  return members;
}

Expected<std::vector<std::unique_ptr<transport::Link>>> LocalRanks::links_elsewhere(
    const GroupPlan& group, std::uint32_t member) {
  std::vector<std::unique_ptr<transport::Link>> links(group.ranks.size());
  for (std::uint32_t other = 0; other < links.size(); ++other) {
    const auto rank = group.ranks[other];
    if (find(rank) != nullptr) continue;
    auto link = parts_.connect(group.lane(member, other), rank);
    if (!link) return link.error();
    links[other] = std::move(*link);
  }
  return links;
}

void LocalRanks::close_lanes() {
  for (auto& rank : ranks_) {
    if (rank.shards) rank.shards->close();
    for (auto& lane : rank.choices) lane->close();
    for (auto& held : rank.stages) {
      if (held.holders) held.holders->close();
      for (auto* edge : {&held.previous, &held.next, &held.tied}) {
        for (auto& lane : *edge) lane.link->close();
      }
    }
  }
}

void LocalRanks::empty_streams() {
  for (auto& rank : ranks_) {
    if (rank.stream) rank.stream->synchronize();
    if (rank.reduce_stream) rank.reduce_stream->synchronize();
    if (rank.shard_stream) rank.shard_stream->synchronize();
    for (auto& held : rank.stages) {
      if (held.stage) held.stage->on_bucket_ready({});
    }
  }
}

LocalRank* LocalRanks::find(std::uint32_t rank) {
  const auto found = std::ranges::lower_bound(ranks_, rank, {}, &LocalRank::rank);
  return found != ranks_.end() && found->rank == rank ? &*found : nullptr;
}

HeldStage* LocalRanks::find(const StagePlace& place) {
  auto* rank = find(rank_holding(*plan_, place));
  if (rank == nullptr) return nullptr;
  const auto stages = plan_->training.stages_of(rank->coordinate.pipeline);
  return &rank->stages[static_cast<std::size_t>(std::ranges::find(stages, place.stage)
                                                - stages.begin())];
}

}  // namespace troupe::actors
