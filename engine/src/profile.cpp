#include "troupe/engine/profile.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>
#include <set>
#include <span>
#include <string>
#include <utility>

#include "troupe/engine/lanes.hpp"
#include "troupe/engine/layer_builder.hpp"
#include "troupe/engine/optimizer_sharding.hpp"
#include "troupe/engine/schedule_generators.hpp"
#include "troupe/engine/simulate.hpp"

#include "config_keys.hpp"

namespace troupe {

namespace {

Error misfit(const char* what, const std::string& profiled, const std::string& planned) {
  return {Errc::invalid_config, std::string{"the profile was measured with "} + what + " = "
                                    + profiled + ", the configuration has " + planned
                                    + "; measure one for it with `troupe profile`"};
}

std::int64_t rounded(double ns) {
  return static_cast<std::int64_t>(std::llround(ns));
}

template <class Names, class Enum>
std::string name_of(const Names& names, Enum value) {
  return std::string{names.at(static_cast<std::size_t>(value))};
}

PassCosts sum(const PassCosts& a, const PassCosts& b, std::int64_t times) {
  return {a.forward_ns + times * b.forward_ns, a.backward_ns + times * b.backward_ns,
          a.backward_input_ns + times * b.backward_input_ns,
          a.backward_weight_ns + times * b.backward_weight_ns};
}

/// Null if the profile has none of stages of so many shards.
const PartTimes* parts_of(const Profile& profile, std::uint32_t shard_count) {
  const auto found = std::ranges::find(profile.parts, shard_count, &PartTimes::shard_count);
  return found == profile.parts.end() ? nullptr : &*found;
}

PassCosts costs_of(const StagePlan& stage, const PartTimes& parts) {
  const auto& spec = stage.spec;
  const bool recomputes = stage.bounds.recompute != Recompute::none;
  auto costs =
      sum({0, 0, 0, 0}, recomputes ? parts.recomputing_layer : parts.layer, spec.layer_count());
  if (spec.has_embedding) costs = sum(costs, parts.embedding, 1);
  if (spec.has_head) costs = sum(costs, parts.head, 1);
  return costs;
}

/// Whether the stages of every rank have a number of shards that was measured, and divide rows as
/// was measured.
Expected<Done> check_shards(const Profile& profile, const Plan& plan) {
  const auto divides_rows = plan.config.train.sequence_parallel;
  for (const auto& stage : plan.stages) {
    const auto wanted = plan.shard_count(stage.stage);
    if (wanted > 1 && profile.sequence_parallel != divides_rows) {
      const auto name = [](bool is_on) { return is_on ? "true" : "false"; };
      return misfit("train.sequence_parallel", name(profile.sequence_parallel), name(divides_rows));
    }
    if (parts_of(profile, wanted) != nullptr) continue;
    std::string measured;
    for (const auto& part : profile.parts) {
      measured += (measured.empty() ? "" : ", ") + std::to_string(part.shard_count);
    }
    return misfit("parallel.tensor", measured, std::to_string(wanted));
  }
  return Done{};
}

double of_all_passes(const PassCosts& costs) {
  return static_cast<double>(costs.forward_ns) + static_cast<double>(costs.backward_ns)
         + static_cast<double>(costs.backward_input_ns)
         + static_cast<double>(costs.backward_weight_ns);
}

std::int64_t delay_ns(const Plan& plan) {
  return std::int64_t{plan.config.run.link_delay_us} * 1000;
}

/// Ranks beyond those that computed at once share their cores.
double share_of(const Plan& plan, const Profile& profile) {
  const auto ranks = static_cast<double>(plan.config.parallel.rank_count());
  return std::max(1.0, ranks / profile.stream_count);
}

std::int64_t activation_bytes(const Plan& plan) {
  return std::int64_t{plan.config.schedule.microbatch_size} * plan.config.model.sequence
         * plan.config.model.hidden * std::int64_t{sizeof(float)};
}

// -- between processes ----------------------------------------------------------------------------

double nanoseconds(const Wire& wire, double bytes) {
  return static_cast<double>(wire.latency_ns) + bytes / wire.bytes_per_second * 1e9;
}

Wire delayed(Wire wire, const Plan& plan) {
  wire.latency_ns += delay_ns(plan);
  return wire;
}

/// Where ranks live, and how they exchange something.
class Placement {
public:
  Placement(const Plan& plan, const Profile& profile, std::uint32_t process_count)
      : plan_{plan}, profile_{profile} {
    if (process_count > 1) process_of_rank_ = place_ranks(plan, process_count);
  }

