#include "troupe/engine/automatic_schedule.hpp"

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "troupe/engine/check.hpp"
#include "troupe/engine/random.hpp"

#include "order_search.hpp"
#include "policy_search.hpp"
#include "step_problem.hpp"

namespace troupe {

namespace {

constexpr std::string_view automatic_name = "auto";

Error refused(std::string context) {
  return {Errc::invalid_config, std::move(context)};
}

Expected<Done> check_length(const char* name, std::size_t found, std::size_t expected,
                            const char* of) {
  if (found == 1 || found == expected) return Done{};
  return refused(std::string{name} + " has " + std::to_string(found) + " values for "
                 + std::to_string(expected) + " " + of + "; give one, or one for each");
}

Expected<Done> check_lengths(const AutomaticRequest& request) {
  const auto stage_count = request.rank_of_stage.size();
  const auto rank_count = std::size_t{std::ranges::max(request.rank_of_stage).value()} + 1;
  const auto& costs = request.costs;
  const auto check_optional = [](const char* name, const auto& list, std::size_t expected,
                                 const char* of) -> Expected<Done> {
    if (list.empty()) return Done{};
    return check_length(name, list.size(), expected, of);
  };
  for (const auto& ok :
       {check_length("costs.stages", costs.stages.size(), stage_count, "stages"),
        check_length("costs.link_ns", costs.link_ns.size(), stage_count - 1, "links"),
        check_length("costs.rank_start_ns", costs.rank_start_ns.size(), rank_count, "ranks"),
        check_length("costs.optimizer_ns", costs.optimizer_ns.size(), rank_count, "ranks"),
        check_length("activation_sizes", request.activation_sizes.size(), stage_count, "stages"),
        check_optional("kept_sizes", request.kept_sizes, stage_count, "stages"),
        check_optional("memory_limits", request.memory_limits, rank_count, "ranks")}) {
    if (!ok) return ok;
  }
  return Done{};
}

/// What one microbatch takes on all stages of `rank`: the least with which the rank can work.
std::int64_t share_of(const StepProblem& problem, const StepProblem::Rank& rank) {
  std::int64_t size = 0;
  for (const auto s : rank.stages) size += problem.stages()[s].activation_size;
  return size;
}

Expected<Done> check_memory(const StepProblem& problem) {
  for (std::uint32_t r = 0; r < problem.ranks().size(); ++r) {
    const auto& rank = problem.ranks()[r];
    const auto least = share_of(problem, rank);
    if (rank.memory_limit >= least) continue;
    return refused("the memory limit of rank " + std::to_string(r) + " is "
                   + std::to_string(rank.memory_limit) + ", but one microbatch takes "
                   + std::to_string(least) + " there; allow at least " + std::to_string(least));
  }
  return Done{};
}

/// How many microbatches every rank may hold on all its stages.
std::uint32_t microbatches_held(const AutomaticRequest& request, const StepProblem& problem) {
  auto held = std::int64_t{request.microbatch_count};
  for (const auto& rank : problem.ranks()) {
    held = std::min(held, rank.memory_limit / share_of(problem, rank));
  }
  return static_cast<std::uint32_t>(held);
}

/// The best schedule with a name that has the stages of `request` on the same ranks, and fits.
std::optional<Rows> best_named(const AutomaticRequest& request, StepProblem& problem) {
  std::optional<Rows> best;
  std::optional<StepCost> best_cost;
  const auto offer = [&](const Schedule& schedule) {
    if (schedule.copy_count != 1 || schedule.rank_of_stage != request.rank_of_stage) return;
    if (!problem.fits(schedule.ranks)) return;
    const auto cost = problem.cost_of(schedule.ranks);
    TROUPE_ASSERT(cost.has_value());
    if (best_cost && *cost >= *best_cost) return;
    best = schedule.ranks;
    best_cost = cost;
  };
  const auto rank_count = static_cast<std::uint32_t>(problem.ranks().size());
  const auto stage_count = static_cast<std::uint32_t>(problem.stages().size());
  ScheduleRequest wanted{.rank_count = rank_count,
                         .microbatch_count = request.microbatch_count,
                         .chunk_count = stage_count / rank_count,
                         .costs = request.costs};
  // As their names say, and those that take a limit also made to that.
  std::vector<std::uint32_t> limits{0};
  if (!request.memory_limits.empty()) limits.push_back(microbatches_held(request, problem));
  for (const auto limit : limits) {
    wanted.memory_limit = limit;
    for (const auto name : schedule_names()) {
      if (name == automatic_name) continue;
      const auto schedule = make_schedule(name, wanted);
      if (!schedule) continue;
      offer(*schedule);
      offer(split_backward(*schedule));
    }
  }
  return best;
}

/// What a search may do.
struct SearchChoices {
  bool may_be_whole;  ///< Leave backward passes whole.
  bool knows_names;   ///< Begin with a named schedule.
};

Expected<Schedule> search(std::string_view name, const AutomaticRequest& request,
                          const SearchChoices& choices) {
  if (auto ok = check_lengths(request); !ok) return ok.error();
  StepProblem problem{request};
  if (auto ok = check_memory(problem); !ok) return ok.error();
  // Policies first, for they change whole programs; then single passes with what is left.
  WorkBudget policy_budget{request.simulated_actions_max / 2};
  PolicySearch policies{problem, policy_budget, choices.may_be_whole};
  policies.search_choices();
  policies.search_stages();
  auto rows = policies.rows();
  if (choices.knows_names && policies.cost().step_ns > problem.step_ns_min()) {
    auto named = best_named(request, problem);
    if (named && *problem.cost_of(*named) < policies.cost()) rows = *std::move(named);
  }
  OrderSearch orders{problem, std::move(rows), choices.may_be_whole};
  WorkBudget budget{request.simulated_actions_max / 2 + policy_budget.left()};
  constexpr std::uint64_t seed = 1;
  Random random{seed};
  while (!budget.is_spent() && orders.can_move() && orders.cost().step_ns > problem.step_ns_min()) {
    orders.try_move(random, budget);
  }
  if (choices.may_be_whole) orders.join_backward_passes();
  return Schedule{.name = std::string{name},
                  .microbatch_count = request.microbatch_count,
                  .rank_of_stage = request.rank_of_stage,
                  .ranks = orders.rows()};
}

/// `memory_limit` microbatches on each rank, and as much searching as `steps_max` steps simulated.
AutomaticRequest automatic_request(const ScheduleRequest& request, StageMap map,
                                   std::uint32_t memory_limit, std::size_t steps_max) {
  constexpr std::size_t passes = 3;
  const auto stage_count = std::size_t{request.rank_count} * request.chunk_count;
  AutomaticRequest result{
      .rank_of_stage = make_stage_map(map, request.rank_count, request.chunk_count),
      .microbatch_count = request.microbatch_count,
      .costs = request.costs,
      .memory_limits = {std::int64_t{memory_limit} * request.chunk_count}};
  result.simulated_actions_max = std::min(
      result.simulated_actions_max, steps_max * passes * stage_count * request.microbatch_count);
  return result;
}

Expected<Schedule> make_zb(std::string_view name, const ScheduleRequest& request,
                           std::uint32_t memory_limit) {
  constexpr std::size_t steps_max = 200;
  auto wanted =
      automatic_request(request, StageMap::looped,
                        request.memory_limit == 0 ? memory_limit : request.memory_limit, steps_max);
  wanted.step_time = StepTime::longest_rank;
  return search(name, wanted, {.may_be_whole = false, .knows_names = false});
}

}  // namespace

Expected<Schedule> make_automatic_schedule(const AutomaticRequest& request) {
  return search(automatic_name, request, {.may_be_whole = true, .knows_names = true});
}

Expected<Schedule> make_zero_bubble_schedule(const AutomaticRequest& request) {
  return search("zero-bubble", request, {.may_be_whole = false, .knows_names = false});
}

Expected<Schedule> make_zb_1p(const ScheduleRequest& request) {
  return make_zb("zb-1p", request, request.rank_count);
}

Expected<Schedule> make_zb_2p(const ScheduleRequest& request) {
  return make_zb("zb-2p", request, 2 * request.rank_count);
}

Expected<Schedule> make_auto(const ScheduleRequest& request) {
  constexpr std::size_t steps_max = 4000;
  const auto limit = request.memory_limit == 0 ? 2 * request.rank_count : request.memory_limit;
  const auto make = [&](StageMap map) {
    return make_automatic_schedule(automatic_request(request, map, limit, steps_max));
  };
  auto looped = make(StageMap::looped);
  if (!looped || request.chunk_count == 1) return looped;
  auto v_shaped = make(StageMap::v_shaped);
  const auto step_ns = [&](const Schedule& schedule) {
    return simulate(schedule, request.costs).makespan_ns;
  };
  return v_shaped && step_ns(*v_shaped) < step_ns(*looped) ? v_shaped : looped;
}

}  // namespace troupe
