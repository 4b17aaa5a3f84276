// troupe/engine/simulate.hpp -- when everything in a schedule happens, without hardware.
//
// Time is virtual and counted in whole nanoseconds, so that closed forms hold exactly. A rank runs
// one pass at a time, in the order of its program, each as soon as its input is here. Sending never
// holds up the sender, and what arrives early waits without limit: a run that bounds its slots by
// `in_flight_max` never waits for a slot either.
#pragma once

#include <cstdint>
#include <vector>

#include "troupe/engine/schedule.hpp"

namespace troupe {

/// How long the passes of one microbatch take on one stage.
struct PassCosts {
  std::int64_t forward_ns = 1;
  std::int64_t backward_ns = 2;
  std::int64_t backward_input_ns = 1;
  std::int64_t backward_weight_ns = 1;

  /// Costs where the whole backward pass takes as long as its two parts.
  [[nodiscard]] static constexpr PassCosts of_parts(std::int64_t forward_ns,
                                                    std::int64_t backward_input_ns,
                                                    std::int64_t backward_weight_ns) noexcept {
    return {forward_ns, backward_input_ns + backward_weight_ns, backward_input_ns,
            backward_weight_ns};
  }
  [[nodiscard]] constexpr std::int64_t of(Pass pass) const noexcept {
    switch (pass) {
      case Pass::forward:
        return forward_ns;
      case Pass::backward:
        return backward_ns;
      case Pass::backward_input:
        return backward_input_ns;
      case Pass::backward_weight:
        return backward_weight_ns;
    }
    return 0;
  }
  friend constexpr bool operator==(const PassCosts&, const PassCosts&) = default;
};

/// How long everything takes. A list of one value means that value everywhere. No value is
/// negative.
struct CostModel {
  std::vector<PassCosts> stages{PassCosts{}};  ///< By stage.
  std::vector<std::int64_t> link_ns{0};        ///< By stage s: between s and s + 1, in either
                                               ///< direction. Not spent within a rank.
  std::vector<std::int64_t> rank_start_ns{0};  ///< By rank: nothing runs there before.
  std::vector<std::int64_t> optimizer_ns{0};   ///< By rank: work after its last pass.
};

/// A pass and the time in which it occupied its rank.
struct TimelineEntry {
  Action action;
  std::int64_t begin_ns = 0;
  std::int64_t end_ns = 0;

  friend bool operator==(const TimelineEntry&, const TimelineEntry&) = default;
};

/// The time of one rank.
struct RankTime {
  std::int64_t begin_ns = 0;      ///< Its first pass begins.
  std::int64_t end_ns = 0;        ///< Its last pass ends.
  std::int64_t passes_ns = 0;     ///< Spent in passes.
  std::int64_t optimizer_ns = 0;  ///< Spent behind the last pass.

  [[nodiscard]] constexpr std::int64_t busy_ns() const noexcept { return passes_ns + optimizer_ns; }
  friend bool operator==(const RankTime&, const RankTime&) = default;
};

/// One simulated step.
struct Timeline {
  std::vector<std::vector<TimelineEntry>> ranks;  ///< By rank: its program, in order.
  std::vector<RankTime> rank_times;               ///< By rank.
  std::vector<std::uint32_t> in_flight_max;       ///< By stage: microbatches whose activations are
                                                  ///< held at once.
  std::int64_t makespan_ns = 0;                   ///< From 0 until every rank is done.

  /// How long `rank` does nothing between 0 and the end of the step.
  [[nodiscard]] std::int64_t idle_ns(RankIndex rank) const {
    return makespan_ns - rank_times[rank.value()].busy_ns();
  }
  [[nodiscard]] std::int64_t busy_ns() const noexcept;
  [[nodiscard]] std::int64_t idle_ns() const noexcept;

  /// Idle time as a share of all time, 0 to 1: the bubble rate of Qi et al. 2023.
  [[nodiscard]] double bubble_of_total() const noexcept;
  /// Idle time over busy time, 0 and more: the bubble fraction of Narayanan et al. 2021, for 1F1B
  /// (P - 1) / M.
  [[nodiscard]] double bubble_of_ideal() const noexcept;
};

/// Runs one step of `schedule` in virtual time, with constant work per action.
///
/// @param schedule one that `validate` accepts.
/// @param costs lists of one value, or of one per stage, link or rank.
[[nodiscard]] Timeline simulate(const Schedule& schedule, const CostModel& costs);

}  // namespace troupe
