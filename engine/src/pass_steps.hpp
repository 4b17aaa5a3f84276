// engine/src/pass_steps.hpp -- the step in which every pass of a schedule runs.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "troupe/engine/check.hpp"
#include "troupe/engine/schedule.hpp"

#include "dependency_order.hpp"

namespace troupe {

/// By rank and place in its row: the step, counted from 0, in which the pass runs if every pass
/// takes one step, begins as soon as it can, and hands its output on at the end of it.
/// @param schedule a validated schedule.
[[nodiscard]] inline std::vector<std::vector<std::size_t>> steps_of(const Schedule& schedule) {
  std::vector<std::vector<std::size_t>> steps(schedule.rank_count());
  std::vector<std::size_t> made_in(OutputNumbers{schedule}.count());
  const auto stopped = visit_in_dependency_order(
      schedule, [&](RankIndex rank, const Action&, std::size_t needed, std::size_t made) {
        auto& row = steps[rank.value()];
        const auto free = row.empty() ? 0 : row.back() + 1;
        const auto ready = needed == no_output ? 0 : made_in[needed] + 1;
        row.push_back(std::max(free, ready));
        if (made != no_output) made_in[made] = row.back();
      });
  for (std::size_t r = 0; r < stopped.size(); ++r) {
    TROUPE_ASSERT(stopped[r] == schedule.ranks[r].size());
  }
  return steps;
}

}  // namespace troupe
