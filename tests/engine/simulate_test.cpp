// Virtual time against closed forms, and against a second, simpler way to compute it.
#include "troupe/engine/simulate.hpp"

#include <algorithm>

#include <gtest/gtest.h>

#include "troupe/engine/random.hpp"
#include "troupe/engine/schedule_validation.hpp"

#include "schedule_scope.hpp"
#include "v_schedule.hpp"

namespace troupe {
namespace {

constexpr std::int64_t forward_ns = 5;
constexpr std::int64_t backward_input_ns = 7;
constexpr std::int64_t backward_weight_ns = 4;
constexpr auto costs = PassCosts::of_parts(forward_ns, backward_input_ns, backward_weight_ns);

/// Expects that every rank is idle for as long as the schedule's formula says, and no longer.
void expect_idle(const Schedule& schedule, std::int64_t idle_ns) {
  const auto timeline = simulate(schedule, {.stages = {costs}});
  const auto chunk_count = schedule.stage_count() / schedule.rank_count();
  const auto work_ns = std::int64_t{schedule.microbatch_count} * chunk_count
                       * (forward_ns + backward_input_ns + backward_weight_ns);
  EXPECT_EQ(timeline.makespan_ns, work_ns + idle_ns);
  for (std::uint32_t r = 0; r < schedule.rank_count(); ++r) {
    EXPECT_EQ(timeline.rank_times[r].busy_ns(), work_ns);
    EXPECT_EQ(timeline.idle_ns(RankIndex{r}), idle_ns);
  }
  const auto all_ns = static_cast<double>(work_ns + idle_ns);
  EXPECT_DOUBLE_EQ(timeline.bubble_of_total(), static_cast<double>(idle_ns) / all_ns);
  EXPECT_DOUBLE_EQ(timeline.bubble_of_ideal(),
                   static_cast<double>(idle_ns) / static_cast<double>(work_ns));
  EXPECT_EQ(timeline.in_flight_max, in_flight_max(schedule, Pass::backward_weight));
}

TEST(Simulation, IdleTimeOfWholeBackwardPassesMatchesTheClosedForm) {
  for_every_extent([](std::uint32_t p, std::uint32_t m) {
    // Narayanan et al. 2021, section 2.2: (p - 1)(tf + tb), divided by the chunks when interleaved,
    // whose stages are that much shorter.
    const auto idle_ns = std::int64_t{p - 1} * (costs.forward_ns + costs.backward_ns);
    expect_idle(make_gpipe(p, m), idle_ns);
    expect_idle(make_1f1b(p, m), idle_ns);
    expect_idle(make_eager_1f1b(p, m, 0), idle_ns);
    expect_idle(make_eager_1f1b(p, m, p + 1), idle_ns);
    if (m < p) return;
    for (const std::uint32_t v : {2U, 3U}) {
      expect_idle(make_interleaved_1f1b(p, m, v).value(), idle_ns);
      expect_idle(make_looped_bfs(p, m, v).value(), idle_ns);
    }
  });
}

TEST(Simulation, IdleTimeOfSplitBackwardPassesLacksTheWeightPasses) {
  for_every_extent([](std::uint32_t p, std::uint32_t m) {
    const auto idle_ns = std::int64_t{p - 1} * (forward_ns + backward_input_ns);
    expect_idle(split_backward(make_gpipe(p, m)), idle_ns);
    expect_idle(split_backward(make_1f1b(p, m)), idle_ns);
    if (m < p) return;
    for (const std::uint32_t v : {2U, 3U}) {
      expect_idle(split_backward(make_interleaved_1f1b(p, m, v).value()), idle_ns);
    }
  });
}

TEST(Simulation, BubbleOfTheIdealIsRanksLessOneOverMicrobatches) {
  for_every_extent([](std::uint32_t p, std::uint32_t m) {
    EXPECT_DOUBLE_EQ(simulate(make_1f1b(p, m), {}).bubble_of_ideal(), double(p - 1) / double(m));
    EXPECT_DOUBLE_EQ(simulate(make_1f1b(p, m), {}).bubble_of_total(),
                     double(p - 1) / double(m + p - 1));
  });
}

TEST(Simulation, EagerForwardPassesHideTheLinksThatHoldUp1F1B) {
  const CostModel model{.stages = {costs}, .link_ns = {4}};
  for_every_extent([&](std::uint32_t p, std::uint32_t m) {
    const auto filled_ns = (m + p - 1) * (costs.forward_ns + costs.backward_ns) + 2 * (p - 1) * 4;
    EXPECT_EQ(simulate(make_eager_1f1b(p, m, 0), model).makespan_ns, filled_ns);
    if (p == 1 || m <= p) return;
    EXPECT_GT(simulate(make_1f1b(p, m), model).makespan_ns, filled_ns);
  });
}

TEST(Simulation, SplittingIsNeverSlowerWhateverThingsCost) {
  std::uint64_t seed = 0;
  for_every_schedule([&](const Schedule& schedule) {
    if (schedule.name.ends_with("split")) return;
    SCOPED_TRACE(testing::Message() << "seed=" << seed);
    Random random{seed++};
    CostModel model{.link_ns = {}};
    model.stages.clear();
    const auto draw = [&](std::uint64_t bound) {
      return static_cast<std::int64_t>(random.below(bound));
    };
    for (std::uint32_t s = 0; s < schedule.stage_count(); ++s) {
      model.stages.push_back(PassCosts::of_parts(draw(9), draw(9), draw(9)));
      if (s > 0) model.link_ns.push_back(draw(5));
    }
    if (model.link_ns.empty()) model.link_ns.push_back(0);
    const auto split = simulate(split_backward(schedule), model);
    const auto whole = simulate(schedule, model);
    for (std::uint32_t r = 0; r < schedule.rank_count(); ++r) {
      ASSERT_LE(split.rank_times[r].end_ns, whole.rank_times[r].end_ns);
    }
  });
}

/// When `action` may begin, found by looking at every entry: slow, and nothing to get wrong.
std::int64_t input_here_ns(const Timeline& timeline, const Schedule& schedule,
                           const CostModel& model, const Action& action) {
  const auto stage = action.stage.value();
  const bool forward = action.pass == Pass::forward;
  if (action.pass == Pass::backward_weight) return 0;
  if (forward ? schedule.is_first(action.stage) : schedule.is_last(action.stage)) return 0;
  const StageIndex source{forward ? stage - 1 : stage + 1};
  const bool is_remote = schedule.rank_of_stage[source.value()] != schedule.rank_of_stage[stage];
  for (const auto& row : timeline.ranks) {
    for (const auto& entry : row) {
      if (entry.action.stage != source || entry.action.microbatch != action.microbatch) continue;
      if (forward ? entry.action.pass == Pass::forward : makes_input_gradient(entry.action.pass)) {
        return entry.end_ns + (is_remote ? model.link_ns[std::min(stage, source.value())] : 0);
      }
    }
  }
  ADD_FAILURE() << "nothing makes the input of " << to_string(action);
  return 0;
}

/// Expects, with everything costing something else, that no pass begins later or sooner than it
/// can.
void expect_earliest(const Schedule& schedule, std::uint64_t seed) {
  SCOPED_TRACE(testing::Message() << "seed=" << seed);
  Random random{seed};
  const auto draw = [&] { return static_cast<std::int64_t>(random.below(9)); };
  CostModel model{.stages = {}, .link_ns = {}, .rank_start_ns = {}, .optimizer_ns = {}};
  for (std::uint32_t s = 0; s < schedule.stage_count(); ++s) {
    model.stages.push_back({draw(), draw(), draw(), draw()});
    if (s > 0) model.link_ns.push_back(draw());
  }
  for (std::uint32_t r = 0; r < schedule.rank_count(); ++r) {
    model.rank_start_ns.push_back(draw());
    model.optimizer_ns.push_back(draw());
  }
  const auto timeline = simulate(schedule, model);
  std::int64_t makespan_ns = 0;
  for (std::uint32_t r = 0; r < schedule.rank_count(); ++r) {
    auto free_ns = model.rank_start_ns[r];
    ASSERT_EQ(timeline.ranks[r].size(), schedule.ranks[r].size());
    for (std::size_t i = 0; i < timeline.ranks[r].size(); ++i) {
      const auto& [action, begin_ns, end_ns] = timeline.ranks[r][i];
      ASSERT_EQ(action, schedule.ranks[r][i]);
      ASSERT_EQ(begin_ns, std::max(free_ns, input_here_ns(timeline, schedule, model, action)));
      ASSERT_EQ(end_ns, begin_ns + model.stages[action.stage.value()].of(action.pass));
      free_ns = end_ns;
    }
    ASSERT_EQ(timeline.rank_times[r].end_ns, free_ns);
    makespan_ns = std::max(makespan_ns, free_ns + model.optimizer_ns[r]);
  }
  ASSERT_EQ(timeline.makespan_ns, makespan_ns);
  ASSERT_EQ(timeline.busy_ns() + timeline.idle_ns(), makespan_ns * schedule.rank_count());
}

TEST(Simulation, EveryPassBeginsAsSoonAsItCanAndNoSooner) {
  std::uint64_t seed = 0;
  for_every_schedule([&](const Schedule& schedule) {
    if (schedule.action_count() > 150 || schedule.stage_count() == 1) return;
    expect_earliest(schedule, seed++);
  });
  for (const std::uint32_t p : {2U, 3U}) {
    for (std::uint32_t m = 1; m <= 8; ++m) {
      SCOPED_TRACE(testing::Message() << "v ranks=" << p << " microbatches=" << m);
      expect_earliest(make_v_schedule(p, m), seed++);
      expect_earliest(split_backward(make_v_schedule(p, m)), seed++);
    }
  }
}

TEST(Simulation, OneMicrobatchTurnsRoundInAVWithoutALink) {
  for (const std::uint32_t p : {2U, 3U}) {
    const auto schedule = make_v_schedule(p, 1);
    ASSERT_TRUE(validate(schedule).has_value()) << validate(schedule).error().context;
    const auto timeline = simulate(schedule, {.stages = {costs}, .link_ns = {100}});
    EXPECT_EQ(timeline.makespan_ns,
              2 * p * (costs.forward_ns + costs.backward_ns) + 2 * (2 * p - 2) * 100);
  }
}

TEST(Simulation, LinksCostNothingWithinARank) {
  const CostModel model{.link_ns = {100}};
  const auto on_one_rank = make_interleaved_1f1b(1, 4, 3).value();
  EXPECT_EQ(simulate(on_one_rank, model).makespan_ns, 4 * 3 * 3);
  EXPECT_EQ(simulate(make_1f1b(2, 1), model).makespan_ns, 2 * 3 + 2 * 100);
}

TEST(Simulation, AStartOffsetAndTheOptimizerCountWhereTheyArise) {
  const CostModel model{.rank_start_ns = {10, 0}, .optimizer_ns = {3, 50}};
  const auto timeline = simulate(make_1f1b(2, 1), model);
  EXPECT_EQ(timeline.ranks[0][0], (TimelineEntry{timeline.ranks[0][0].action, 10, 11}));
  EXPECT_EQ(timeline.rank_times[1], (RankTime{11, 14, 3, 50, 0, 14}));
  EXPECT_EQ(timeline.makespan_ns, 14 + 50);
  EXPECT_EQ(timeline.idle_ns(RankIndex{0}), 64 - 3 - 3);
}

TEST(SimulationDeathTest, AListOfTheWrongLengthIsAProgrammerError) {
  EXPECT_DEATH((void)simulate(make_1f1b(3, 1), {.link_ns = {1, 2, 3}}), "values.size\\(\\)");
}

}  // namespace
}  // namespace troupe
