// cli/src/step_comparison.hpp -- a measured step against its simulation: who was late, and why.
//
// What a pass began after is the pass before it on its rank or the one that made its input,
// whichever ended later. The pause between the two is called dispatch, which includes waiting for
// an output buffer that is still on its way out; or it is the handing over of the input, by the
// actor that sends it, the link, and the actor that takes it. From any pass these lead back to the
// begin of the step, and along them every nanosecond by which the pass began later than simulated
// has a place: a pass that took longer, or a pause that was longer. So the delays of a pass add up
// to how late it began, without a remainder, and with what follows the last pass they add up to how
// much longer the step took.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "troupe/actors/step_report.hpp"
#include "troupe/engine/grid.hpp"
#include "troupe/engine/schedule.hpp"
#include "troupe/engine/simulate.hpp"
#include "troupe/engine/time_account.hpp"

namespace troupe::cli {

/// How much more of its time than simulated a rank spent on one cause.
struct Delay {
  Coordinate where;
  TimeCause cause = TimeCause::computing;
  std::int64_t excess_ns = 0;     ///< Measured less simulated.
  std::optional<Action> longest;  ///< The pass that took, or waited, longest beyond the simulation.
  std::int64_t longest_ns = 0;    ///< Its part.
};

/// One pass. Measured times count from the begin of the step's first pass, as simulated ones do.
struct ComparedPass {
  Coordinate where;
  TimelineEntry measured;
  TimelineEntry simulated;
  std::optional<Coordinate> input_from;  ///< The rank whose output it waited for, if it did.
  std::vector<Delay> delays;             ///< Largest first; they add up to `late_ns`.

  [[nodiscard]] std::int64_t late_ns() const noexcept {
    return measured.begin_ns - simulated.begin_ns;
  }
};

/// Where the time of one rank went. What it spent before the step began, waiting for it, is left
/// out.
struct ComparedRank {
  Coordinate where;
  std::array<std::int64_t, time_cause_count> measured_ns{};  ///< By cause.
  std::array<std::int64_t, time_cause_count>
      simulated_ns{};  ///< By cause; adds up to the makespan.
};

struct StepComparison {
  std::uint32_t step = 0;
  std::int64_t measured_ns = 0;
  std::int64_t simulated_ns = 0;
  std::vector<ComparedRank> ranks;   ///< By rank of the grid.
  std::vector<Delay> delays;         ///< Largest first; they add up to what the step took longer.
  std::vector<ComparedPass> passes;  ///< Those furthest from the simulation, furthest first.
};

/// Sets `report` against `simulated`.
/// @param report a step of `schedule`, as `parse_recorded_steps` accepts it.
/// @param simulated what `simulate` made of `schedule` for one replica: all are held against it.
/// @param pass_count_max how many passes to list.
[[nodiscard]] StepComparison compare_step(const Schedule& schedule,
                                          const actors::StepReport& report,
                                          const Timeline& simulated, std::size_t pass_count_max);

}  // namespace troupe::cli
