#include "step_comparison.hpp"

#include <algorithm>
#include <cstdint>
#include <string>

#include <gtest/gtest.h>

#include "troupe/engine/random.hpp"
#include "troupe/engine/schedule_generators.hpp"

#include "comparison_report.hpp"
#include "made_steps.hpp"

namespace troupe::cli {
namespace {

constexpr std::int64_t ms = 1'000'000;

/// A step that went as `measured` says, against one simulated with `simulated`.
StepComparison compare_costs(const Schedule& schedule, const CostModel& measured,
                             const CostModel& simulated) {
  return compare_step(schedule, made_step(schedule, simulate(schedule, measured)),
                      simulate(schedule, simulated), 1000);
}

std::int64_t sum_ns(const std::vector<Delay>& delays) {
  std::int64_t sum = 0;
  for (const auto& delay : delays) sum += delay.excess_ns;
  return sum;
}

TEST(StepComparison, FindsNothingWhereAllWentAsSimulated) {
  const auto schedule = make_1f1b(3, 5);
  const CostModel costs{.link_ns = {2}, .optimizer_ns = {3}};
  const auto comparison = compare_costs(schedule, costs, costs);
  EXPECT_TRUE(comparison.delays.empty());
  EXPECT_EQ(comparison.measured_ns, comparison.simulated_ns);
  for (const auto& rank : comparison.ranks) EXPECT_EQ(rank.measured_ns, rank.simulated_ns);
  for (const auto& pass : comparison.passes) {
    EXPECT_EQ(pass.measured, pass.simulated);
    EXPECT_TRUE(pass.delays.empty());
  }
  EXPECT_EQ(verdict_of(comparison), "the step took as long as simulated");
}

TEST(StepComparison, BooksASlowStageOnItsRank) {
  const auto schedule = make_1f1b(3, 4);
  CostModel slow{.stages = {3, PassCosts{}}};
  slow.stages[1] = PassCosts::of_parts(2, 1, 1);
  const auto comparison = compare_costs(schedule, slow, {});
  ASSERT_EQ(comparison.delays.size(), 1U);
  EXPECT_EQ(comparison.delays[0].where.pipeline, RankIndex{1});
  EXPECT_EQ(comparison.delays[0].cause, TimeCause::computing);
  EXPECT_EQ(comparison.delays[0].excess_ns, comparison.measured_ns - comparison.simulated_ns);
}

TEST(StepComparison, BooksLinksWhereTheirEndIs) {
  const auto schedule = make_gpipe(2, 2);
  const auto comparison = compare_costs(schedule, {.link_ns = {4}}, {});
  ASSERT_EQ(comparison.delays.size(), 2U);
  EXPECT_EQ(sum_ns(comparison.delays), 8);
  for (const auto& delay : comparison.delays) {
    const bool is_activation = delay.cause == TimeCause::activation;
    EXPECT_EQ(delay.cause, is_activation ? TimeCause::activation : TimeCause::gradient);
    EXPECT_EQ(delay.where.pipeline, RankIndex{is_activation ? 1U : 0U});
    EXPECT_EQ(delay.excess_ns, 4);
  }
}

TEST(StepComparison, BooksAPauseBetweenPassesAsDispatch) {
  const auto schedule = make_gpipe(1, 2);
  const auto simulated = simulate(schedule, {});
  auto step = made_step(schedule, simulated);
  for (std::size_t i = 2; i < 5; ++i) {
    step.ranks[0].trace[i].begin_ns += 7;
    step.ranks[0].trace[i].end_ns += 7;
  }
  step.end_ns += 7;
  const auto comparison = compare_step(schedule, step, simulated, 1);
  ASSERT_EQ(comparison.delays.size(), 1U);
  EXPECT_EQ(comparison.delays[0].cause, TimeCause::dispatch);
  EXPECT_EQ(comparison.delays[0].excess_ns, 7);
  EXPECT_EQ(to_string(*comparison.delays[0].longest), "0B0");
  ASSERT_EQ(comparison.passes.size(), 1U);
  EXPECT_EQ(to_string(comparison.passes[0].measured.action), "0B0");
  EXPECT_EQ(comparison.passes[0].late_ns(), 7);
}

TEST(StepComparison, BooksWhatFollowsTheLastPassByTheRanksAccount) {
  const auto schedule = make_1f1b(2, 2);
  const auto simulated = simulate(schedule, {});
  auto step = made_step(schedule, simulated);
  step.end_ns += 9;
  step.ranks[0].account[TimeCause::reduction] += 6;
  const auto comparison = compare_step(schedule, step, simulated, 1);
  ASSERT_EQ(comparison.delays.size(), 2U);
  EXPECT_EQ(comparison.delays[0].cause, TimeCause::reduction);
  EXPECT_EQ(comparison.delays[0].excess_ns, 6);
  EXPECT_EQ(comparison.delays[1].cause, TimeCause::dispatch) << "nobody's account has it";
  EXPECT_EQ(comparison.delays[1].excess_ns, 3);
}

/// Whatever the passes and links take, nothing is left over and nothing is booked twice.
TEST(StepComparison, AddsUpWithoutARemainder) {
  const std::vector schedules{make_1f1b(4, 8), split_backward(make_gpipe(3, 4)),
                              make_interleaved_1f1b(2, 6, 3).value()};
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE(seed);
    Random random{seed};
    for (const auto& schedule : schedules) {
      const auto drawn = [&] {
        CostModel costs{.stages = {}, .link_ns = {}, .optimizer_ns = {}};
        const auto some = [&] { return static_cast<std::int64_t>(random.below(50)); };
        for (std::uint32_t s = 0; s < schedule.stage_count(); ++s) {
          costs.stages.push_back(PassCosts::of_parts(1 + some(), 1 + some(), some()));
          if (s > 0) costs.link_ns.push_back(some());
        }
        for (std::uint32_t r = 0; r < schedule.rank_count(); ++r) {
          costs.optimizer_ns.push_back(some());
        }
        return costs;
      };
      const auto comparison = compare_costs(schedule, drawn(), drawn());
      EXPECT_EQ(sum_ns(comparison.delays), comparison.measured_ns - comparison.simulated_ns);
      ASSERT_EQ(comparison.passes.size(), schedule.action_count());
      auto furthest = INT64_MAX;
      for (const auto& pass : comparison.passes) {
        ASSERT_EQ(sum_ns(pass.delays), pass.late_ns());
        ASSERT_LE(std::abs(pass.late_ns()), furthest);
        furthest = std::abs(pass.late_ns());
      }
      for (const auto& rank : comparison.ranks) {
        std::int64_t total_ns = 0;
        for (const auto time_ns : rank.simulated_ns) total_ns += time_ns;
        ASSERT_EQ(total_ns, comparison.simulated_ns);
      }
    }
  }
}

TEST(ComparisonReport, IsTwoTablesAListAndAVerdict) {
  const auto schedule = make_1f1b(2, 2);
  const CostModel simulated{.stages = {PassCosts::of_parts(2 * ms, 2 * ms, 1 * ms)}};
  auto measured = simulated;
  measured.link_ns = {ms / 2};
  auto comparison = compare_costs(schedule, measured, simulated);
  comparison.passes.resize(3);
  const RecordedSteps recorded{schedule, {}};
  EXPECT_EQ(to_report({"out", recorded, "some costs"}, comparison),
            R"(out: step 1 of 1f1b, 2 stages, 2 microbatches; simulated with some costs

         measured  simulated  difference
step    16.000 ms  15.000 ms      +6.7 %
rank 0  16.000 ms  15.000 ms      +6.7 %
rank 1  16.000 ms  15.000 ms      +6.7 %

time by cause in ms, measured (simulated)
              computing     activation       gradient       director
rank 0  10.000 (10.000)  0.000 (0.000)  6.000 (5.000)  0.000 (0.000)
rank 1  10.000 (10.000)  2.500 (2.000)  0.000 (0.000)  3.500 (3.000)

passes furthest from the simulation, in ms, measured (simulated)
pass                    began           took  late by  because of
0B0   rank 0    8.000 (7.000)  3.000 (3.000)   +1.000  )"
            R"(its input came late from rank 1: +0.500 ms)"
            R"( in handing gradients over to rank 0, most of all before 0B0
0B1   rank 0  13.000 (12.000)  3.000 (3.000)   +1.000  )"
            R"(its input came late from rank 1: +0.500 ms)"
            R"( in handing gradients over to rank 0, most of all before 0B1
1F0   rank 1    2.500 (2.000)  2.000 (2.000)   +0.500  )"
            R"(its input came late from rank 0: +0.500 ms)"
            R"( in handing activations over to rank 1, most of all before 1F0

the step took 6.7 % longer than simulated; most of it, 0.500 ms,)"
            R"( in handing gradients over to rank 0, most of all before 0B1
)");
}

}  // namespace
}  // namespace troupe::cli