  /// The channels between pipeline ranks that lead from one process to another.
  [[nodiscard]] std::vector<Channel> channels_between() const {
    std::set<std::pair<RankIndex, RankIndex>> ends;
    for_each_lane_between([&](const StageLane& lane, RankIndex from, RankIndex to) {
      if (lane.kind == StageLane::Kind::tied) return;
      ends.insert({from, to});
      ends.insert({to, from});
    });
    std::vector<Channel> channels;
    for (const auto& [from, to] : ends) {
      channels.push_back({from, to, delayed(profile_.between_processes->link, plan_)});
    }
    return channels;
  }

  /// By pipeline rank: what its half of the gradient of tied embeddings takes on its way.
  [[nodiscard]] std::vector<double> tied_ns() const {
    std::vector<double> tied_ns(plan_.training.rank_count(), 0.0);
    for_each_lane_between([&](const StageLane& lane, RankIndex from, RankIndex to) {
      if (lane.kind != StageLane::Kind::tied) return;
      const auto rows = static_cast<double>(lane.up.count);
      const auto bytes = rows * plan_.config.model.hidden * sizeof(float);
      const auto takes_ns = nanoseconds(profile_.between_processes->link, bytes);
      for (auto* end : {&tied_ns[from.value()], &tied_ns[to.value()]}) {
        *end = std::max(*end, takes_ns);
      }
    });
    return tied_ns;
  }

  /// All-reduces among those that hold the same parameters, of fp32 that travels in `wire_format`.
  [[nodiscard]] Wire reduction(WireFormat wire_format) const {
    const auto share = share_of(plan_, profile_);
    auto wire = profile_.reduction;
    if (sums_between()) {
      wire = profile_.between_processes->reduction;
      const double member_count = plan_.holder_count();
      wire.bytes_per_second *= member_count / (2.0 * (member_count - 1.0));
      wire.bytes_per_second *= sizeof(float) / static_cast<double>(bytes_per_number(wire_format));
    }
    wire.bytes_per_second /= share;
    return wire;
  }

private:
  template <class Visit>
  void for_each_lane_between(const Visit& visit) const {
    if (process_of_rank_.empty()) return;
    for (const auto& lane : lanes_of(plan_)) {
      const auto lower = rank_holding(plan_, lane.lower);
      const auto upper = rank_holding(plan_, lane.upper);
      if (process_of_rank_[lower] == process_of_rank_[upper]) continue;
      visit(lane, plan_.training.rank_of_stage[lane.lower.stage.value()],
            plan_.training.rank_of_stage[lane.upper.stage.value()]);
    }
  }

  /// Whether some that hold the same parameters are in different processes.
  [[nodiscard]] bool sums_between() const {
    if (process_of_rank_.empty()) return false;
    for (std::uint32_t position = 0; position < plan_.training.stages_per_copy(); ++position) {
      for (std::uint32_t shard = 0; shard < plan_.shard_count(StageIndex{position}); ++shard) {
        const auto members = ranks_holding(plan_, {position, shard});
        const auto process = [&](std::uint32_t rank) { return process_of_rank_[rank]; };
        const auto is_elsewhere = [&, first = process(members.front())](std::uint32_t rank) {
          return process(rank) != first;
        };
        if (std::ranges::any_of(members, is_elsewhere)) return true;
      }
    }
    return false;
  }

