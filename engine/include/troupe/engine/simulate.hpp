// troupe/engine/simulate.hpp -- when everything in a schedule happens, without hardware.
//
// Time is virtual and counted in whole nanoseconds, so that closed forms hold exactly. A rank runs
// one pass at a time, in the order of its program, each as soon as its input is here and its output
// has a buffer.
//
// There are two ways to the same timeline. `simulate` follows the flow of data from pass to pass
// and is made for sweeps; `simulate_machines` lets the `StageMachine`s of a run perform the step on
// devices and links of virtual time, and is what `simulate` is judged by.
#pragma once

#include <cstdint>

#include "troupe/engine/cost_model.hpp"
#include "troupe/engine/schedule.hpp"
#include "troupe/engine/timeline.hpp"

namespace troupe {

/// What a timeline is to hold.
enum class Recording : std::uint8_t {
  entries,  ///< Everything.
  totals,   ///< Everything but the passes, `Timeline::ranks`: 32 bytes each.
};

/// Runs one step of `schedule` in virtual time, with constant work per action. Transfers that share
/// interfaces, or may find no buffer at their receiver, cost a place in a priority queue besides.
///
/// @param schedule one that `validate` accepts.
/// @param costs lists of one value, or of one per stage, link or rank.
[[nodiscard]] Timeline simulate(const Schedule& schedule, const CostModel& costs,
                                Recording recording = Recording::entries);

/// The same, by `StageMachine`s: every event reaches the machine of its rank in the order of time,
/// and its commands are carried out at their costs.
[[nodiscard]] Timeline simulate_machines(const Schedule& schedule, const CostModel& costs);

}  // namespace troupe
