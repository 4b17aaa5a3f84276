#include "troupe/engine/plan.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "troupe/engine/check.hpp"
#include "troupe/engine/schedule_generators.hpp"
#include "troupe/engine/schedule_validation.hpp"

namespace troupe {

namespace {

bool splits_backward(const Schedule& schedule, StageIndex stage) {
  const auto& program = schedule.ranks[schedule.rank_of_stage[stage.value()].value()];
  return std::ranges::any_of(program, [stage](const Action& action) {
    return action.stage == stage && action.pass == Pass::backward_weight;
  });
}

Expected<Partition> partition_for(const Config& config, const Schedule& schedule) {
  const auto stage_count = schedule.stages_per_copy();
  const auto& explicit_layers = config.schedule.layers_per_stage;
  if (!explicit_layers.empty()) {
    return partition_of(config.model, stage_count, explicit_layers);
  }
  // Costs are FLOPs of a forward pass: backward passes cost the same multiple everywhere.
  std::vector<PartCosts> costs;
  for (std::uint32_t s = 0; s < stage_count; ++s) {
    const Shard shard{.index = 0, .count = config.parallel.tensor.of(schedule.rank_of_stage[s])};
    const auto forward = [&](const StageSpec& spec) {
      return flops_of(config.model, spec, config.schedule.microbatch_size, shard).forward;
    };
    const auto layer = forward({.layer_begin = 0, .layer_end = 1});
    costs.push_back({.embedding = forward({0, 1, true, false}) - layer,
                     .layer = layer,
                     .head = forward({0, 1, false, true}) - layer});
  }
  return balance(config.model, costs);
}

Recompute recompute_of(const TrainConfig& train, std::uint32_t stage) {
  const auto& stages = train.recompute_stages;
  const bool does = stages.empty() || std::ranges::find(stages, stage) != stages.end();
  return does ? train.recompute : Recompute::none;
}

/// Where gradients are summed microbatch by microbatch, passes wait for those of other holders.
Expected<Done> check_sharding(const Config& config, const Schedule& schedule) {
  if (config.train.optimizer_sharding != OptimizerSharding::zero2) return Done{};
  const bool in_order = config.schedule.policy == Policy::in_order;
  if (in_order && schedule.copy_count == 1) return Done{};
  return Error{Errc::invalid_config,
               "train.optimizer_sharding: \"zero2\" sums gradients in the middle of passes, which "
               "all replicas must run in the same order, and "
                   + (in_order ? "the schedule " + schedule.name + " runs two copies of the model"
                               : "schedule.policy lets each choose")
                   + "; \"zero1\" works"};
}

/// A server updates one copy of the parameters.
Expected<Done> check_servers(const Config& config, const Schedule& schedule) {
  if (config.train.synchronization == Synchronization::all_reduce || schedule.copy_count == 1) {
    return Done{};
  }
  return Error{Errc::invalid_config,
               "train.synchronization: \"parameter_server\" serves replicas, and schedule.name = \""
                   + schedule.name
                   + "\" runs two copies of the model in each, which sum up their gradients as "
                     "replicas do; set \"all_reduce\", or take another schedule"};
}

/// What the schedule must agree on with the rest of the configuration.
Expected<Done> check_extent(const Config& config, const Schedule& schedule) {
  const auto differs = [&](const std::string& key, std::uint32_t configured, std::uint32_t found) {
    return Error{Errc::invalid_config, "the schedule " + schedule.name + " has "
                                           + std::to_string(found) + " " + key
                                           + " but the configuration says "
                                           + std::to_string(configured) + "; make them equal"};
  };
  if (schedule.rank_count() != config.parallel.pipeline) {
    return differs("ranks (parallel.pipeline)", config.parallel.pipeline, schedule.rank_count());
  }
  if (schedule.microbatch_count != config.schedule.microbatches) {
    return differs("microbatches (schedule.microbatches)", config.schedule.microbatches,
                   schedule.microbatch_count);
  }
  const auto chunks = config.schedule.chunks;
  if (chunks > 1 && chunks * schedule.rank_count() != schedule.stage_count()) {
    return differs("virtual stages (schedule.chunks per rank)", chunks * schedule.rank_count(),
                   schedule.stage_count());
  }
  for (const auto stage : config.train.recompute_stages) {
    if (stage < schedule.stage_count()) continue;
    return Error{Errc::invalid_config,
                 "train.recompute_stages: there is no stage " + std::to_string(stage)
                     + "; the virtual stages of the schedule " + schedule.name + " are 0 to "
                     + std::to_string(schedule.stage_count() - 1)};
  }
  return Done{};
}

/// What several stages hold together they must divide alike.
Expected<Done> check_equal_shards(const Config& config, const Schedule& schedule) {
  const auto rank_of = [&](std::uint32_t stage) { return schedule.rank_of_stage[stage]; };
  const auto shards_of = [&](std::uint32_t stage) {
    return config.parallel.tensor.of(rank_of(stage));
  };
  const auto differs = [&](const std::string& why, std::uint32_t a, std::uint32_t b) {
    return Error{Errc::invalid_config,
                 "parallel.tensor: " + why + ", and pipeline rank "
                     + std::to_string(rank_of(a).value()) + " has " + std::to_string(shards_of(a))
                     + " shards but pipeline rank " + std::to_string(rank_of(b).value()) + " "
                     + std::to_string(shards_of(b)) + "; give both the same"};
  };
  const auto count = schedule.stages_per_copy();
  for (std::uint32_t s = count; s < schedule.stage_count(); ++s) {
    if (shards_of(s) == shards_of(s % count)) continue;
    return differs("in the two directions of the schedule " + schedule.name
                       + " the same layers lie on two ranks",
                   s % count, s);
  }
  if (config.train.optimizer == OptimizerKind::adafactor && config.model.tie_embeddings
      && shards_of(0) != shards_of(count - 1)) {
    return differs(
        "train.optimizer = \"adafactor\" keeps the copies of tied embeddings equal only on as many "
        "shards",
        0, count - 1);
  }
  return Done{};
}

}  // namespace

std::uint32_t Plan::sequences_per_step() const noexcept {
  return config.parallel.data * config.schedule.microbatches * config.schedule.microbatch_size;
}

std::uint32_t Plan::tokens_per_step() const noexcept {
  return sequences_per_step() * config.model.sequence;
}

double Plan::flops_per_step() const noexcept {
  double sum = 0.0;
  for (const auto& stage : stages) {
    const auto& [forward, backward_input, backward_weight] = stage.flops;
    sum += shard_count(stage.stage) * (forward + backward_input + backward_weight);
  }
  const auto microbatches_of_copy = config.schedule.microbatches / training.copy_count;
  return sum * microbatches_of_copy * config.parallel.data;
}

namespace {

std::uint64_t bytes_of(const Plan& plan, RankIndex rank,
                       std::vector<MemoryItem> StagePlan::*memory) noexcept {
  std::uint64_t sum = 0;
  for (const auto& stage : plan.stages) {
    if (stage.rank != rank) continue;
    for (const auto& item : stage.*memory) sum += item.bytes;
  }
  return sum;
}

}  // namespace

std::uint64_t Plan::bytes_of(RankIndex rank) const noexcept {
  return troupe::bytes_of(*this, rank, &StagePlan::memory);
}

std::uint64_t Plan::server_bytes_of(RankIndex rank) const noexcept {
  return troupe::bytes_of(*this, rank, &StagePlan::server_memory);
}

std::uint64_t Plan::host_bytes_of(RankIndex rank) const noexcept {
  std::uint64_t sum = 0;
  for (const auto& stage : stages) {
    if (stage.rank != rank) continue;
    for (const auto& item : stage.memory) sum += item.for_host ? item.bytes : 0;
  }
  return sum;
}

std::uint64_t StagePlan::slot_bytes() const {
  const auto* const name = bounds.offloads ? "offloaded slots" : "slots";
  const auto slots = std::ranges::find(memory, name, &MemoryItem::name);
  return slots == memory.end() ? 0 : slots->bytes / bounds.slots;
}

/// A slot is copied after each pass that leaves something in it for another, F and I, but for
/// another that is the stage's next.
std::uint64_t Plan::offloaded_bytes_of(RankIndex rank) const {
  std::uint64_t sum = 0;
  for (const auto& action : training.ranks[rank.value()]) {
    const auto& stage = stages[action.stage.value()];
    if (!stage.bounds.offloads || accumulates_weights(action.pass)) continue;
    sum += stage.slot_bytes();
  }
  return sum;
}

std::uint64_t Plan::gradient_bytes_of(RankIndex rank) const {
  std::uint64_t count = 0;
  for (const auto& stage : stages) {
    if (stage.rank != rank) continue;
    for (const auto& parameter : parameters_of(config.model, stage.spec, shard(stage.stage, 0))) {
      count += parameter.element_count();
    }
  }
  return count * bytes_per_number(config.train.gradient_wire);
}

Expected<Done> check_device(const Plan& plan, MemorySpace space) {
  if (plan.config.train.offload == Offload::none || space == MemorySpace::device) return Done{};
  return Error{Errc::invalid_config,
               "train.offload: \"activations\" moves them from the device to host memory, but "
               "run.device = \""
                   + plan.config.run.device
                   + "\" computes in host memory; set \"none\", and where memory is short, "
                     "train.recompute"};
}

StageBounds bounds_of(const Schedule& training, const Schedule& evaluation, StageIndex stage) {
  const auto until_used = in_flight_max(training, stage, Pass::backward_weight);
  const auto [begin, end] = training.microbatches_of(stage);
  const auto microbatch_count = end - begin;
  StageBounds bounds{.slots = until_used, .splits_backward = splits_backward(training, stage)};
  if (!training.is_first(stage)) {
    const StageIndex previous{stage.value() - 1};
    // What the previous stage has sent and this one has not begun is in flight there; what this one
    // keeps after its input gradient has gone is in flight here alone, and only if it splits.
    const auto ahead = in_flight_max(training, previous, Pass::backward_input);
    const auto needed = bounds.splits_backward ? until_used + ahead : std::max(until_used, ahead);
    const bool is_chain = evaluation.stage_count() == evaluation.rank_count();
    const auto forward_only = is_chain ? 2U : 2U * evaluation.rank_count();
    bounds.activations_in = std::min(std::max(needed, forward_only), microbatch_count);
    bounds.gradients_out = std::min(2U, microbatch_count);
  }
  if (!training.is_last(stage)) {
    bounds.activations_out = std::min(2U, microbatch_count);
    bounds.gradients_in = until_used;
  }
  return bounds;
}

Expected<Plan> make_plan(const Config& config) {
  const auto& wanted = config.schedule;
  auto schedule = make_schedule(wanted.name, {.rank_count = config.parallel.pipeline,
                                              .microbatch_count = wanted.microbatches,
                                              .chunk_count = wanted.chunks,
                                              .split = wanted.split_backward,
                                              .memory_limit = wanted.memory_limit});
  if (!schedule) return schedule.error();
  return make_plan(config, std::move(*schedule));
}

Expected<Plan> make_plan(const Config& config, Schedule training) {
  if (auto valid = validate(config); !valid) return valid.error();
  if (auto fits = check_extent(config, training); !fits) return fits.error();
  if (auto fits = check_sharding(config, training); !fits) return fits.error();
  if (auto fits = check_servers(config, training); !fits) return fits.error();
  if (config.schedule.split_backward) training = split_backward(std::move(training));
  training = with_weight_passes_in_order(std::move(training));
  if (auto valid = validate(training); !valid) return valid.error();
  if (auto fits = check_equal_shards(config, training); !fits) return fits.error();
  auto partition = partition_for(config, training);
  if (!partition) return partition.error();

  Plan plan{.config = config, .training = std::move(training), .evaluation = {}, .stages = {}};
  plan.evaluation = make_forward_only(plan.training);
  const auto last_replica = plan.holder_count() - (plan.has_servers() ? 2 : 1);
  for (std::uint32_t v = 0; v < plan.training.stage_count(); ++v) {
    const StageIndex stage{v};
    // The first shard needs no less than others; the last holder, more than others by some cache
    // lines at most.
    const auto shard = plan.shard(stage, 0);
    auto bounds = bounds_of(plan.training, plan.evaluation, stage);
    bounds.recompute = recompute_of(config.train, v);
    bounds.offloads = config.train.offload == Offload::activations && bounds.slots > resident_slots;
    const auto& spec = (*partition)[v % plan.training.stages_per_copy()];
    StageShape shape{.model = config.model,
                     .spec = spec,
                     .bounds = bounds,
                     .microbatch_count = plan.training.microbatch_count,
                     .microbatch_size = config.schedule.microbatch_size,
                     .optimizer = config.train.optimizer,
                     .sharding = config.train.optimizer_sharding,
                     .shard = shard,
                     .holder = plan.holder(last_replica),
                     .staleness = config.train.staleness};
    auto memory = memory_of(shape);
    shape.holder = plan.holder(plan.holder_count() - 1);
    plan.stages.push_back(
        {.stage = stage,
         .rank = plan.training.rank_of_stage[v],
         .spec = spec,
         .bounds = bounds,
         .flops = flops_of(config.model, spec, config.schedule.microbatch_size, shard),
         .memory = std::move(memory),
         .server_memory = plan.has_servers() ? memory_of(shape) : std::vector<MemoryItem>{}});
  }
  return plan;
}

std::uint32_t concurrent_streams(const Plan& plan, std::uint32_t rank_count,
                                 std::uint32_t core_count) {
  return std::clamp(core_count / plan.config.run.threads_per_stage, 1U, rank_count);
}

}  // namespace troupe
