// troupe/engine/automatic_schedule.hpp -- schedules searched for measured costs and given memory.
//
// What a pass takes differs from stage to stage, hops take time, and memory is short: the best
// order then has no name. It is found by trying orders in virtual time, deterministically: the same
// request gives the same schedule on every machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "troupe/engine/expected.hpp"
#include "troupe/engine/schedule.hpp"
#include "troupe/engine/schedule_generators.hpp"
#include "troupe/engine/simulate.hpp"

namespace troupe {

/// Which time of a step is to be short.
enum class StepTime : std::uint8_t {
  makespan,      ///< From 0 until every rank is done: the ranks begin the next step together.
  longest_rank,  ///< From the first pass of a rank to its end, on the rank where that is longest:
                 ///< no rank waits for the others before its next step (the post-validation of Qi
                 ///< et al. 2023).
};

/// What a schedule is searched for. Lists of one value mean that value everywhere.
struct AutomaticRequest {
  std::vector<RankIndex> rank_of_stage;  ///< By stage; at least one, no rank left out.
  std::uint32_t microbatch_count = 1;    ///< At least 1.
  CostModel costs{};                     ///< Of it the stages, links, starts and optimizers.

  /// By stage, at least 1: what a microbatch in flight holds, in any unit.
  std::vector<std::int64_t> activation_sizes{1};
  /// By stage, at least 1: what of that it still holds between I and W. Empty: all, as the stages
  /// of this project do.
  std::vector<std::int64_t> kept_sizes{};
  /// By rank: the most that its stages may hold, each counted when it holds most, for the memory of
  /// one serves no other. Empty: no limit.
  std::vector<std::int64_t> memory_limits{};

  StepTime step_time = StepTime::makespan;
  std::size_t simulated_actions_max = std::size_t{1} << 24U;  ///< How much may be tried, about.
};

/// Searches for the schedule with the shortest step: tries ways in which ranks could choose what to
/// begin, takes the best program or that of a named schedule on the same stages that is shorter and
/// keeps to the limits, and moves single passes. Backward passes are split where it helps. Time
/// grows linearly with `simulated_actions_max`, at 10 ns or less each, and with one simulation of
/// every named schedule; it ends early where no schedule can be shorter.
///
/// Does not look for an order of microbatches: they go through each stage as they are numbered.
/// @returns `invalid_config` for a list of the wrong length, and for a memory limit below one
///          microbatch on every stage of the rank; says the least that works.
[[nodiscard]] Expected<Schedule> make_automatic_schedule(const AutomaticRequest& request);

/// The same search as far as the schedules ZB-1p and ZB-2p need it (Qi et al. 2023, section 3): all
/// backward passes split, and no named schedule to begin with. The paper's own memory is that of
/// `kept_sizes`, its own step the longest rank.
[[nodiscard]] Expected<Schedule> make_zero_bubble_schedule(const AutomaticRequest& request);

/// The schedules that `make_schedule` knows by these names, of `request.chunk_count` stages on each
/// rank and with `request.memory_limit` slots for each of them on average. Without a limit, zb-1p
/// has P microbatches in flight on a rank, zb-2p and auto 2 P. Of several chunks, auto deals the
/// stages in loops or in a V, as the step is shorter.
[[nodiscard]] Expected<Schedule> make_zb_1p(const ScheduleRequest& request);
[[nodiscard]] Expected<Schedule> make_zb_2p(const ScheduleRequest& request);
[[nodiscard]] Expected<Schedule> make_auto(const ScheduleRequest& request);

}  // namespace troupe
