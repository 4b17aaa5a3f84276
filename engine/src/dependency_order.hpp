// engine/src/dependency_order.hpp -- walks a schedule the way data flows through its ranks.
//
// The questions about a whole schedule, "does it end?" and "when?", are this walk: every rank runs
// its program in order, and stops in front of an action that has to wait for another rank.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "troupe/engine/schedule.hpp"

namespace troupe {

/// "No such output", for an action that needs none or makes none.
inline constexpr std::size_t no_output = std::numeric_limits<std::size_t>::max();

/// Numbers what stages hand to each other: the activations and the gradient of every stage and
/// microbatch. The numbers of one stage and kind are consecutive. Divides only when it is made.
class OutputNumbers {
public:
  explicit OutputNumbers(const Schedule& schedule) : stages_(schedule.stage_count()) {
    const std::size_t share = schedule.microbatch_count / schedule.copy_count;
    const auto begin_of = [&](std::uint32_t stage, std::size_t kind) {
      return (std::size_t{2} * stage + kind) * share
             - schedule.microbatches_of(StageIndex{stage}).begin;
    };
    for (std::uint32_t s = 0; s < schedule.stage_count(); ++s) {
      auto& stage = stages_[s];
      stage.made = {begin_of(s, 0), begin_of(s, 1)};
      if (!schedule.is_first(StageIndex{s})) stage.needed[0] = begin_of(s - 1, 0);
      if (!schedule.is_last(StageIndex{s})) stage.needed[1] = begin_of(s + 1, 1);
      // The neighbour's input is this stage's output.
      if (!schedule.is_last(StageIndex{s})) stage.reader[0] = schedule.rank_of_stage[s + 1].value();
      if (!schedule.is_first(StageIndex{s}))
        stage.reader[1] = schedule.rank_of_stage[s - 1].value();
    }
    count_ = std::size_t{2} * schedule.stage_count() * share;
  }

  [[nodiscard]] std::size_t count() const noexcept { return count_; }

  /// What `action` makes for another stage; a weight pass makes nothing.
  [[nodiscard]] std::size_t made_by(const Action& action) const noexcept {
    if (action.pass == Pass::backward_weight) return no_output;
    return stages_[action.stage.value()].made[kind_of(action.pass)] + action.microbatch.value();
  }
  /// What `action` needs from another stage. What it needs from its own stage ran on its own rank.
  [[nodiscard]] std::size_t needed_by(const Action& action) const noexcept {
    if (action.pass == Pass::backward_weight) return no_output;
    const auto begin = stages_[action.stage.value()].needed[kind_of(action.pass)];
    return begin == no_output ? no_output : begin + action.microbatch.value();
  }
  /// The rank that needs what `action`, which makes something, makes; `no_rank` if none does.
  [[nodiscard]] std::uint32_t reader_of(const Action& action) const noexcept {
    return stages_[action.stage.value()].reader[kind_of(action.pass)];
  }
  static constexpr std::uint32_t no_rank = std::numeric_limits<std::uint32_t>::max();

private:
  /// Of activations and gradients: where its numbers begin, less the first microbatch.
  struct Stage {
    std::array<std::size_t, 2> made{};
    std::array<std::size_t, 2> needed{no_output, no_output};
    std::array<std::uint32_t, 2> reader{no_rank, no_rank};
  };
  static std::size_t kind_of(Pass pass) noexcept { return pass == Pass::forward ? 0 : 1; }

  std::vector<Stage> stages_;
  std::size_t count_ = 0;
};

/// Where every rank stands in its program, and which output it waits for.
class DependencyWalk {
public:
  explicit DependencyWalk(const Schedule& schedule)
      : schedule_{schedule},
        next_(schedule.rank_count(), 0),
        waits_for_(schedule.rank_count(), no_output),
        runnable_(schedule.rank_count()) {
    for (std::uint32_t r = 0; r < schedule.rank_count(); ++r) {
      runnable_[r] = schedule.rank_count() - 1 - r;
    }
  }

  /// Lets ranks run until all of them wait or are through. `try_run(rank, position, action)`
  /// returns `no_output` if the action has run, or the output to wait for; constant work for each.
  template <class TryRun>
  void run(TryRun try_run) {
    while (!runnable_.empty()) {
      const auto rank = runnable_.back();
      runnable_.pop_back();
      const auto& row = schedule_.ranks[rank];
      for (auto& at = next_[rank]; at < row.size(); ++at) {
        waits_for_[rank] = try_run(rank, at, row[at]);
        if (waits_for_[rank] != no_output) break;
      }
    }
  }
  /// Lets `rank` go on if it waits for `output`.
  void announce(std::size_t output, std::uint32_t rank) {
    if (waits_for_[rank] != output) return;
    waits_for_[rank] = no_output;
    runnable_.push_back(rank);
  }
  /// By rank: where its program stopped.
  [[nodiscard]] const std::vector<std::size_t>& stopped() const noexcept { return next_; }

private:
  const Schedule& schedule_;
  std::vector<std::size_t> next_;
  std::vector<std::size_t> waits_for_;
  std::vector<std::uint32_t> runnable_;
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
  std::vector<bool> is_made(outputs.count(), false);
  DependencyWalk walk{schedule};
  walk.run([&](std::uint32_t rank, std::size_t /*position*/, const Action& action) {
    const auto needed = outputs.needed_by(action);
    if (needed != no_output && !is_made[needed]) return needed;
    const auto made = outputs.made_by(action);
    visit(RankIndex{rank}, action, needed, made);
    if (made != no_output) {
      is_made[made] = true;
      const auto reader = outputs.reader_of(action);
      if (reader != OutputNumbers::no_rank) walk.announce(made, reader);
    }
    return no_output;
  });
  return walk.stopped();
}

}  // namespace troupe
