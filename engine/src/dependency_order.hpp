// engine/src/dependency_order.hpp -- walks a schedule the way data flows through its ranks.
//
// Both questions about a whole schedule, "does it end?" and "when?", are this walk: every rank runs
// its program in order, and stops in front of an action whose input no rank has made yet.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "troupe/engine/schedule.hpp"

namespace troupe {

/// "No such output", for an action that needs none or makes none.
inline constexpr std::size_t no_output = std::numeric_limits<std::size_t>::max();

/// Numbers what stages hand to each other: the activations and the gradient of every stage and
/// microbatch.
class OutputNumbers {
public:
  explicit OutputNumbers(const Schedule& schedule)
      : schedule_{schedule}, share_{schedule.microbatch_count / schedule.copy_count} {}

  [[nodiscard]] std::size_t count() const noexcept {
    return std::size_t{2} * schedule_.stage_count() * share_;
  }
  /// What `action` makes for another stage; a weight pass makes nothing.
  [[nodiscard]] std::size_t made_by(const Action& action) const noexcept {
    if (action.pass == Pass::backward_weight) return no_output;
    return number(action.stage.value(), action.pass, action.microbatch);
  }
  /// What `action` needs from another stage. What it needs from its own stage ran on its own rank.
  [[nodiscard]] std::size_t needed_by(const Action& action) const noexcept {
    const auto stage = action.stage.value();
    if (action.pass == Pass::forward) {
      if (schedule_.is_first(action.stage)) return no_output;
      return number(stage - 1, action.pass, action.microbatch);
    }
    if (action.pass == Pass::backward_weight || schedule_.is_last(action.stage)) return no_output;
    return number(stage + 1, action.pass, action.microbatch);
  }

private:
  [[nodiscard]] std::size_t number(std::uint32_t stage, Pass pass,
                                   MicrobatchIndex microbatch) const noexcept {
    const std::size_t row = std::size_t{2} * stage + (pass == Pass::forward ? 0U : 1U);
    return row * share_ + microbatch.value() % share_;
  }

  const Schedule& schedule_;
  std::uint32_t share_;  ///< Microbatches of each copy.
};

/// Calls `visit(rank, action, needed, made)` once for every action that can run, each after the one
/// that makes its input; `needed` and `made` are output numbers. Constant work per action.
///
/// @param schedule stages, ranks and microbatches in range, every action on the rank of its stage.
/// @returns by rank, where its program stopped: at the end unless the schedule deadlocks.
template <class Visit>
[[nodiscard]] std::vector<std::size_t> visit_in_dependency_order(const Schedule& schedule,
                                                                 Visit visit) {
  const OutputNumbers outputs{schedule};
  const auto rank_count = schedule.rank_count();
  std::vector<bool> made(outputs.count(), false);
  std::vector<std::size_t> next(rank_count, 0);
  std::vector<std::size_t> waits_for(rank_count, no_output);
  std::vector<std::uint32_t> runnable(rank_count);
  for (std::uint32_t r = 0; r < rank_count; ++r) runnable[r] = rank_count - 1 - r;

  const auto announce = [&](const Action& action, std::size_t output) {
    made[output] = true;
    const bool forward = action.pass == Pass::forward;
    const auto stage = action.stage.value();
    if (forward ? schedule.is_last(action.stage) : schedule.is_first(action.stage)) return;
    const auto reader = schedule.rank_of_stage[forward ? stage + 1 : stage - 1].value();
    if (waits_for[reader] != output) return;
    waits_for[reader] = no_output;
    runnable.push_back(reader);
  };
  while (!runnable.empty()) {
    const auto rank = runnable.back();
    runnable.pop_back();
    const auto& row = schedule.ranks[rank];
    for (auto& at = next[rank]; at < row.size(); ++at) {
      const auto needed = outputs.needed_by(row[at]);
      if (needed != no_output && !made[needed]) {
        waits_for[rank] = needed;
        break;
      }
      const auto output = outputs.made_by(row[at]);
      visit(RankIndex{rank}, row[at], needed, output);
      if (output != no_output) announce(row[at], output);
    }
  }
  return next;
}

}  // namespace troupe
