#include "order_search.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include "troupe/engine/check.hpp"

namespace troupe {

namespace {

/// What of a stage's passes came so far in a row.
struct Counts {
  std::uint32_t forward = 0;
  std::uint32_t input = 0;
  std::uint32_t weight = 0;
};

/// Numbers the passes of every stage in their order.
/// @returns whether each pass comes after the one whose result it needs.
bool renumber(std::vector<Action>& row, std::size_t stage_count) {
  std::vector<Counts> counts(stage_count);
  for (auto& action : row) {
    auto& count = counts[action.stage.value()];
    std::uint32_t microbatch = 0;
    if (action.pass == Pass::forward) {
      microbatch = count.forward++;
    } else if (action.pass == Pass::backward_weight) {
      microbatch = count.weight++;
    } else {
      microbatch = count.input++;
      if (action.pass == Pass::backward && count.weight++ != microbatch) return false;
    }
    if (count.input > count.forward || count.weight > count.input) return false;
    action.microbatch = MicrobatchIndex{microbatch};
  }
  return true;
}

}  // namespace

OrderSearch::OrderSearch(StepProblem& problem, Rows rows, bool may_join)
    : problem_{problem}, may_join_{may_join}, rows_{std::move(rows)} {
  const auto cost = problem_.cost_of(rows_);
  TROUPE_ASSERT(cost.has_value());
  cost_ = *cost;
  times_ = problem_.times();
  find_blocks();
}

void OrderSearch::find_blocks() {
  // Where every F, and every I or B, stands in its row.
  const std::size_t m = problem_.microbatch_count();
  const auto number = [m](std::uint32_t stage, bool is_forward, MicrobatchIndex microbatch) {
    return (std::size_t{stage} * 2 + (is_forward ? 0U : 1U)) * m + microbatch.value();
  };
  std::vector<std::uint32_t> place(problem_.stages().size() * 2 * m);
  for (const auto& row : rows_) {
    for (std::uint32_t i = 0; i < row.size(); ++i) {
      const auto& action = row[i];
      if (action.pass == Pass::backward_weight) continue;
      place[number(action.stage.value(), action.pass == Pass::forward, action.microbatch)] = i;
    }
  }
  blocks_.clear();
  auto rank = problem_.last_rank(times_);
  std::size_t at = rows_[rank].size() - 1;
  while (true) {
    const auto last = at;
    const auto& begin_ns = times_.begin_ns[rank];
    const auto& end_ns = times_.end_ns[rank];
    while (at > 0 && end_ns[at - 1] == begin_ns[at]) --at;
    if (last > at || rows_[rank][at].pass == Pass::backward) blocks_.push_back({rank, at, last});
    const auto& action = rows_[rank][at];
    const bool is_forward = action.pass == Pass::forward;
    const auto stage = action.stage.value();
    if (begin_ns[at] == problem_.ranks()[rank].start_ns || (is_forward && stage == 0)) return;
    const auto source = is_forward ? stage - 1 : stage + 1;
    if (source == problem_.stages().size()) return;
    rank = problem_.stages()[source].rank;
    at = place[number(source, is_forward, action.microbatch)];
  }
}

std::vector<Action> OrderSearch::moved(const Block& block, Random& random) const {
  auto row = rows_[block.rank];
  const auto begin = row.begin();
  const auto offset = [](std::size_t i) { return static_cast<std::ptrdiff_t>(i); };
  const auto size = block.last - block.first + 1;
  const auto at = block.first + random.below(size);
  const auto kind = random.below(4);
  if (row[at].pass == Pass::backward && kind == 0) {
    row[at].pass = Pass::backward_input;
    row.insert(begin + offset(at + 1), {row[at].stage, Pass::backward_weight, row[at].microbatch});
    return row;
  }
  if (kind == 0 && may_join_ && at + 1 < row.size() && row[at].pass == Pass::backward_input
      && row[at + 1].pass == Pass::backward_weight && row[at + 1].stage == row[at].stage) {
    row[at].pass = Pass::backward;
    row.erase(begin + offset(at + 1));
    return row;
  }
  if (kind <= 1) {  // Forward to a place within the block.
    const auto to = block.first + random.below(at - block.first + 1);
    std::rotate(begin + offset(to), begin + offset(at), begin + offset(at + 1));
    return row;
  }
  // Back behind the block; a weight pass also into the next gap.
  auto to = kind == 2 ? block.last : at + random.below(block.last - at + 1);
  if (row[at].pass == Pass::backward_weight && kind == 2) {
    while (to + 1 < row.size()
           && times_.begin_ns[block.rank][to + 1] == times_.end_ns[block.rank][to]) {
      ++to;
    }
  }
  std::rotate(begin + offset(at), begin + offset(at + 1), begin + offset(to + 1));
  return row;
}

void OrderSearch::try_move(Random& random, WorkBudget& budget) {
  const auto block = blocks_[random.below(blocks_.size())];
  budget.spend(rows_[block.rank].size());
  if (try_row(block.rank, moved(block, random))) budget.spend(action_count(rows_));
}

bool OrderSearch::try_row(std::uint32_t rank, std::vector<Action> row) {
  if (!renumber(row, problem_.stages().size())) return false;
  if (row == rows_[rank]) return false;
  if (problem_.memory_of(row) > problem_.ranks()[rank].memory_limit) return false;
  std::swap(rows_[rank], row);
  const auto cost = problem_.cost_of(rows_);
  if (!cost || *cost > cost_) {
    std::swap(rows_[rank], row);
    return true;
  }
  cost_ = *cost;
  times_ = problem_.times();
  find_blocks();
  return true;
}

void OrderSearch::join_backward_passes() {
  for (std::uint32_t r = 0; r < rows_.size(); ++r) {
    std::vector<Action> row;
    for (const auto& action : rows_[r]) {
      const bool joins = action.pass == Pass::backward_weight && !row.empty()
                         && row.back().pass == Pass::backward_input
                         && row.back().stage == action.stage
                         && row.back().microbatch == action.microbatch;
      if (joins) {
        row.back().pass = Pass::backward;
      } else {
        row.push_back(action);
      }
    }
    (void)try_row(r, std::move(row));
  }
}

}  // namespace troupe
