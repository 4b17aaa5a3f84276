// tests/engine/random_schedule.hpp -- schedules that are valid and otherwise arbitrary.
#pragma once

#include <cstdint>
#include <set>
#include <utility>
#include <vector>

#include "troupe/engine/random.hpp"
#include "troupe/engine/schedule.hpp"

namespace troupe {

/// A schedule nobody would write: any stage map, any order in which the passes could happen, every
/// backward pass whole or split as it comes. It is the record of a run, so it cannot deadlock.
inline Schedule random_schedule(std::uint64_t seed) {
  Random random{seed};
  const auto below = [&](std::uint64_t bound) {
    return static_cast<std::uint32_t>(random.below(bound));
  };
  Schedule schedule;
  schedule.name = "random";
  schedule.microbatch_count = 1 + below(7);
  schedule.ranks.resize(1 + below(4));
  const auto stage_count = schedule.rank_count() + below(schedule.rank_count() * 2 + 1);
  for (std::uint32_t v = 0; v < stage_count; ++v) {
    schedule.rank_of_stage.emplace_back(v < schedule.rank_count() ? v
                                                                  : below(schedule.rank_count()));
  }
  for (std::uint32_t v = stage_count; v > 1; --v) {
    std::swap(schedule.rank_of_stage[v - 1], schedule.rank_of_stage[below(v)]);
  }
  std::set<Action> done;
  const auto is_done = [&](std::uint32_t v, Pass pass, std::uint32_t m) {
    return done.contains({StageIndex{v}, pass, MicrobatchIndex{m}});
  };
  const auto has_input_gradient = [&](std::uint32_t v, std::uint32_t m) {
    return is_done(v, Pass::backward, m) || is_done(v, Pass::backward_input, m);
  };
  const auto has_weights = [&](std::uint32_t v, std::uint32_t m) {
    return is_done(v, Pass::backward, m) || is_done(v, Pass::backward_weight, m);
  };
  for (;;) {
    std::vector<Action> ready;
    for (std::uint32_t v = 0; v < stage_count; ++v) {
      for (std::uint32_t m = 0; m < schedule.microbatch_count; ++m) {
        const auto add = [&](Pass pass) {
          ready.push_back({StageIndex{v}, pass, MicrobatchIndex{m}});
        };
        const bool is_forward = is_done(v, Pass::forward, m);
        const bool is_last = v + 1 == stage_count;
        const bool is_turn = m == 0 || has_weights(v, m - 1);
        if (!is_forward) {
          if (v == 0 || is_done(v - 1, Pass::forward, m)) add(Pass::forward);
        } else if (!has_input_gradient(v, m)) {
          if (is_last || has_input_gradient(v + 1, m)) {
            add(Pass::backward_input);
            if (is_turn) add(Pass::backward);
          }
        } else if (!has_weights(v, m) && is_turn) {
          add(Pass::backward_weight);
        }
      }
    }
    if (ready.empty()) return schedule;
    const auto& action = ready[below(ready.size())];
    schedule.ranks[schedule.rank_of_stage[action.stage.value()].value()].push_back(action);
    done.insert(action);
  }
}

}  // namespace troupe
