// tests/engine/v_schedule.hpp -- a schedule of V-shaped pipelines, which no generator makes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "troupe/engine/schedule.hpp"

namespace troupe {

/// Two stages per rank, down the ranks and up again: both ends of the model on rank 0. Found by
/// letting every rank begin the next pass that can run, one per unit of time: a backward pass
/// before a forward pass, the later stage first, and at most twice as many microbatches on their
/// way as there are ranks.
inline Schedule make_v_schedule(std::uint32_t rank_count, std::uint32_t microbatch_count) {
  Schedule schedule{.name = "v",
                    .microbatch_count = microbatch_count,
                    .rank_of_stage = make_stage_map(StageMap::v_shaped, rank_count, 2),
                    .ranks = std::vector<std::vector<Action>>(rank_count)};
  const auto stage_count = schedule.stage_count();
  // By stage: how many microbatches have been through when the unit of time begins.
  std::vector<std::uint32_t> forward(stage_count, 0);
  std::vector<std::uint32_t> backward(stage_count, 0);
  const auto next_of = [&](RankIndex rank) -> std::optional<Action> {
    const auto stages = schedule.stages_of(rank);
    for (auto stage = stages.rbegin(); stage != stages.rend(); ++stage) {
      const auto v = stage->value();
      const auto ready = v + 1 == stage_count ? forward[v] : backward[v + 1];
      if (backward[v] < ready) return Action{*stage, Pass::backward, MicrobatchIndex{backward[v]}};
    }
    for (auto stage = stages.rbegin(); stage != stages.rend(); ++stage) {
      const auto v = stage->value();
      const auto ready =
          v > 0 ? forward[v - 1] : std::min(microbatch_count, backward[0] + 2 * rank_count);
      if (forward[v] < ready) return Action{*stage, Pass::forward, MicrobatchIndex{forward[v]}};
    }
    return std::nullopt;
  };
  while (backward[0] < microbatch_count) {
    std::vector<Action> begun;
    for (std::uint32_t r = 0; r < rank_count; ++r) {
      if (const auto action = next_of(RankIndex{r})) {
        schedule.ranks[r].push_back(*action);
        begun.push_back(*action);
      }
    }
    for (const auto& action : begun) {
      ++(action.pass == Pass::forward ? forward : backward)[action.stage.value()];
    }
  }
  return schedule;
}

}  // namespace troupe
