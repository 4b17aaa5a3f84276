// engine/src/step_problem.hpp -- what a schedule is searched for, in the form that is quick to ask.
#pragma once

#include <algorithm>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "troupe/engine/automatic_schedule.hpp"

namespace troupe {

using Rows = std::vector<std::vector<Action>>;  ///< By rank: its program, in order.

[[nodiscard]] std::size_t action_count(const Rows& rows);

/// How much may still be tried, counted in simulated actions: a search that counts seconds would
/// not repeat itself.
class WorkBudget {
public:
  explicit WorkBudget(std::size_t actions) : left_{actions} {}

  void spend(std::size_t actions) noexcept { left_ -= std::min(left_, actions); }
  [[nodiscard]] bool is_spent() const noexcept { return left_ == 0; }
  [[nodiscard]] std::size_t left() const noexcept { return left_; }

private:
  std::size_t left_;
};

/// What is to be small: first the step, then what the ranks take together.
struct StepCost {
  std::int64_t step_ns = 0;
  std::int64_t sum_ns = 0;

  friend constexpr auto operator<=>(const StepCost&, const StepCost&) = default;
};

/// When the passes of programs begin and end, by rank and place.
struct Times {
  std::vector<std::vector<std::int64_t>> begin_ns;
  std::vector<std::vector<std::int64_t>> end_ns;
};

/// A pipeline of one copy with its costs, and the memory of its ranks. Microbatches are alike, so
/// they go through every pass of every stage in their order.
class StepProblem {
public:
  struct Stage {
    std::uint32_t rank = 0;
    PassCosts costs;
    std::int64_t forward_hop_ns = 0;   ///< To the next stage.
    std::int64_t backward_hop_ns = 0;  ///< To the stage before.
    std::int64_t activation_size = 1;
    std::int64_t kept_size = 1;
  };
  struct Rank {
    std::vector<std::uint32_t> stages;  ///< Ascending.
    std::int64_t start_ns = 0;
    std::int64_t optimizer_ns = 0;
    std::int64_t memory_limit = 0;
  };

  /// @param request one whose lists have the right lengths.
  explicit StepProblem(const AutomaticRequest& request);

  [[nodiscard]] const std::vector<Stage>& stages() const noexcept { return stages_; }
  [[nodiscard]] const std::vector<Rank>& ranks() const noexcept { return ranks_; }
  [[nodiscard]] std::uint32_t microbatch_count() const noexcept { return microbatch_count_; }

  /// What the rank's stages hold at most, each when it holds most.
  [[nodiscard]] std::int64_t memory_of(const std::vector<Action>& row) const;
  [[nodiscard]] bool fits(const Rows& rows) const;

  /// The cost of a step, or nothing if ranks wait for each other in a circle.
  [[nodiscard]] std::optional<StepCost> cost_of(const Rows& rows);
  /// When the passes begin and end whose cost was asked for last.
  [[nodiscard]] const Times& times() const noexcept { return times_; }

  /// The rank on whose account a step with these times takes as long as it does.
  [[nodiscard]] std::uint32_t last_rank(const Times& times) const;

  /// From the beginning of F on `stage` until the gradient is back, if nothing is in the way.
  [[nodiscard]] std::int64_t round_trip_ns(std::uint32_t stage) const {
    return round_trip_ns_[stage];
  }
  /// A step that no schedule undercuts. A rank begins when the first microbatch can have reached
  /// it; then it does all its work. And before its last gradient can go back to the first stage, it
  /// does all its F and I, and the W without which its last F has no memory.
  [[nodiscard]] std::int64_t step_ns_min() const noexcept { return step_ns_min_; }

private:
  /// Where the inputs of a stage's forward, or of its backward passes begin in `here_ns_`.
  [[nodiscard]] std::size_t input_of(std::uint32_t stage, Pass pass) const noexcept {
    const auto row = std::size_t{2} * stage + (pass == Pass::forward ? 0U : 1U);
    return row * microbatch_count_;
  }
  void run_until_wait(std::uint32_t rank, const std::vector<Action>& row);
  void send_output(const Action& action, std::int64_t end_ns);
  [[nodiscard]] std::vector<std::int64_t> find_round_trips() const;
  [[nodiscard]] std::int64_t find_step_min() const;
  /// How many the memory limit forces, on all but the other stages' one slot each.
  [[nodiscard]] std::uint32_t weight_passes_before_last_forward(std::uint32_t stage) const;
  [[nodiscard]] std::int64_t rank_ns(std::uint32_t rank, const Times& times) const;

  std::uint32_t microbatch_count_;
  StepTime step_time_;
  std::vector<Stage> stages_;
  std::vector<Rank> ranks_;
  std::vector<std::int64_t> round_trip_ns_;  ///< By stage.
  std::int64_t step_ns_min_ = 0;
  Times times_;

  // The state of `cost_of`.
  std::vector<std::int64_t> here_ns_;    ///< By `input_of` and microbatch: when an input is here.
  std::vector<std::uint32_t> runnable_;  ///< Ranks whose input has come.
  std::vector<std::size_t> waits_for_;   ///< By rank: the input it stands before.
};

}  // namespace troupe
