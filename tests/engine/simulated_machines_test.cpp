// Two ways to one timeline: the walk along the flow of data, and the machines of a run in virtual
// time. Whatever a schedule and its costs are, the two agree to the nanosecond. A failure prints
// the seed that reproduces it.
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/engine/plan.hpp"
#include "troupe/engine/random.hpp"
#include "troupe/engine/schedule_generators.hpp"
#include "troupe/engine/schedule_validation.hpp"
#include "troupe/engine/simulate.hpp"

#include "random_schedule.hpp"
#include "schedule_scope.hpp"
#include "v_schedule.hpp"

namespace troupe {
namespace {

/// Draws costs in which any feature may be at work. Durations are short, often 0, so that many
/// things happen at one time.
class RandomCosts {
public:
  RandomCosts(const Schedule& training, const Schedule& schedule, std::uint64_t seed)
      : training_{training}, schedule_{schedule}, random_{seed} {}

  CostModel draw() {
    CostModel costs{.stages = {}, .link_ns = {}, .rank_start_ns = {}, .optimizer_ns = {}};
    const auto boundary_count = std::max(1U, schedule_.stage_count() - 1);
    for (std::uint32_t s = 0; s < schedule_.stage_count(); ++s) {
      costs.stages.push_back({below(9), below(9), below(9), below(9)});
    }
    costs.link_ns = list(boundary_count, 4);
    costs.rank_start_ns = list(schedule_.rank_count(), 9);
    costs.optimizer_ns = list(schedule_.rank_count(), 9);
    costs.measuring_ns = list(schedule_.rank_count(), 9);
    costs.network.activation_bytes = list(boundary_count, 9);
    costs.network.gradient_bytes = list(boundary_count, 9);
    costs.network.wire = wire();
    for (std::uint32_t from = 0; from < schedule_.rank_count(); ++from) {
      for (std::uint32_t to = 0; to < schedule_.rank_count(); ++to) {
        if (from == to || !chance(4)) continue;
        costs.network.channels.push_back({RankIndex{from}, RankIndex{to}, wire()});
      }
      if (chance(2)) costs.network.interfaces.push_back(number(3));
    }
    if (costs.network.interfaces.size() < schedule_.rank_count()) costs.network.interfaces.clear();
    costs.network.overlaps_passes = !chance(3);
    draw_replicas(costs);
    draw_runtime(costs);
    if (chance(3)) {
      costs.jitter = {.shape = chance(2) ? Jitter::Shape::normal : Jitter::Shape::lognormal,
                      .pass_spread = 0.1 * number(8),
                      .transfer_spread = 0.1 * number(8),
                      .seed = random_.next()};
    }
    return costs;
  }

private:
  std::int64_t below(std::uint64_t bound) {
    return static_cast<std::int64_t>(random_.below(bound));
  }
  std::uint32_t number(std::uint32_t bound) {
    return static_cast<std::uint32_t>(random_.below(bound));
  }
  /// One time in `n`.
  bool chance(std::uint64_t n) { return random_.below(n) == 0; }

  std::vector<std::int64_t> list(std::uint32_t count, std::uint64_t bound) {
    if (chance(3)) return {0};
    std::vector<std::int64_t> values(chance(2) ? 1 : count);
    for (auto& value : values) value = below(bound);
    return values;
  }

  /// A byte takes a nanosecond, or two, or none.
  Wire wire() {
    if (chance(4)) return {.latency_ns = below(3)};
    return {.latency_ns = below(3), .bytes_per_second = 1e9 / (1 + number(2))};
  }

  void draw_replicas(CostModel& costs) {
    costs.replicas.count = 1 + (chance(2) ? number(3) : 0);
    costs.replicas.bucket_bytes.clear();
    for (std::uint32_t s = 0; s < schedule_.stage_count(); ++s) {
      auto& buckets = costs.replicas.bucket_bytes.emplace_back(number(4));
      for (auto& bytes : buckets) bytes = below(9);
    }
    costs.replicas.wire = wire();
    costs.replicas.overlaps_passes = !chance(3);
    if (chance(2)) return;
    costs.slowdown.assign(schedule_.rank_count() * (chance(2) ? 1 : costs.replicas.count), 1.0);
    costs.slowdown[number(static_cast<std::uint32_t>(costs.slowdown.size()))] = 1.75;
  }

