// cli/src/profile_measurement.hpp -- what the parts of a model cost on this machine.
#pragma once

#include <functional>

#include "troupe/engine/expected.hpp"
#include "troupe/engine/plan.hpp"
#include "troupe/engine/profile.hpp"

namespace troupe::cli {

/// Trains small models made of the plan's layers, embedding and head, as many actors at once as the
/// plan has or this machine has cores for, and finds out what each part takes. Blocks for about
/// `seconds`.
/// @param beside if there is one, is called between the steps, again and again: what it measures
///        met the machine at the same speed.
/// @returns `out_of_memory` if the device refuses, or what made a step or `beside` fail.
[[nodiscard]] Expected<Profile> measure_profile(const Plan& plan, double seconds,
                                                const std::function<Expected<Done>()>& beside = {});

}  // namespace troupe::cli
