// cli/src/step_pictures.hpp -- a measured step as a picture and as a trace.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "troupe/actors/step_report.hpp"
#include "troupe/engine/draw.hpp"
#include "troupe/engine/grid.hpp"
#include "troupe/engine/schedule.hpp"
#include "troupe/engine/simulate.hpp"

namespace troupe::cli {

/// How pictures and tables call an actor: `rank 1`, or `replica 0 rank 1` where there are several.
[[nodiscard]] std::string actor_name(const Coordinate& coordinate, std::uint32_t replica_count);

/// The measured step, a lane per actor, and one below it for the reductions of an actor with
/// replicas; and the simulated one.
/// @param basis what the simulation rests on, for its title.
[[nodiscard]] std::array<Picture, 2> pictures_of(const Schedule& schedule,
                                                 const actors::StepReport& report,
                                                 const Timeline& simulated,
                                                 const std::string& basis);

/// trace.json: a step in Chrome's trace format; a process per replica, a thread per actor.
/// @param activations by rank of the report, if not empty: the sets that it holds, as a counter.
[[nodiscard]] std::string to_chrome_trace(
    const Schedule& schedule, const actors::StepReport& report,
    std::span<const std::vector<MemoryLevel>> activations = {});

/// A simulated step as it would have been reported: its passes, sums and updates.
[[nodiscard]] actors::StepReport report_of(const Schedule& schedule, const Timeline& timeline);

}  // namespace troupe::cli
