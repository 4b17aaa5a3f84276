// cli/src/step_pictures.hpp -- a measured step as a picture and as a trace.
#pragma once

#include <array>
#include <cstdint>
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

/// What a counter of a trace shows: by rank of a report what it holds over time, as so many `unit`.
struct HeldActivations {
  std::vector<std::vector<MemoryLevel>> levels{};
  const char* unit = "sets";
};

/// trace.json: a step in Chrome's trace format; a process per replica, a thread per actor, and if
/// there are any, a counter of activations.
[[nodiscard]] std::string to_chrome_trace(const Schedule& schedule,
                                          const actors::StepReport& report,
                                          const HeldActivations& activations = {});

/// A simulated step as it would have been reported: its passes, sums and updates.
[[nodiscard]] actors::StepReport report_of(const Schedule& schedule, const Timeline& timeline);

}  // namespace troupe::cli
