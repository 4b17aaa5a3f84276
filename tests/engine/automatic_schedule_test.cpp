// Searched schedules against published rates, all schedules of tiny pipelines, and the named ones.
#include "troupe/engine/automatic_schedule.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include <gtest/gtest.h>

#include "troupe/engine/random.hpp"
#include "troupe/engine/schedule_validation.hpp"

#include "oracles/zero_bubble_automatic.hpp"
#include "schedule_scope.hpp"

namespace troupe {
namespace {

/// The time from a rank's first pass to its last, on the rank where that is longest.
std::int64_t longest_rank_ns(const Timeline& timeline) {
  std::int64_t longest_ns = 0;
  for (const auto& time : timeline.rank_times) {
    longest_ns = std::max(longest_ns, time.end_ns - time.begin_ns);
  }
  return longest_ns;
}

std::int64_t step_ns(const Schedule& schedule, const CostModel& costs) {
  return simulate(schedule, costs).makespan_ns;
}

/// By rank: what its stages hold at most, each when it holds most.
std::vector<std::int64_t> memory_of(const Schedule& schedule, const AutomaticRequest& request) {
  const auto in_flight = in_flight_max(schedule, Pass::backward_weight);
  std::vector<std::int64_t> memory(schedule.rank_count());
  for (std::uint32_t s = 0; s < schedule.stage_count(); ++s) {
    const auto& sizes = request.activation_sizes;
    memory[schedule.rank_of_stage[s].value()] += in_flight[s] * sizes[sizes.size() == 1 ? 0 : s];
  }
  return memory;
}

bool fits(const Schedule& schedule, const AutomaticRequest& request) {
  const auto memory = memory_of(schedule, request);
  for (std::uint32_t r = 0; r < memory.size(); ++r) {
    const auto& limits = request.memory_limits;
    if (memory[r] > limits[limits.size() == 1 ? 0 : r]) return false;
  }
  return true;
}

/// Searches, and expects what holds for every result.
Schedule search(const AutomaticRequest& request) {
  auto schedule = make_automatic_schedule(request);
  EXPECT_TRUE(schedule.has_value()) << schedule.error().context;
  const auto valid = validate(*schedule);
  EXPECT_TRUE(valid.has_value()) << valid.error().context;
  EXPECT_EQ(schedule->rank_of_stage, request.rank_of_stage);
  EXPECT_TRUE(request.memory_limits.empty() || fits(*schedule, request));
  return *std::move(schedule);
}

/// The published setting, with memory for `multiple` times as many microbatches as ranks.
AutomaticRequest published_request(const oracles::ZeroBubbleAutomaticRow& row,
                                   std::int64_t multiple) {
  const auto held = 34 * row.hidden + 5 * row.heads * row.sequence;
  return {.rank_of_stage = make_stage_map(StageMap::looped, row.rank_count, 1),
          .microbatch_count = row.microbatch_count,
          .costs = {.stages = {PassCosts::of_parts(row.forward_ns, row.backward_input_ns,
                                                   row.backward_weight_ns)},
                    .link_ns = {row.link_ns}},
          .activation_sizes = {held},
          .kept_sizes = {32 * row.hidden},
          .memory_limits = {multiple * row.rank_count * held},
          .step_time = StepTime::longest_rank,
          .simulated_actions_max = std::size_t{1} << 20U};
}

/// To four digits, as published.
double bubble_rate(const Schedule& schedule, const CostModel& costs) {
  const auto timeline = simulate(schedule, costs);
  const auto cost_ns = static_cast<double>(longest_rank_ns(timeline));
  const auto work_ns = static_cast<double>(timeline.rank_times[0].passes_ns);
  return std::round((cost_ns - work_ns) / cost_ns * 1e4) / 1e4;
}

TEST(AutomaticSchedule, IsNoSlowerThanThePublishedZb1pAndZb2p) {
  for (const auto& row : oracles::zero_bubble_automatic_rows) {
    SCOPED_TRACE(testing::Message()
                 << "microbatches=" << row.microbatch_count << " link_ns=" << row.link_ns);
    const auto costs = published_request(row, 1).costs;
    EXPECT_EQ(bubble_rate(make_1f1b(row.rank_count, row.microbatch_count), costs), row.rate_1f1b);
    for (const std::int64_t multiple : {1, 2}) {
      const auto schedule = make_zero_bubble_schedule(published_request(row, multiple));
      ASSERT_TRUE(validate(*schedule).has_value());
      EXPECT_LE(bubble_rate(*schedule, costs), multiple == 1 ? row.rate_zb_1p : row.rate_zb_2p);
    }
  }
}

TEST(AutomaticSchedule, ReachesThePublishedZb1pInSlotsThatIDoesNotEmpty) {
  for (const auto& row : oracles::zero_bubble_automatic_rows) {
    const auto costs = published_request(row, 1).costs;
    const auto schedule = make_schedule(
        "zb-1p",
        {.rank_count = row.rank_count, .microbatch_count = row.microbatch_count, .costs = costs});
    EXPECT_EQ(bubble_rate(*schedule, costs), row.rate_zb_1p);
    EXPECT_LE(std::ranges::max(in_flight_max(*schedule, Pass::backward_weight)), row.rank_count);
  }
}

TEST(AutomaticSchedule, InSuchSlotsZb2pIsAsShortAsTheLastRankAllows) {
  for (const auto& row : oracles::zero_bubble_automatic_rows) {
    const std::int64_t p = row.rank_count;
    const std::int64_t m = row.microbatch_count;
    auto request = published_request(row, 2);
    request.kept_sizes.clear();
    const auto schedule = make_zero_bubble_schedule(request);
    // The way to the last rank, which cannot put off more than 2 p weight passes; the way back.
    EXPECT_EQ(longest_rank_ns(simulate(*schedule, request.costs)),
              (p - 1) * (row.forward_ns + row.link_ns)
                  + m * (row.forward_ns + row.backward_input_ns)
                  + (m - 2 * p) * row.backward_weight_ns
                  + (p - 1) * (row.backward_input_ns + row.link_ns) + row.backward_weight_ns);
  }
}

/// Every program of `stage` that takes the microbatches in order.
void append_programs(StageIndex stage, std::uint32_t count, std::vector<Action>& begun,
                     std::vector<std::vector<Action>>& programs) {
  const auto done = [&](Pass pass) {
    return static_cast<std::uint32_t>(
        std::ranges::count(begun, pass, [](const Action& action) { return action.pass; }));
  };
  const auto forward = done(Pass::forward);
  const auto input = done(Pass::backward_input);
  const auto weight = done(Pass::backward_weight);
  if (weight == count) programs.push_back(begun);
  const auto go_on = [&](Pass pass, std::uint32_t microbatch) {
    begun.push_back({stage, pass, MicrobatchIndex{microbatch}});
    append_programs(stage, count, begun, programs);
    begun.pop_back();
  };
  if (forward < count) go_on(Pass::forward, forward);
  if (input < forward) go_on(Pass::backward_input, input);
  if (weight < input) go_on(Pass::backward_weight, weight);
}

/// The shortest step of all schedules that split every backward pass, one stage per rank.
std::int64_t shortest_step_ns(const AutomaticRequest& request) {
  const auto rank_count = static_cast<std::uint32_t>(request.rank_of_stage.size());
  std::vector<std::vector<std::vector<Action>>> programs(rank_count);
  for (std::uint32_t r = 0; r < rank_count; ++r) {
    std::vector<Action> begun;
    append_programs(StageIndex{r}, request.microbatch_count, begun, programs[r]);
  }
  Schedule schedule{.name = "every",
                    .microbatch_count = request.microbatch_count,
                    .rank_of_stage = request.rank_of_stage,
                    .ranks = std::vector<std::vector<Action>>(rank_count)};
  auto shortest_ns = std::numeric_limits<std::int64_t>::max();
  std::vector<std::size_t> at(rank_count, 0);
  while (true) {
    for (std::uint32_t r = 0; r < rank_count; ++r) schedule.ranks[r] = programs[r][at[r]];
    if (fits(schedule, request) && validate(schedule).has_value()) {
      shortest_ns = std::min(shortest_ns, step_ns(schedule, request.costs));
    }
    std::uint32_t r = 0;
    while (r < rank_count && ++at[r] == programs[r].size()) at[r++] = 0;
    if (r == rank_count) return shortest_ns;
  }
}

TEST(AutomaticSchedule, FindsTheShortestOfAllSchedulesOfTinyPipelines) {
  struct Extent {
    std::uint32_t rank_count;
    std::uint32_t microbatch_count;
  };
  for (const auto [p, m] : {Extent{2, 2}, Extent{3, 2}, Extent{2, 3}}) {
    for (std::uint64_t seed = 0; seed < 8; ++seed) {
      SCOPED_TRACE(testing::Message()
                   << "ranks=" << p << " microbatches=" << m << " seed=" << seed);
      Random random{seed};
      const auto draw = [&](std::uint64_t bound) {
        return static_cast<std::int64_t>(random.below(bound));
      };
      AutomaticRequest request{.rank_of_stage = make_stage_map(StageMap::looped, p, 1),
                               .microbatch_count = m,
                               .costs = {.stages = {}, .link_ns = {}},
                               .memory_limits = {1 + draw(m)},
                               .simulated_actions_max = std::size_t{1} << 18U};
      for (std::uint32_t s = 0; s < p; ++s) {
        request.costs.stages.push_back(
            PassCosts::of_parts(1 + draw(20), 1 + draw(20), 1 + draw(20)));
        if (s > 0) request.costs.link_ns.push_back(draw(10));
      }
      EXPECT_EQ(step_ns(search(request), request.costs), shortest_step_ns(request));
    }
  }
}

/// A pipeline in which nothing costs the same, every eighth stage takes twice as long, and some
/// whole backward passes take less than their parts.
AutomaticRequest random_request(std::uint64_t seed) {
  Random random{seed};
  const auto draw = [&](std::uint64_t bound) {
    return static_cast<std::int64_t>(random.below(bound));
  };
  const auto p = static_cast<std::uint32_t>(2 + draw(7));
  const auto chunks = static_cast<std::uint32_t>(1 + draw(3));
  const auto map = draw(2) == 0 ? StageMap::looped : StageMap::v_shaped;
  AutomaticRequest request{.rank_of_stage = make_stage_map(map, p, chunks),
                           .microbatch_count = static_cast<std::uint32_t>(1 + draw(32)),
                           .costs = {.stages = {}, .link_ns = {}},
                           .memory_limits = {chunks * (1 + draw(2 * p))},
                           .simulated_actions_max = std::size_t{1} << 19U};
  for (std::uint32_t s = 0; s < p * chunks; ++s) {
    const auto scale = draw(8) == 0 ? 2 : 1;
    const auto forward_ns = 50 + draw(100);
    auto costs = PassCosts::of_parts(scale * forward_ns, scale * (forward_ns / 2 + draw(100)),
                                     scale * (forward_ns / 2 + draw(100)));
    costs.backward_ns = costs.backward_ns * (90 + draw(12)) / 100;
    request.costs.stages.push_back(costs);
    if (s > 0) request.costs.link_ns.push_back(draw(60));
  }
  return request;
}

TEST(AutomaticSchedule, IsNeverSlowerThanANamedScheduleWithinTheMemory) {
  int compared_count = 0;
  int faster_count = 0;
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    auto request = random_request(seed);
    if (seed % 4 == 0)
      request.simulated_actions_max = 1;  // Named schedules are tried all the same.
    const auto rank_count = std::ranges::max(request.rank_of_stage).value() + 1;
    const auto chunks = static_cast<std::uint32_t>(request.rank_of_stage.size()) / rank_count;
    const auto limit = static_cast<std::uint32_t>(request.memory_limits[0]) / chunks;
    SCOPED_TRACE(testing::Message()
                 << "seed=" << seed << " ranks=" << rank_count << " chunks=" << chunks
                 << " microbatches=" << request.microbatch_count << " limit=" << limit);
    const auto automatic_ns = step_ns(search(request), request.costs);
    auto named_ns = std::numeric_limits<std::int64_t>::max();
    for (const auto name : schedule_names()) {
      if (name == "auto") continue;
      for (const auto memory_limit : {0U, limit}) {
        for (const bool split : {false, true}) {
          const auto named = make_schedule(name, {.rank_count = rank_count,
                                                  .microbatch_count = request.microbatch_count,
                                                  .chunk_count = chunks,
                                                  .split = split,
                                                  .memory_limit = memory_limit,
                                                  .costs = request.costs});
          if (!named || named->rank_of_stage != request.rank_of_stage) continue;
          if (named->copy_count != 1) continue;  // Runs another model.
          if (!fits(*named, request)) continue;
          named_ns = std::min(named_ns, step_ns(*named, request.costs));
          EXPECT_LE(automatic_ns, named_ns) << name << " split=" << split;
        }
      }
    }
    if (named_ns == std::numeric_limits<std::int64_t>::max()) continue;
    ++compared_count;
    if (automatic_ns < named_ns) ++faster_count;
  }
  EXPECT_GE(compared_count, 15);
  EXPECT_GE(faster_count * 2, compared_count);
}

TEST(AutomaticSchedule, TheSameRequestGivesTheSameSchedule) {
  for (std::uint64_t seed = 100; seed < 105; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed=" << seed);
    EXPECT_EQ(search(random_request(seed)), search(random_request(seed)));
  }
}

TEST(AutomaticSchedule, KeepsToSizesByStageAndLimitsByRank) {
  for (std::uint64_t seed = 200; seed < 220; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed=" << seed);
    auto request = random_request(seed);
    Random random{seed};
    const auto rank_count = std::ranges::max(request.rank_of_stage).value() + 1;
    request.activation_sizes.clear();
    request.memory_limits.assign(rank_count, 0);
    for (const auto rank : request.rank_of_stage) {
      request.activation_sizes.push_back(static_cast<std::int64_t>(1 + random.below(9)));
      request.memory_limits[rank.value()] +=
          request.activation_sizes.back() * static_cast<std::int64_t>(1 + random.below(4));
    }
    (void)search(request);
  }
}

TEST(AutomaticSchedule, LeavesBackwardPassesWholeWhereSplittingThemCosts) {
  // Split, a backward pass takes twice as long: nothing that it frees makes up for that.
  const AutomaticRequest request{.rank_of_stage = make_stage_map(StageMap::looped, 4, 1),
                                 .microbatch_count = 16,
                                 .costs = {.stages = {{.forward_ns = 100,
                                                       .backward_ns = 200,
                                                       .backward_input_ns = 200,
                                                       .backward_weight_ns = 200}}},
                                 .memory_limits = {4},
                                 .simulated_actions_max = std::size_t{1} << 18U};
  const auto schedule = search(request);
  EXPECT_EQ(schedule.action_count(), 2 * 4 * 16U);
  EXPECT_EQ(step_ns(schedule, request.costs), (16 + 3) * 300);
}

TEST(AutomaticSchedule, AStragglerIsNeverIdleBetweenItsPasses) {
  AutomaticRequest request{.rank_of_stage = make_stage_map(StageMap::looped, 4, 1),
                           .microbatch_count = 16,
                           .costs = {.stages = std::vector<PassCosts>(4, {10, 20, 10, 10})},
                           .memory_limits = {8}};
  request.costs.stages[2] = {30, 60, 30, 30};
  const auto timeline = simulate(search(request), request.costs);
  EXPECT_EQ(timeline.rank_times[2].end_ns - timeline.rank_times[2].begin_ns, 16 * 90);
  EXPECT_EQ(timeline.makespan_ns, 10 + 10 + 16 * 90);  // And the first microbatch's way there.
  EXPECT_EQ(step_ns(make_1f1b(4, 16), request.costs), timeline.makespan_ns + 10 + 30);
}

TEST(AutomaticSchedule, NamedSchedulesKeepToTheMemoryThatIsAskedFor) {
  for (const std::string name : {"zb-1p", "zb-2p", "auto"}) {
    for (std::uint32_t p = 1; p <= 3; ++p) {
      for (const std::uint32_t m : {1U, 3U, 6U}) {
        for (std::uint32_t chunks = 1; chunks <= (name == "auto" ? 3U : 1U); ++chunks) {
          for (const std::uint32_t limit : {0U, 1U, 2U}) {
            SCOPED_TRACE(testing::Message() << name << " ranks=" << p << " microbatches=" << m
                                            << " chunks=" << chunks << " limit=" << limit);
            const auto schedule = make_schedule(name, {.rank_count = p,
                                                       .microbatch_count = m,
                                                       .chunk_count = chunks,
                                                       .memory_limit = limit});
            ASSERT_TRUE(validate(*schedule).has_value()) << validate(*schedule).error().context;
            const auto most = limit != 0 ? limit : (name == "zb-1p" ? p : 2 * p);
            for (const auto held : memory_of(*schedule, {})) EXPECT_LE(held, most * chunks);
          }
        }
      }
    }
  }
}

std::string refusal(const AutomaticRequest& request) {
  const auto schedule = make_automatic_schedule(request);
  return schedule ? "made" : schedule.error().context;
}

TEST(AutomaticSchedule, RefusalsSayWhatWouldDo) {
  AutomaticRequest request{.rank_of_stage = make_stage_map(StageMap::v_shaped, 2, 2),
                           .microbatch_count = 3,
                           .activation_sizes = {2, 3, 4, 5},
                           .memory_limits = {7, 6},
                           .simulated_actions_max = 1000};
  EXPECT_EQ(refusal(request),
            "the memory limit of rank 1 is 6, but one microbatch takes 7 there; allow at least 7");
  request.memory_limits = {7, 7, 7};
  EXPECT_EQ(refusal(request), "memory_limits has 3 values for 2 ranks; give one, or one for each");
  request.memory_limits = {7};
  EXPECT_EQ(refusal(request), "made");
  request.costs.stages.resize(3);
  EXPECT_EQ(refusal(request), "costs.stages has 3 values for 4 stages; give one, or one for each");
}

}  // namespace
}  // namespace troupe
