// Each thing that costs time in a step, against a case counted by hand or a closed form.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <set>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/engine/schedule_generators.hpp"
#include "troupe/engine/schedule_text.hpp"
#include "troupe/engine/simulate.hpp"

#include "schedule_scope.hpp"

namespace troupe {
namespace {

/// A byte takes a nanosecond.
constexpr Wire byte_per_ns{.latency_ns = 0, .bytes_per_second = 1e9};

/// F takes 10, B 20.
const std::vector<PassCosts> passes{PassCosts::of_parts(10, 10, 10)};

std::int64_t begin_of(const Timeline& timeline, std::size_t rank, std::string_view action) {
  for (const auto& entry : timeline.ranks.at(rank)) {
    if (to_string(entry.action) == action) return entry.begin_ns;
  }
  ADD_FAILURE() << "no " << action << " on rank " << rank;
  return 0;
}

/// Expects the causes named, and no others.
void expect_idle(const Timeline& timeline, std::size_t rank,
                 const std::vector<std::pair<IdleCause, std::int64_t>>& expected) {
  IdleTime idle;
  for (const auto& [cause, ns] : expected) idle[cause] = ns;
  for (std::size_t c = 0; c < idle_cause_count; ++c) {
    EXPECT_EQ(timeline.idle_times.at(rank).ns[c], idle.ns[c])
        << "rank " << rank << ", " << to_string(static_cast<IdleCause>(c));
  }
}

Schedule read(const char* csv) {
  auto schedule = from_csv(csv, "test.csv");
  EXPECT_TRUE(schedule.has_value()) << schedule.error().context;
  return *schedule;
}

// -- idle time by cause ---------------------------------------------------------------------------

TEST(SimulatedCosts, TheBubbleOf1F1BIsWarmUpImbalanceAndDrain) {
  // Rank r waits r F to begin, r B at its end, and in between, for what comes back to it, the rest
  // of (P - 1)(F + B): Narayanan et al. 2021, figure 4.
  for_every_extent([](std::uint32_t p, std::uint32_t m) {
    const auto timeline = simulate(make_1f1b(p, m), {.stages = passes});
    for (std::uint32_t r = 0; r < p; ++r) {
      expect_idle(timeline, r,
                  {{IdleCause::warm_up, 10 * r},
                   {IdleCause::imbalance, 30 * std::int64_t{p - 1 - r}},
                   {IdleCause::drain, 20 * r}});
    }
    EXPECT_EQ(timeline.idle_by_cause()[IdleCause::warm_up], 10 * p * (p - 1) / 2);
  });
}

TEST(SimulatedCosts, AnInputThatIsMadeAndNotHereIsWaitedForAsCommunication) {
  // 0F0 ends at 10, 1F0 runs from 17 to 27, 1B0 to 47, 0B0 from 54 to 74.
  const auto timeline = simulate(make_1f1b(2, 1), {.stages = passes, .link_ns = {7}});
  expect_idle(timeline, 0, {{IdleCause::imbalance, 37}, {IdleCause::communication, 7}});
  expect_idle(timeline, 1, {{IdleCause::warm_up, 17}, {IdleCause::drain, 27}});
}

TEST(IdleCause, EveryCauseHasItsOwnName) {
  EXPECT_EQ(to_string(IdleCause::warm_up), "warm_up");
  EXPECT_EQ(to_string(IdleCause::dispatch), "dispatch");
  std::set<std::string_view> names;
  for (std::size_t c = 0; c < idle_cause_count; ++c) {
    names.insert(to_string(static_cast<IdleCause>(c)));
  }
  EXPECT_EQ(names.size(), idle_cause_count);
}

// -- ranks of different speed ---------------------------------------------------------------------

TEST(SimulatedCosts, OneSlowRankSetsThePaceOf1F1B) {
  // With the last of P ranks k times slower, the others fill before and drain behind its M passes.
  for_every_extent([](std::uint32_t p, std::uint32_t m) {
    std::vector<double> slowdown(p, 1.0);
    slowdown.back() = 3.0;
    const auto timeline = simulate(make_1f1b(p, m), {.stages = passes, .slowdown = slowdown});
    EXPECT_EQ(timeline.makespan_ns, 30 * std::int64_t{p - 1} + 90 * std::int64_t{m});
    EXPECT_EQ(timeline.rank_times[p - 1].passes_ns, 90 * std::int64_t{m});
  });
}

TEST(SimulatedCosts, AStragglerSlowsItsOwnReplicaAlone) {
  const CostModel costs{
      .stages = passes, .slowdown = {1.0, 1.0, 1.0, 2.0}, .replicas = {.count = 2}};
  const auto timeline = simulate(make_1f1b(2, 4), costs);
  ASSERT_EQ(timeline.ranks.size(), 4U);
  EXPECT_EQ(timeline.rank_times[0].end_ns, 30 + 4 * 30);
  EXPECT_EQ(timeline.rank_times[2].end_ns, 30 + 4 * 60);
}

// -- channels -------------------------------------------------------------------------------------

TEST(SimulatedCosts, ATransferOccupiesItsChannelAndThenTravels) {
  const CostModel costs{.stages = passes,
                        .link_ns = {3},
                        .network = {.activation_bytes = {40},
                                    .gradient_bytes = {5},
                                    .wire = {.latency_ns = 2, .bytes_per_second = 2e9}}};
  const auto timeline = simulate(make_1f1b(2, 1), costs);
  EXPECT_EQ(begin_of(timeline, 1, "1F0"), 10 + 20 + 2 + 3);
  // 2.5 ns are rounded to 3.
  EXPECT_EQ(begin_of(timeline, 0, "0B0"), 35 + 30 + 3 + 2 + 3);
}

TEST(SimulatedCosts, AListedChannelDiffersFromTheOthersInItsDirectionAlone) {
  const CostModel costs{
      .stages = passes,
      .network = {.activation_bytes = {8},
                  .gradient_bytes = {8},
                  .wire = byte_per_ns,
                  .channels = {{RankIndex{1}, RankIndex{0}, {.latency_ns = 100}}}}};
  const auto timeline = simulate(make_1f1b(2, 1), costs);
  EXPECT_EQ(begin_of(timeline, 1, "1F0"), 18);
  EXPECT_EQ(begin_of(timeline, 0, "0B0"), 18 + 30 + 100);
}

TEST(SimulatedCosts, TheActivationsOfGPipeQueueForANarrowChannel) {
  // A transfer takes 50, a forward pass 10: the k-th of rank 1 begins behind k + 1 transfers.
  const CostModel costs{.stages = passes,
                        .network = {.activation_bytes = {50}, .wire = byte_per_ns}};
  const auto timeline = simulate(make_gpipe(2, 6), costs);
  for (std::uint32_t k = 0; k < 6; ++k) EXPECT_EQ(timeline.ranks[1][k].begin_ns, 10 + 50 * (k + 1));
  EXPECT_EQ(timeline.idle_times[1][IdleCause::communication], 5 * 40);
}

TEST(SimulatedCosts, TwoBoundariesBetweenTwoRanksShareAChannel) {
  // Stages 0 and 2 on rank 0, 1 and 3 on rank 1. 2F0 and 0F1 both send to rank 1 within 10 ns, over
  // a channel that takes 30 for each.
  const auto schedule = read("0F0,0F1,2F0,2F1,2B0,2B1,0B0,0B1\n1F0,1F1,3F0,3B0,3F1,3B1,1B0,1B1\n");
  const CostModel costs{.stages = passes,
                        .network = {.activation_bytes = {30, 0, 30}, .wire = byte_per_ns}};
  const auto timeline = simulate(schedule, costs);
  EXPECT_EQ(begin_of(timeline, 1, "1F0"), 40) << "0F0 left from 10 to 40";
  EXPECT_EQ(begin_of(timeline, 1, "1F1"), 70) << "0F1, ready at 20, waits for it";
  EXPECT_EQ(begin_of(timeline, 0, "2F0"), 50);
  EXPECT_EQ(begin_of(timeline, 1, "3F0"), 100) << "2F0, ready at 60, waits for 0F1 until 70";
  EXPECT_EQ(begin_of(timeline, 0, "2F1"), 80);
  EXPECT_EQ(begin_of(timeline, 1, "3F1"), 130) << "2F1 is ready at 90, its turn comes at 100";
}

TEST(SimulatedCosts, RanksOfOneNodeTakeTurnsAtItsInterface) {
  // Ranks 0 and 2 on one node, 1 and 3 on another: every hop leads from node to node.
  const auto schedule =
      make_forward_only_on({RankIndex{0}, RankIndex{1}, RankIndex{2}, RankIndex{3}}, 3);
  CostModel costs{.stages = passes, .network = {.activation_bytes = {30}, .wire = byte_per_ns}};
  const auto alone = simulate(schedule, costs);
  // Each hop takes 40; later microbatches wait for the one before to leave.
  EXPECT_EQ(begin_of(alone, 3, "3F0"), 120);
  EXPECT_EQ(begin_of(alone, 3, "3F1"), 150);
  EXPECT_EQ(begin_of(alone, 3, "3F2"), 180);
  costs.network.interfaces = {7, 9, 7, 9};
  const auto shared = simulate(schedule, costs);
  // Node 7 sends 0F0 from 10, 0F1 from 40, 0F2 from 70 to 100, and only then 2F0, ready at 90; node
  // 9 sends 1F0 from 50 to 80, 1F1 from 80 to 110, 1F2 from 110 to 140.
  EXPECT_EQ(begin_of(shared, 2, "2F0"), 80);
  EXPECT_EQ(begin_of(shared, 3, "3F0"), 130);
  EXPECT_EQ(begin_of(shared, 3, "3F1"), 160);
  EXPECT_EQ(begin_of(shared, 3, "3F2"), 190);
  costs.network.interfaces = {7, 7, 7, 7};
  EXPECT_EQ(simulate(schedule, costs), alone) << "nothing leaves the node";
}

TEST(SimulatedCosts, WithoutOverlapAPassWaitsUntilTheOutputBeforeItHasLeft) {
  CostModel costs{.stages = passes,
                  .link_ns = {1000},
                  .network = {.activation_bytes = {25}, .wire = byte_per_ns}};
  costs.network.overlaps_passes = false;
  const auto timeline = simulate(make_gpipe(2, 3), costs);
  EXPECT_EQ(begin_of(timeline, 0, "0F1"), 35) << "behind 25 of leaving, not behind the latency";
  EXPECT_EQ(begin_of(timeline, 0, "0F2"), 70);
  EXPECT_EQ(timeline.idle_times[0][IdleCause::send], 3 * 25);
  costs.network.overlaps_passes = true;
  EXPECT_EQ(begin_of(simulate(make_gpipe(2, 3), costs), 0, "0F2"), 20);
}

// -- buffers and the runtime ----------------------------------------------------------------------

TEST(SimulatedCosts, APassWaitsForAFreeOutputBuffer) {
  // One pass takes 10, one transfer 50: with b buffers the (b + 1)-th pass waits for the first to
  // leave, and from then on one runs whenever one has left.
  for (const std::uint32_t buffer_count : {1U, 2U, 3U}) {
    CostModel costs{.stages = passes, .network = {.activation_bytes = {50}, .wire = byte_per_ns}};
    costs.runtime.bounds = {{.slots = 6, .activations_out = buffer_count, .gradients_in = 6},
                            {.slots = 6, .activations_in = 6, .gradients_out = 2}};
    const auto timeline = simulate(make_gpipe(2, 6), costs);
    for (std::uint32_t k = 0; k < 6; ++k) {
      const auto begin_ns = buffer_count == 1  ? 60 * std::int64_t{k}
                            : k < buffer_count ? 10 * std::int64_t{k}
                                               : 10 + 50 * std::int64_t{k - buffer_count + 1};
      EXPECT_EQ(timeline.ranks[0][k].begin_ns, begin_ns) << buffer_count << " buffers, pass " << k;
    }
    EXPECT_GT(timeline.idle_times[0][IdleCause::send], 0);
  }
}

TEST(SimulatedCosts, ARuntimeThatTakesTimeIsHiddenByPassesEnqueuedAhead) {
  // One rank, four microbatches. The machine hears of everything 3 late.
  CostModel costs{.stages = passes};
  costs.runtime = {.dispatch_ns = 3, .enqueued_max = 1};
  const auto one = simulate(make_1f1b(1, 4), costs);
  EXPECT_EQ(one.rank_times[0].end_ns, 4 * 30 + 7 * 3) << "between any two passes";
  // Behind the passes: that they are over, that the gradients are measured and the weights updated.
  EXPECT_EQ(one.makespan_ns, one.rank_times[0].end_ns + 3 * 3);
  expect_idle(one, 0, {{IdleCause::dispatch, 10 * 3}});
  costs.runtime.enqueued_max = 2;
  EXPECT_EQ(simulate(make_1f1b(1, 4), costs).rank_times[0].end_ns, 4 * 30);
}

TEST(SimulatedCosts, WhatTravelsIsHeardOfAtBothEnds) {
  CostModel costs{.stages = passes, .link_ns = {7}};
  costs.runtime.dispatch_ns = 3;
  // 0F0 is over at 10, sent at 13, there at 20, known at 23.
  EXPECT_EQ(begin_of(simulate(make_1f1b(2, 1), costs), 1, "1F0"), 23);
}

TEST(SimulatedCosts, AnEvaluationStepHoldsUpSendersWhoseReceiversHaveNoBuffer) {
  // Rank 1 takes 100 for what rank 0 makes in 10, and has one buffer; rank 0 has one as well.
  CostModel costs{.stages = {{.forward_ns = 10}, {.forward_ns = 100}}};
  costs.runtime.bounds = {{.activations_out = 1}, {.activations_in = 1}};
  const auto timeline = simulate(make_forward_only_on({RankIndex{0}, RankIndex{1}}, 4), costs);
  EXPECT_EQ(begin_of(timeline, 0, "0F1"), 10) << "0F0 has left at once";
  EXPECT_EQ(begin_of(timeline, 0, "0F2"), 110) << "0F1 leaves when 1F0 is over";
  EXPECT_EQ(begin_of(timeline, 0, "0F3"), 210);
  EXPECT_EQ(begin_of(timeline, 1, "1F3"), 310);
}

// -- replicas and the end of a step ---------------------------------------------------------------

/// Two replicas of one rank: F takes 10, B 20. Two buckets of 50 and 5 bytes, 4 of latency.
CostModel two_replicas() {
  return {.stages = passes,
          .replicas = {.count = 2,
                       .bucket_bytes = {{50, 5}},
                       .wire = {.latency_ns = 4, .bytes_per_second = 1e9}}};
}

TEST(SimulatedCosts, BucketsAreReducedWhileTheLastPassRuns) {
  const auto timeline = simulate(make_1f1b(1, 2), two_replicas());
  // The last pass runs from 40 to 60 and fills a bucket at 50 and one at 60.
  const std::vector<ReductionEntry> expected{{StageIndex{0}, 0, 50, 104},
                                             {StageIndex{0}, 1, 104, 113}};
  EXPECT_EQ(timeline.reductions.at(0), expected);
  EXPECT_EQ(timeline.makespan_ns, 113);
  expect_idle(timeline, 0, {{IdleCause::reduction, 53}});
}

TEST(SimulatedCosts, WithoutOverlapBucketsWaitForTheLastPass) {
  auto costs = two_replicas();
  costs.replicas.overlaps_passes = false;
  const std::vector<ReductionEntry> expected{{StageIndex{0}, 0, 60, 114},
                                             {StageIndex{0}, 1, 114, 123}};
  EXPECT_EQ(simulate(make_1f1b(1, 2), costs).reductions.at(0), expected);
}

TEST(SimulatedCosts, AReductionBeginsWhenTheSlowestReplicaHasFilledTheBucket) {
  auto costs = two_replicas();
  costs.slowdown = {1.0, 2.0};
  const auto timeline = simulate(make_1f1b(1, 2), costs);
  // The slow replica's last pass runs from 80 to 120.
  EXPECT_EQ(timeline.reductions.at(0).front().begin_ns, 100);
  EXPECT_EQ(timeline.makespan_ns, 100 + 54 + 9);
  expect_idle(timeline, 0, {{IdleCause::reduction, 163 - 60}});
  expect_idle(timeline, 1, {{IdleCause::reduction, 163 - 120}});
}

TEST(SimulatedCosts, ReductionsOfAnEarlierStageHideBehindPasses) {
  // Two stages on one rank: stage 1 is through when stage 0's last pass begins.
  const auto schedule = read("0F0,1F0,1B0,0B0\n");
  const CostModel costs{.stages = passes,
                        .replicas = {.count = 2, .bucket_bytes = {{1}, {15}}, .wire = byte_per_ns}};
  const auto timeline = simulate(schedule, costs);
  const std::vector<ReductionEntry> expected{{StageIndex{1}, 0, 40, 55},
                                             {StageIndex{0}, 0, 60, 61}};
  EXPECT_EQ(timeline.reductions.at(0), expected);
  EXPECT_EQ(timeline.idle_times[0][IdleCause::reduction], 1);
}

TEST(SimulatedCosts, AllRanksUpdateWhenTheDirectorKnowsTheNorm) {
  CostModel costs{.stages = passes, .optimizer_ns = {5, 40}, .measuring_ns = {2, 1}};
  costs.runtime.director_ns = 100;
  const auto timeline = simulate(make_1f1b(2, 1), costs);
  // Rank 1 is through at 40 and has measured at 41, rank 0 at 60 and 62; both update from 162 on.
  EXPECT_EQ(timeline.makespan_ns, 162 + 40);
  EXPECT_EQ(timeline.rank_times[1].optimizer_begin_ns, 162);
  expect_idle(timeline, 0,
              {{IdleCause::imbalance, 30}, {IdleCause::director, 100}, {IdleCause::drain, 35}});
  expect_idle(timeline, 1,
              {{IdleCause::warm_up, 10}, {IdleCause::director, 100}, {IdleCause::drain, 21}});
  costs.runtime.director_ns.reset();
  EXPECT_EQ(simulate(make_1f1b(2, 1), costs).makespan_ns, 81) << "rank 1 has not waited";
}

// -- jitter ---------------------------------------------------------------------------------------

std::vector<double> pass_factors(const Jitter& jitter) {
  const auto timeline =
      simulate(make_1f1b(4, 2000), {.stages = {{1'000'000, 1'000'000}}, .jitter = jitter});
  std::vector<double> factors;
  for (const auto& row : timeline.ranks) {
    for (const auto& entry : row) {
      factors.push_back(static_cast<double>(entry.end_ns - entry.begin_ns) * 1e-6);
    }
  }
  return factors;
}

TEST(SimulatedCosts, JitterHasTheMeanAndTheSpreadThatItSays) {
  for (const auto shape : {Jitter::Shape::normal, Jitter::Shape::lognormal}) {
    const auto factors = pass_factors({.shape = shape, .pass_spread = 0.2, .seed = 3});
    const auto count = static_cast<double>(factors.size());
    const auto mean = std::accumulate(factors.begin(), factors.end(), 0.0) / count;
    const auto variance = std::accumulate(factors.begin(), factors.end(), 0.0,
                                          [mean](double sum, double factor) {
                                            return sum + (factor - mean) * (factor - mean);
                                          })
                          / count;
    // Five deviations of the mean, and of the deviation, of 16,000 values.
    EXPECT_NEAR(mean, 1.0, 5 * 0.2 / std::sqrt(count));
    EXPECT_NEAR(std::sqrt(variance), 0.2, 0.01);
  }
}

TEST(SimulatedCosts, ANormalFactorIsAsOftenAboveItsMeanAsBelowAndALognormalOneIsNot) {
  const auto above = [](Jitter::Shape shape) {
    const auto factors = pass_factors({.shape = shape, .pass_spread = 0.5});
    return static_cast<double>(std::ranges::count_if(factors, [](double f) { return f > 1.0; }))
           / static_cast<double>(factors.size());
  };
  EXPECT_NEAR(above(Jitter::Shape::normal), 0.5, 0.02);
  // P(exp(s z - s^2 / 2) > 1) = P(z > s / 2), with s^2 = ln(1.25).
  EXPECT_NEAR(above(Jitter::Shape::lognormal), 0.5 * std::erfc(0.4724 / 2 / std::sqrt(2.0)), 0.02);
}

TEST(SimulatedCosts, TheSameSeedGivesTheSameStepAndAnotherAnother) {
  CostModel costs{.stages = {PassCosts::of_parts(1000, 1000, 1000)},
                  .link_ns = {100},
                  .jitter = {.pass_spread = 0.1, .transfer_spread = 0.1, .seed = 1}};
  const auto schedule = make_1f1b(4, 8);
  EXPECT_EQ(simulate(schedule, costs), simulate(schedule, costs));
  const auto first = simulate(schedule, costs).makespan_ns;
  costs.jitter.seed = 2;
  EXPECT_NE(simulate(schedule, costs).makespan_ns, first);
}

TEST(SimulatedCosts, WhatAPassTakesDependsOnNeitherScheduleNorOrder) {
  const CostModel costs{.stages = {{1'000'000, 1'000'000}}, .jitter = {.pass_spread = 0.1}};
  const auto duration_of = [](const Timeline& timeline, const Action& action) {
    for (const auto& entry : timeline.ranks[action.stage.value()]) {
      if (entry.action == action) return entry.end_ns - entry.begin_ns;
    }
    return std::int64_t{-1};
  };
  const auto gpipe = simulate(make_gpipe(3, 5), costs);
  const auto other = simulate(make_1f1b(3, 5), costs);
  std::set<std::int64_t> durations;
  for (const auto& row : gpipe.ranks) {
    for (const auto& entry : row) {
      EXPECT_EQ(duration_of(other, entry.action), entry.end_ns - entry.begin_ns);
      durations.insert(entry.end_ns - entry.begin_ns);
    }
  }
  EXPECT_GT(durations.size(), 28U) << "of 30 passes hardly two take equally long";
}

TEST(SimulatedCosts, EveryReplicaAndEveryTransferHasJitterOfItsOwn) {
  CostModel costs{.stages = {{100, 100}},
                  .link_ns = {1'000'000},
                  .replicas = {.count = 2},
                  .jitter = {.transfer_spread = 0.3}};
  const auto timeline = simulate(make_gpipe(2, 1), costs);
  EXPECT_NE(begin_of(timeline, 1, "1F0"), begin_of(timeline, 3, "1F0"));
  const auto there_ns = begin_of(timeline, 1, "1F0") - 100;
  const auto back_ns = begin_of(timeline, 0, "0B0") - begin_of(timeline, 1, "1B0") - 100;
  EXPECT_NE(there_ns, back_ns);
}

// -- memory ---------------------------------------------------------------------------------------

TEST(MemoryOverTime, IsAStepFunctionOfTheActivationsHeld) {
  const auto schedule = make_1f1b(2, 3);
  const auto timeline = simulate(schedule, {.stages = passes});
  // 0F0 from 0, 0F1 from 10 to 20, 0B0 from 40 to 60, 0F2 to 70, 0B1 to 90, 0B2 from 100 to 120.
  const std::vector<MemoryLevel> expected{{0, 7}, {10, 14}, {60, 14}, {90, 7}, {120, 0}};
  EXPECT_EQ(memory_over_time(timeline.ranks[0], StepKind::training, {7, 100}), expected);
  EXPECT_EQ(memory_max(schedule, {7, 100}), (std::vector<std::int64_t>{14, 100}));
  EXPECT_EQ(memory_max(make_forward_only(schedule), {7, 100}), (std::vector<std::int64_t>{7, 100}));
}

TEST(MemoryOverTime, ReachesItsMaximumWhateverPassesCost) {
  for_every_schedule([](const Schedule& schedule) {
    if (schedule.action_count() > 300) return;
    std::vector<std::int64_t> bytes;
    for (std::uint32_t s = 0; s < schedule.stage_count(); ++s) bytes.push_back(1 << s % 20);
    const auto timeline = simulate(schedule, {.stages = {PassCosts::of_parts(3, 2, 4)}});
    const auto most = memory_max(schedule, bytes);
    for (std::uint32_t r = 0; r < schedule.rank_count(); ++r) {
      const auto levels = memory_over_time(timeline.ranks[r], schedule.kind, bytes);
      EXPECT_EQ(std::ranges::max(levels, {}, &MemoryLevel::bytes).bytes, most[r]);
      EXPECT_EQ(levels.back().bytes, 0);
      EXPECT_TRUE(std::ranges::is_sorted(levels, {}, &MemoryLevel::from_ns));
    }
    if (schedule.stage_count() != schedule.rank_count()) return;
    for (std::uint32_t r = 0; r < schedule.rank_count(); ++r) {
      EXPECT_EQ(most[r], bytes[r] * timeline.in_flight_max[r]);
    }
  });
}

TEST(SimulatedCosts, TotalsAreThoseOfARecordedStep) {
  const auto schedule = make_1f1b(3, 5);
  auto recorded = simulate(schedule, {.stages = passes});
  recorded.ranks.assign(3, {});
  EXPECT_EQ(simulate(schedule, {.stages = passes}, Recording::totals), recorded);
}

}  // namespace
}  // namespace troupe
