// cli/src/step_pictures.hpp -- a measured step as a picture and as a trace.
#pragma once

#include <string>

#include "troupe/actors/step_report.hpp"
#include "troupe/engine/draw.hpp"
#include "troupe/engine/plan.hpp"
#include "troupe/engine/simulate.hpp"

namespace troupe::cli {

/// The measured step, a lane per actor, and one below it for the reductions of an actor with
/// replicas.
[[nodiscard]] Picture picture_of(const Plan& plan, const actors::StepReport& report);

/// timeline.svg: the measured step above the one that the simulator predicted.
[[nodiscard]] std::string draw_timeline(const Plan& plan, const actors::StepReport& report,
                                        const Timeline& predicted);

/// trace.json: the measured step in Chrome's trace format; a process per replica, a thread per
/// actor.
[[nodiscard]] std::string to_chrome_trace(const Plan& plan, const actors::StepReport& report);

}  // namespace troupe::cli