  const Plan& plan_;
  const Profile& profile_;
  std::vector<std::uint32_t> process_of_rank_;  ///< Empty: all in one.
};

// -- sums of gradients ----------------------------------------------------------------------------

/// Over replicas, copies of the model, or both.
bool sums_gradients(const Plan& plan) {
  return plan.holder_count() > 1 && !plan.has_servers();
}

/// Whether there are replicas to do it. The copies of one are on different ranks of it, which the
/// simulator lets each sum on its own.
bool sums_over_replicas(const Plan& plan) {
  return sums_gradients(plan) && plan.config.parallel.data > 1;
}

/// Whether sums run beside passes.
bool has_spare_cores(const Plan& plan, const Profile& profile) {
  return profile.has_spare_cores && share_of(plan, profile) == 1.0;
}

/// What sums of gradients take; all-reduces.
struct SumWires {
  Wire gradients{};
  Wire weights{};  ///< Which travel as they are.

  static SumWires of(const Plan& plan, const Placement& placement) {
    if (!sums_gradients(plan)) return {};
    return {placement.reduction(plan.config.train.gradient_wire),
            placement.reduction(WireFormat::fp32)};
  }
};

/// What the sums of a stage's gradients over all that hold its parameters take of it.
struct StageSums {
  std::vector<std::int64_t>
      bucket_bytes{};         ///< Summed behind the last weight pass, in all-reduces.
  double each_pass_ns = 0.0;  ///< In each weight pass.
  double behind_update_ns = 0.0;

  static StageSums of(const Plan& plan, const StagePlan& stage, const SumWires& wires) {
    StageSums sums;
    if (!sums_gradients(plan)) return sums;
    const auto sharding = plan.config.train.optimizer_sharding;
    const auto graph =
        graph_of(plan.config.model, stage.spec, {.shard = plan.shard(stage.stage, 0)});
    const auto in_parts = kept_in_parts(graph, plan.holder(0), sharding);
    for (std::size_t b = 0; b < graph.buckets.size(); ++b) {
      const auto size = layout_of(graph, graph.buckets[b]).size * sizeof(float);
      const auto half = size / 2;
      if (sharding != OptimizerSharding::none) {
        sums.behind_update_ns += nanoseconds(wires.weights, static_cast<double>(half));
      }
      if (in_parts[b]) {
        sums.each_pass_ns += nanoseconds(wires.gradients, static_cast<double>(half));
      } else {
        sums.bucket_bytes.push_back(
            static_cast<std::int64_t>(sharding == OptimizerSharding::none ? size : half));
      }
    }
    return sums;
  }