  void draw_runtime(CostModel& costs) {
    costs.runtime.enqueued_max = 1 + number(3);
    if (chance(2)) costs.runtime.dispatch_ns = below(4);
    if (chance(2)) costs.runtime.director_ns = below(9);
    if (chance(2)) return;
    const auto evaluation = make_forward_only(training_);
    for (std::uint32_t s = 0; s < schedule_.stage_count(); ++s) {
      auto& bounds =
          costs.runtime.bounds.emplace_back(bounds_of(training_, evaluation, StageIndex{s}));
      bounds.activations_out -= std::min(bounds.activations_out, 1U) * number(2);
      bounds.gradients_out -= std::min(bounds.gradients_out, 1U) * number(2);
      const auto fix = [](std::uint32_t& buffers, bool is_needed) {
        if (is_needed) buffers = std::max(buffers, 1U);
      };
      fix(bounds.activations_out, !schedule_.is_last(StageIndex{s}));
      fix(bounds.gradients_out, !schedule_.is_first(StageIndex{s}));
    }
  }

  const Schedule& training_;
  const Schedule& schedule_;
  Random random_;
};

void expect_same(const Schedule& schedule, const CostModel& costs) {
  const auto fast = simulate(schedule, costs);
  const auto slow = simulate_machines(schedule, costs);
  EXPECT_EQ(fast.makespan_ns, slow.makespan_ns);
  EXPECT_EQ(fast.reductions, slow.reductions);
  EXPECT_EQ(fast.in_flight_max, slow.in_flight_max);
  ASSERT_EQ(fast.ranks.size(), slow.ranks.size());
  for (std::size_t row = 0; row < fast.ranks.size(); ++row) {
    SCOPED_TRACE(testing::Message() << "row=" << row);
    ASSERT_EQ(fast.ranks[row].size(), slow.ranks[row].size());
    for (std::size_t i = 0; i < fast.ranks[row].size(); ++i) {
      const auto& [action, begin_ns, end_ns] = fast.ranks[row][i];
      ASSERT_EQ(begin_ns, slow.ranks[row][i].begin_ns) << i << ": " << to_string(action);
      ASSERT_EQ(end_ns, slow.ranks[row][i].end_ns) << i << ": " << to_string(action);
    }
    EXPECT_EQ(fast.rank_times[row], slow.rank_times[row]);
    for (std::size_t c = 0; c < idle_cause_count; ++c) {
      EXPECT_EQ(fast.idle_times[row].ns[c], slow.idle_times[row].ns[c])
          << to_string(static_cast<IdleCause>(c));
    }
    EXPECT_EQ(fast.idle_times[row].total_ns(), fast.makespan_ns - fast.rank_times[row].busy_ns());
  }
  EXPECT_TRUE(fast == slow);
}

void expect_same_whatever_things_cost(const Schedule& training, std::uint64_t seed) {
  SCOPED_TRACE(testing::Message() << "seed=" << seed);
  const auto evaluation = make_forward_only(training);
  const auto& schedule = seed % 4 == 3 ? evaluation : training;
  expect_same(schedule, RandomCosts{training, schedule, seed}.draw());
}

TEST(SimulatedMachines, AgreeWithTheWalkForAnySchedule) {
  for (std::uint64_t seed = 0; seed < scope(1000U, 200U); ++seed) {
    expect_same_whatever_things_cost(random_schedule(seed), seed);
    if (HasFailure()) return;
  }
}

TEST(SimulatedMachines, AgreeWithTheWalkForNamedSchedules) {
  std::uint64_t seed = 0;
  for_every_schedule([&](const Schedule& schedule) {
    if (schedule.action_count() > 400 || testing::Test::HasFailure()) return;
    expect_same_whatever_things_cost(schedule, seed++);
  });
  for (const std::uint32_t p : {2U, 3U}) {
    for (std::uint32_t m = 1; m <= 8 && !HasFailure(); ++m) {
      expect_same_whatever_things_cost(make_v_schedule(p, m), seed++);
      expect_same_whatever_things_cost(split_backward(make_v_schedule(p, m)), seed++);
    }
  }
}

TEST(SimulatedMachines, AgreeWithTheWalkWhereReceiversHoldUpTheirSenders) {
  // 1F1B goes on with as many input buffers as a stage has microbatches in flight, and its sends
  // then wait for their receiver.
  for (std::uint64_t seed = 0; seed < scope(300U, 60U) && !HasFailure(); ++seed) {
    Random random{seed};
    const auto schedule = make_1f1b(2 + static_cast<std::uint32_t>(random.below(4)),
                                    1 + static_cast<std::uint32_t>(random.below(12)));
    auto costs = RandomCosts{schedule, schedule, seed}.draw();
    const auto evaluation = make_forward_only(schedule);
    costs.runtime.bounds.clear();
    for (std::uint32_t s = 0; s < schedule.stage_count(); ++s) {
      auto& bounds =
          costs.runtime.bounds.emplace_back(bounds_of(schedule, evaluation, StageIndex{s}));
      bounds.activations_in = std::min(bounds.activations_in, bounds.slots);
    }
    SCOPED_TRACE(testing::Message() << "seed=" << seed);
    expect_same(schedule, costs);
  }
}

}  // namespace
}  // namespace troupe
