// cli/src/reduction_measurement.hpp -- what it takes to sum gradients with others.
#pragma once

#include "troupe/engine/cost_model.hpp"
#include "troupe/engine/expected.hpp"
#include "troupe/transport/collective.hpp"

namespace troupe::cli {

/// Sums arrays with the other members of a group, which do the same at the same time, the
/// additions on a stream of its own; all of fp32. Blocks for about a tenth of a second.
/// @returns medians: of a few numbers, and from that on of 16 MiB; or what broke a sum off.
[[nodiscard]] Expected<Wire> measure_reduction(transport::Collective& member);

/// The same between two members in this process.
[[nodiscard]] Expected<Wire> measure_reduction();

}  // namespace troupe::cli