  [[nodiscard]] double behind_passes_ns(const SumWires& wires) const {
    double sum = 0.0;
    for (const auto bytes : bucket_bytes) {
      sum += nanoseconds(wires.gradients, static_cast<double>(bytes));
    }
    return sum;
  }
  [[nodiscard]] double longest_ns(const SumWires& wires, std::uint32_t microbatch_count) const {
    return microbatch_count * each_pass_ns + behind_passes_ns(wires) + behind_update_ns;
  }
};

/// As many as computed at once when it was profiled, two at least: more would do the same.
std::uint32_t simulated_replicas(const Plan& plan, const Profile& profile) {
  const auto& grid = plan.config.parallel;
  if (!sums_over_replicas(plan)) return 1;
  const auto ranks = grid.rank_count() / grid.data;
  const auto measured = (profile.stream_count - 1) / ranks + 1;
  return std::clamp(measured, 2U, grid.data);
}

// -- what is possible -----------------------------------------------------------------------------

/// More than any pass of an uneven machine takes longer than in the mean.
double slowest_of(const Unevenness& unevenness) {
  constexpr double deviations_max = 4.0;  // Of its logarithm: no factor is drawn from beyond.
  double slowest = 1.0;
  for (const auto& of_step : unevenness.slowdowns) {
    for (const auto slowdown : of_step) slowest = std::max(slowest, slowdown);
  }
  return slowest
         * std::exp(deviations_max
                    * std::sqrt(std::log1p(unevenness.pass_spread * unevenness.pass_spread)));
}

/// More than the step takes, one thing after the other.
double longest_ns(const Plan& plan, const Profile& profile, std::uint32_t process_count) {
  const Placement placement{plan, profile, process_count};
  const auto wires = SumWires::of(plan, placement);
  const auto link = profile.between_processes.value_or(ProcessLinks{}).link;
  const auto transfer_ns =
      nanoseconds(delayed(link, plan), static_cast<double>(activation_bytes(plan)));
  const auto hops_ns = 4.0 * transfer_ns + 8.0 * static_cast<double>(profile.dispatch_ns);
  const auto tied_ns = placement.tied_ns();
  double sum = std::accumulate(tied_ns.begin(), tied_ns.end(), 0.0);
  for (const auto& stage : plan.stages) {
    const auto& parts = *parts_of(profile, plan.shard_count(stage.stage));
    const auto passes =
        of_all_passes(parts.embedding) + of_all_passes(parts.head)
        + stage.spec.layer_count()
              * (of_all_passes(parts.layer) + of_all_passes(parts.recomputing_layer));
    sum += plan.training.microbatch_count * (passes + hops_ns);
    sum += elements_of(plan, stage)
           * (profile.optimizer_ns_per_element + profile.measuring_ns_per_element);
    sum += StageSums::of(plan, stage, wires).longest_ns(wires, plan.training.microbatch_count);
  }
  return sum * share_of(plan, profile) * slowest_of(profile.unevenness)
         + static_cast<double>(profile.director_ns) + static_cast<double>(profile.start_ns);
}

/// More than a number by which the simulator multiplies durations: ranks that it adds up, buckets.
double largest_factor(const Plan& plan, const Profile& profile) {
  double buckets = 1.0;
  if (sums_over_replicas(plan)) {
    for (const auto& stage : plan.stages) {
      buckets = std::max(
          buckets,
          static_cast<double>(
              parameters_of(plan.config.model, stage.spec, plan.shard(stage.stage, 0)).size()));
    }
  }
  return std::max(
      buckets, static_cast<double>(plan.training.rank_count()) * simulated_replicas(plan, profile));
}

/// Whether so many processes can perform the plan, and how they are linked is known.
Expected<Done> check_processes(const Profile& profile, const Plan& plan,
                               std::uint32_t process_count) {
  const auto rank_count = plan.config.parallel.rank_count();
  if (process_count < 1 || process_count > rank_count) {
    return Error{Errc::invalid_config,
                 "found " + std::to_string(process_count) + " processes, expected 1 to "
                     + std::to_string(rank_count) + ", as many as the grid has actors"};
  }
  if (process_count == 1 || profile.between_processes) return Done{};
  return Error{Errc::invalid_config,
               "the profile knows no links between processes: they could not be measured; see "
               "`troupe doctor`, then measure another with `troupe profile`"};
}

}  // namespace

double elements_of(const Plan& plan, const StagePlan& stage) {
  double elements = 0.0;
  for (const auto& parameter :
       parameters_of(plan.config.model, stage.spec, plan.shard(stage.stage, 0))) {
    elements += static_cast<double>(parameter.element_count());
  }
  return elements;
}

Expected<Done> check_fits(const Profile& profile, const Plan& plan, std::uint32_t process_count) {
  const auto& measured = profile.model;
  const auto planned = plan.config.model.resolved();
  if (measured.family != planned.family) {
    return misfit("model.family", name_of(family_names, measured.family),
                  name_of(family_names, planned.family));
  }
  if (measured.custom_layer != planned.custom_layer) {
    const auto name = [](const ModelSpec& model) {
      return model.custom_layer == nullptr ? std::string{"none"} : model.custom_layer->name;
    };
    return misfit("ModelSpec::custom_layer", name(measured), name(planned));
  }
  if (measured.task != planned.task) {
    return misfit("model.task", name_of(task_names, measured.task),
                  name_of(task_names, planned.task));
  }
  const auto differs = [](const char* what, std::uint32_t a, std::uint32_t b) {
    return misfit(what, std::to_string(a), std::to_string(b));
  };
  struct Count {
    const char* key;
    std::uint32_t ModelSpec::*value;
  };
  for (const auto& [key, value] :
       {Count{"model.hidden", &ModelSpec::hidden}, Count{"model.heads", &ModelSpec::heads},
        Count{"model.kv_heads", &ModelSpec::kv_heads},
        Count{"model.feed_forward", &ModelSpec::feed_forward},
        Count{"model.sequence", &ModelSpec::sequence},
        Count{"model.vocabulary", &ModelSpec::vocabulary},
        Count{"model.classes", &ModelSpec::classes}}) {
    if (measured.*value != planned.*value) return differs(key, measured.*value, planned.*value);
  }
  struct Rate {
    const char* key;
    double ModelSpec::*value;
  };
  for (const auto& [key, value] :
       {Rate{"model.dropout", &ModelSpec::dropout},
        Rate{"model.attention_dropout", &ModelSpec::attention_dropout}}) {
    // How much is dropped takes no time; whether anything is, does.
    if ((measured.*value > 0.0) == (planned.*value > 0.0)) continue;
    return misfit(key, config::to_text(measured.*value), config::to_text(planned.*value));
  }
  for (const auto& stage : plan.stages) {
    const auto recompute = stage.bounds.recompute;
    if (recompute == Recompute::none || recompute == profile.recompute) continue;
    return misfit("train.recompute", name_of(recompute_names, profile.recompute),
                  name_of(recompute_names, recompute));
  }
  const auto precision = plan.config.train.precision;
  if (profile.precision != precision) {
    return misfit("train.precision", name_of(precision_names, profile.precision),
                  name_of(precision_names, precision));
  }
  if (auto fits = check_shards(profile, plan); !fits) return fits;
  const auto& schedule = plan.config.schedule;
  if (profile.microbatch_size != schedule.microbatch_size) {
    return differs("schedule.microbatch_size", profile.microbatch_size, schedule.microbatch_size);
  }
  const auto threads = plan.config.run.threads_per_stage;
  if (profile.threads_per_stage != threads) {
    return differs("run.threads_per_stage", profile.threads_per_stage, threads);
  }
  if (auto linked = check_processes(profile, plan, process_count); !linked) return linked;
  constexpr double years_ns = 1e17;    // Three.
  constexpr double largest_ns = 9e18;  // That 64 bits hold.
  const auto longest = longest_ns(plan, profile, process_count);
  if (!(longest <= std::min(years_ns, largest_ns / largest_factor(plan, profile)))) {
    return Error{Errc::invalid_config,
                 "by the profile a step may take years; measure one with `troupe profile`"};
  }
  return Done{};
}

CostModel costs_of(const Plan& plan, const Profile& profile, std::uint32_t process_count) {
  const auto share = share_of(plan, profile);
  const Placement placement{plan, profile, process_count};
  const auto wires = SumWires::of(plan, placement);
  const bool overlaps = has_spare_cores(plan, profile);
  CostModel costs{.stages = {}, .optimizer_ns = {}, .measuring_ns = {}};
  costs.rank_start_ns = {profile.start_ns};
  costs.slowdown = {share};
  costs.network.activation_bytes = costs.network.gradient_bytes = {activation_bytes(plan)};
  costs.network.wire = delayed({}, plan);
  costs.network.channels = placement.channels_between();
  costs.runtime.dispatch_ns = profile.dispatch_ns;
  costs.runtime.director_ns = profile.director_ns;
  costs.replicas = {.count = simulated_replicas(plan, profile),
                    .bucket_bytes = {},
                    .wire = wires.gradients,
                    .overlaps_passes = overlaps};
  const bool is_divided =
      plan.config.train.optimizer_sharding != OptimizerSharding::none && !plan.has_servers();
  std::vector<double> optimizer_ns(plan.training.rank_count(), 0.0);
  auto measuring_ns = placement.tied_ns();
  for (const auto& stage : plan.stages) {
    auto& passes = costs.stages.emplace_back(
        costs_of(stage, *parts_of(profile, plan.shard_count(stage.stage))));
    costs.runtime.bounds.push_back(stage.bounds);
    const auto elements = share * elements_of(plan, stage) / (is_divided ? plan.holder_count() : 1);
    const auto rank = stage.rank.value();
    auto sums = StageSums::of(plan, stage, wires);
    optimizer_ns[rank] += elements * profile.optimizer_ns_per_element + sums.behind_update_ns;
    measuring_ns[rank] += elements * profile.measuring_ns_per_element;
    if (!sums_over_replicas(plan)) measuring_ns[rank] += sums.behind_passes_ns(wires);
    costs.replicas.bucket_bytes.push_back(std::move(sums.bucket_bytes));
    const auto summed_ns = rounded(sums.each_pass_ns / share);
    for (auto* pass_ns : {&passes.backward_ns, &passes.backward_weight_ns}) {
      *pass_ns = overlaps ? std::max(*pass_ns, summed_ns) : *pass_ns + summed_ns;
    }
  }
  std::ranges::transform(optimizer_ns, std::back_inserter(costs.optimizer_ns), rounded);
  std::ranges::transform(measuring_ns, std::back_inserter(costs.measuring_ns), rounded);
  return costs;
}

Expected<Plan> make_plan(const Config& config, const Profile& profile) {
  if (!is_searched(config.schedule.name)) {
    auto plan = make_plan(config);
    if (!plan) return plan;
    const auto fits = check_fits(profile, *plan);
    return fits ? std::move(plan) : fits.error();
  }
  // Any schedule of as many stages tells what each of them holds.
  auto plain = config;
  plain.schedule.name = config.schedule.chunks > 1 ? "looped-bfs" : "1f1b";
  plain.schedule.memory_limit = 0;
  const auto stages = make_plan(plain);
  if (!stages) return stages;
  if (auto fits = check_fits(profile, *stages); !fits) return fits.error();
  auto costs = costs_of(*stages, profile);
  // The search knows one time for a hop, with what the runtime adds on both sides, and one replica.
  costs.link_ns = {costs.network.wire.latency_ns + 2 * profile.dispatch_ns};
  costs.replicas = {};
  const auto& wanted = config.schedule;
  auto schedule = make_schedule(wanted.name, {.rank_count = config.parallel.pipeline,
                                              .microbatch_count = wanted.microbatches,
                                              .chunk_count = wanted.chunks,
                                              .split = wanted.split_backward,
                                              .memory_limit = wanted.memory_limit,
                                              .costs = std::move(costs)});
  if (!schedule) return schedule.error();
  return make_plan(config, std::move(*schedule));
}

Timeline predict(const Plan& plan, const Profile& profile, std::uint32_t process_count) {
  return simulate(plan.training, costs_of(plan, profile, process_count));
}

UnevenSteps simulate_uneven(const Schedule& schedule, CostModel costs,
                            const Unevenness& unevenness) {
  const std::vector<std::vector<double>> even{{1.0}};
  const auto usual = costs.slowdown;
  costs.slowdown.resize(std::size_t{schedule.rank_count()} * costs.replicas.count);
  costs.jitter.pass_spread = std::hypot(costs.jitter.pass_spread, unevenness.pass_spread);
  std::vector<std::int64_t> makespans;
  for (const auto& of_step : unevenness.slowdowns.empty() ? even : unevenness.slowdowns) {
    for (std::size_t row = 0; row < costs.slowdown.size(); ++row) {
      costs.slowdown[row] = usual[row % usual.size()] * of_step[row % of_step.size()];
    }
    ++costs.jitter.seed;
    makespans.push_back(simulate(schedule, costs, Recording::totals).makespan_ns);
  }
  std::ranges::sort(makespans);
  const auto sum = std::accumulate(makespans.begin(), makespans.end(), 0.0);
  const auto count = makespans.size();
  return {sum / static_cast<double>(count), makespans[count / 10],
          makespans[count - 1 - count / 10]};
}

}  // namespace troupe
