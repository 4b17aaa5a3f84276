// cli/src/sweep_plot.hpp -- many simulated steps in one picture.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace troupe::cli {

struct SweepPoint {
  std::string schedule;
  std::uint32_t stages = 0;
  std::uint32_t microbatches = 0;
  double link = 0.0;
  double bubble = 0.0;  ///< Of all time, 0 to 1.
};

/// The bubble, as a standalone SVG, over whatever takes most values: microbatches, stages or what a
/// link takes. A line for everything else that differs, in a colour and with a mark of its own, in
/// the order of the points.
[[nodiscard]] std::string plot_sweep(std::span<const SweepPoint> points);

}  // namespace troupe::cli
