// cli/src/unevenness.hpp -- how unevenly a machine computed, from when passes began and ended.
#pragma once

#include <cstdint>
#include <vector>

#include "troupe/engine/profile.hpp"

namespace troupe::cli {

struct TimedPass {
  std::int64_t begin_ns;
  std::int64_t end_ns;
  double usual_ns;  ///< What such passes take in the mean; more than 0.
};

/// By actor that computed at once with the others: its passes in a step.
using StepPasses = std::vector<std::vector<TimedPass>>;

/// What so many steps show; those of up to 256 of them, from all over the time, as slowdowns.
[[nodiscard]] Unevenness unevenness_of(const std::vector<StepPasses>& steps);

}  // namespace troupe::cli
