// troupe/engine/measured_costs.hpp -- what passes were seen to take, as costs for the simulator.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "troupe/engine/schedule.hpp"
#include "troupe/engine/simulate.hpp"

namespace troupe {

/// Mean durations of passes by stage.
class MeasuredCosts {
public:
  explicit MeasuredCosts(std::uint32_t stage_count) : stages_(stage_count) {}

  /// Adds one pass that took `duration_ns`.
  void add(const Action& action, std::int64_t duration_ns);

  /// Lets what was seen so far count `share` of what comes next, for machines whose speed drifts.
  void fade(double share);

  /// Whether every stage has been seen going forward, and backward whole or in both parts.
  [[nodiscard]] bool is_complete() const;

  /// The means. A whole backward pass that was not seen is the sum of its parts; parts that were
  /// not seen are halves of the whole. Complete costs only.
  [[nodiscard]] CostModel costs() const;

private:
  struct Mean {
    double sum_ns = 0.0;
    double weight = 0.0;
    [[nodiscard]] bool was_seen() const noexcept { return weight > 0.0; }
    [[nodiscard]] std::int64_t value_ns() const noexcept {
      return was_seen() ? static_cast<std::int64_t>(sum_ns / weight) : 0;
    }
  };
  using StageMeans = std::array<Mean, 4>;  ///< By pass.

  [[nodiscard]] static const Mean& of(const StageMeans& means, Pass pass) {
    return means[static_cast<std::size_t>(pass)];
  }

  std::vector<StageMeans> stages_;
};

}  // namespace troupe
