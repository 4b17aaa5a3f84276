// engine/src/order_search.hpp -- shortens a step by moving single passes in the programs of ranks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "troupe/engine/random.hpp"

#include "step_problem.hpp"

namespace troupe {

/// A walk from program to program, each as short as the one before it or shorter. What makes a step
/// long is its critical path: passes that follow each other without a pause, on one rank or over a
/// hop. A move takes one of them out of its place on that path, or splits or joins a backward pass.
class OrderSearch {
public:
  /// @param rows programs that end and fit, with the passes of every stage in microbatch order.
  /// @param may_join whether an I and its W may become a B.
  OrderSearch(StepProblem& problem, Rows rows, bool may_join);

  [[nodiscard]] const Rows& rows() const noexcept { return rows_; }
  [[nodiscard]] const StepCost& cost() const noexcept { return cost_; }

  [[nodiscard]] bool can_move() const noexcept { return !blocks_.empty(); }
  /// Tries one move, drawn at random; takes it unless it lengthens the step.
  void try_move(Random& random, WorkBudget& budget);

  /// Joins every I with the W right behind it, where that does not lengthen the step.
  void join_backward_passes();

private:
  /// Passes of one rank that follow each other without a pause.
  struct Block {
    std::uint32_t rank = 0;
    std::size_t first = 0;
    std::size_t last = 0;
  };

  void find_blocks();
  [[nodiscard]] std::vector<Action> moved(const Block& block, Random& random) const;
  /// Takes `row` in the place of the rank's own unless it is wrong, too large or too slow.
  /// @returns whether it was worth simulating.
  bool try_row(std::uint32_t rank, std::vector<Action> row);

  StepProblem& problem_;
  bool may_join_;
  Rows rows_;
  StepCost cost_;
  Times times_;
  std::vector<Block> blocks_;  ///< Of the critical path, those that have something to move.
};

}  // namespace troupe
