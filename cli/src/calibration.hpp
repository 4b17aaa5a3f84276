// cli/src/calibration.hpp -- how fast this machine computes the passes of a plan.
#pragma once

#include "troupe/engine/expected.hpp"
#include "troupe/engine/plan.hpp"
#include "troupe/stages/device.hpp"

namespace troupe::cli {

/// Runs a few passes and updates of a model with the plan's shapes but a single layer, one stream
/// alone on the machine. Blocks, usually for less than a second.
/// @returns `out_of_memory` if the device refuses.
[[nodiscard]] Expected<ComputeRates> measure_rates(stages::Device& device, const Plan& plan);

}  // namespace troupe::cli
