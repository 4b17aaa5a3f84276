#include "troupe/engine/profile.hpp"

#include <cstdint>
#include <cstdlib>
#include <numeric>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/engine/optimizer_sharding.hpp"

namespace troupe {
namespace {

Profile profile_of(const Plan& plan) {
  return {.model = plan.config.model.resolved(),
          .microbatch_size = plan.config.schedule.microbatch_size,
          .threads_per_stage = 1,
          .stream_count = 2,
          .parts = {{.embedding = {10, 20, 10, 10},
                     .layer = {100, 200, 100, 100},
                     .head = {50, 100, 50, 50}}},
          .optimizer_ns_per_element = 0.5,
          .start_ns = 7};
}

Config config_of(std::uint32_t data) {
  Config config;
  config.model = {.layers = 6, .heads = 1, .hidden = 4, .sequence = 4, .vocabulary = 256};
  config.parallel = {.data = data, .tensor = 1, .pipeline = 2};
  config.schedule.microbatches = 4;
  config.schedule.layers_per_stage = {4, 2};
  return config;
}

/// One microbatch: each pass waits for the one before.
Plan serial_plan() {
  auto config = config_of(1);
  config.model.tie_embeddings = false;
  config.schedule.microbatches = 1;
  return make_plan(config).value();
}

TEST(Profile, AddsUpWhatAStageIsMadeOf) {
  const auto plan = make_plan(config_of(1)).value();
  const auto costs = costs_of(plan, profile_of(plan));
  EXPECT_EQ(costs.stages[0].forward_ns, 10 + 4 * 100);
  EXPECT_EQ(costs.stages[1].backward_ns, 100 + 2 * 200);
  EXPECT_EQ(costs.optimizer_ns[1],
            static_cast<std::int64_t>(elements_of(plan, plan.stages[1]) / 2.0));
  EXPECT_EQ(costs.slowdown, std::vector{1.0});
}

TEST(Profile, LetsRanksBeyondTheCoresShareThem) {
  const auto plan = make_plan(config_of(3)).value();
  EXPECT_EQ(costs_of(plan, profile_of(plan)).slowdown, std::vector{3.0});
}

TEST(Profile, PredictsTheStepOfASerialPipelineInClosedForm) {
  const auto plan = serial_plan();
  auto profile = profile_of(plan);
  profile.optimizer_ns_per_element = 0.0;
  EXPECT_EQ(predict(plan, profile).makespan_ns, 7 + (10 + 20 + 6 * 300 + 50 + 100));
}

TEST(Profile, AddsTheDelayThatARunGivesItsLinks) {
  auto config = config_of(1);
  config.schedule.microbatches = 1;
  const auto profile = profile_of(make_plan(config).value());
  const auto makespan_ns = [&] { return predict(make_plan(config).value(), profile).makespan_ns; };
  const auto without = makespan_ns();
  config.run.link_delay_us = 3;
  EXPECT_EQ(makespan_ns(), without + 2 * 3'000);
}

/// Of a run whose exchanges take time.
Profile linked_profile_of(const Plan& plan) {
  auto profile = profile_of(plan);
  profile.reduction = {1'000, 1e9};
  profile.between_processes = ProcessLinks{{2'000, 0.5e9}, {3'000, 0.25e9}};
  return profile;
}

std::vector<std::pair<std::uint32_t, std::uint32_t>> channels_of(const Plan& plan,
                                                                 std::uint32_t process_count) {
  std::vector<std::pair<std::uint32_t, std::uint32_t>> ends;
  for (const auto& channel :
       costs_of(plan, linked_profile_of(plan), process_count).network.channels) {
    EXPECT_EQ(channel.wire, (Wire{2'000, 0.5e9}));
    ends.emplace_back(channel.from.value(), channel.to.value());
  }
  return ends;
}

TEST(Profile, AHopBetweenProcessesTakesWhatItWasMeasuredToTake) {
  const auto plan = serial_plan();
  const auto profile = linked_profile_of(plan);
  ASSERT_EQ(plan.config.schedule.microbatch_size, 4U);
  // 4 x 4 tokens of 4 floats: 256 bytes in 512 ns, there and back.
  EXPECT_EQ(predict(plan, profile, 2).makespan_ns,
            predict(plan, profile).makespan_ns + 2 * (2'000 + 512));
}

TEST(Profile, SoDoesTheGradientOfATiedEmbedding) {
  auto config = config_of(1);
  const auto plan = make_plan(config).value();
  const auto profile = linked_profile_of(plan);
  // 256 words of 4 floats: 4096 bytes in 8192 ns.
  EXPECT_EQ(costs_of(plan, profile).measuring_ns, (std::vector<std::int64_t>{0, 0}));
  EXPECT_EQ(costs_of(plan, profile, 2).measuring_ns,
            (std::vector<std::int64_t>{2'000 + 8'192, 2'000 + 8'192}));
  config.model.tie_embeddings = false;
  EXPECT_EQ(costs_of(make_plan(config).value(), profile, 2).measuring_ns,
            (std::vector<std::int64_t>{0, 0}));
}

TEST(Profile, OnlyWhatLeadsToAnotherProcessTakesThat) {
  using Ends = std::vector<std::pair<std::uint32_t, std::uint32_t>>;
  auto config = config_of(1);
  config.model.layers = 8;
  config.parallel.pipeline = 4;
  config.schedule.layers_per_stage.clear();
  EXPECT_EQ(channels_of(make_plan(config).value(), 1), Ends{});
  EXPECT_EQ(channels_of(make_plan(config).value(), 2), (Ends{{1, 2}, {2, 1}}));
  config.schedule.name = "interleaved-1f1b";
  config.schedule.chunks = 2;
  EXPECT_EQ(channels_of(make_plan(config).value(), 2), (Ends{{0, 3}, {1, 2}, {2, 1}, {3, 0}}));
  // Replicas of a stage are neighbours: process 1 of 3 has one of each stage.
  const auto replicas = make_plan(config_of(3)).value();
  EXPECT_EQ(channels_of(replicas, 2), (Ends{{0, 1}, {1, 0}}));
}

TEST(Profile, AddsTheDelayOfARunBetweenProcessesToo) {
  auto config = config_of(1);
  config.schedule.microbatches = 1;
  const auto profile = linked_profile_of(make_plan(config).value());
  const auto makespan_ns = [&] {
    return predict(make_plan(config).value(), profile, 2).makespan_ns;
  };
  const auto without = makespan_ns();
  config.run.link_delay_us = 3;
  EXPECT_EQ(makespan_ns(), without + 2 * 3'000);
}

std::int64_t bytes_of_sums(const CostModel& costs, std::uint32_t stage) {
  const auto& sizes = costs.replicas.bucket_bytes.at(stage);
  return std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
}

/// Of a stage, with what lies between tensors.
std::int64_t gradient_bytes_of(const Plan& plan, std::uint32_t stage) {
  const auto graph = graph_of(plan.config.model, plan.stages[stage].spec, {});
  std::int64_t bytes = 0;
  for (const auto& bucket : graph.buckets) {
    bytes += static_cast<std::int64_t>(layout_of(graph, bucket).size * sizeof(float));
  }
  return bytes;
}

TEST(Profile, ReplicasSumTheirGradientsBehindTheirPasses) {
  auto config = config_of(2);
  config.schedule.microbatches = 1;
  const auto plan = make_plan(config).value();
  auto profile = linked_profile_of(plan);
  profile.stream_count = 4;
  profile.optimizer_ns_per_element = 0.0;
  const auto costs = costs_of(plan, profile);
  EXPECT_EQ(costs.replicas.count, 2U);
  EXPECT_EQ(costs.replicas.wire, profile.reduction);
  EXPECT_FALSE(costs.replicas.overlaps_passes);
  for (const std::uint32_t stage : {0U, 1U}) {
    EXPECT_EQ(bytes_of_sums(costs, stage), gradient_bytes_of(plan, stage));
  }
  // Rank 0 has the last pass.
  const auto& sizes = costs.replicas.bucket_bytes[0];
  const auto sums_ns = static_cast<std::int64_t>(sizes.size()) * 1'000 + bytes_of_sums(costs, 0);
  EXPECT_EQ(predict(plan, profile).makespan_ns, 7 + (10 + 20 + 6 * 300 + 50 + 100) + sums_ns);
  profile.has_spare_cores = true;
  EXPECT_TRUE(costs_of(plan, profile).replicas.overlaps_passes);
  profile.stream_count = 2;
  EXPECT_FALSE(costs_of(plan, profile).replicas.overlaps_passes) << "ranks share the cores";
  config.parallel.data = 1;
  EXPECT_EQ(costs_of(make_plan(config).value(), profile).replicas.count, 1U);
}

TEST(Profile, SumsBetweenProcessesMoveMoreTheMoreThereAre) {
  const auto bandwidth = [](std::uint32_t data, std::uint32_t process_count, WireFormat wire) {
    auto config = config_of(data);
    config.parallel.pipeline = 1;
    config.schedule.layers_per_stage.clear();
    config.train.gradient_wire = wire;
    const auto plan = make_plan(config).value();
    auto profile = linked_profile_of(plan);
    profile.stream_count = data;
    return costs_of(plan, profile, process_count).replicas.wire.bytes_per_second;
  };
  EXPECT_EQ(bandwidth(4, 1, WireFormat::fp32), 1e9);
  EXPECT_EQ(bandwidth(4, 1, WireFormat::bf16), 1e9);
  EXPECT_EQ(bandwidth(2, 2, WireFormat::fp32), 0.25e9);
  EXPECT_EQ(bandwidth(2, 2, WireFormat::bf16), 0.5e9);
  EXPECT_NEAR(bandwidth(4, 2, WireFormat::fp32), 0.25e9 / 1.5, 1.0);
}

TEST(Profile, ReplicasThatShareCoresSumLessAtATime) {
  const auto plan = make_plan(config_of(4)).value();
  const auto profile = linked_profile_of(plan);
  ASSERT_EQ(profile.stream_count, 2U);
  EXPECT_EQ(costs_of(plan, profile).replicas.wire.bytes_per_second, 1e9 / 4.0);
  EXPECT_EQ(costs_of(plan, profile).replicas.count, 2U) << "the others do the same";
}

/// Halves are rounded.
void expect_about(std::int64_t value, std::int64_t expected) {
  EXPECT_LE(std::abs(value - expected), 2) << value << " instead of " << expected;
}

TEST(Profile, AsManyReplicasAreSimulatedAsComputedAtOnceWithAllTheirShards) {
  auto config = config_of(8);
  config.model.heads = config.model.feed_forward = 2;
  config.parallel.tensor = 2;
  const auto plan = make_plan(config).value();
  auto profile = linked_profile_of(plan);
  profile.parts.front().shard_count = 2;
  for (const auto& [streams, replicas] : {std::pair{2U, 2U}, {12U, 3U}, {13U, 4U}, {64U, 8U}}) {
    profile.stream_count = streams;
    EXPECT_EQ(costs_of(plan, profile).replicas.count, replicas) << streams;
  }
}

TEST(Profile, ShardedOptimizersUpdateAPartAndHandItOut) {
  auto config = config_of(2);
  config.model.tie_embeddings = false;
  const auto plain = make_plan(config).value();
  auto profile = linked_profile_of(plain);
  profile.stream_count = 4;
  profile.measuring_ns_per_element = 0.25;
  const auto whole = costs_of(plain, profile);
  config.train.optimizer_sharding = OptimizerSharding::zero1;
  const auto zero1 = costs_of(make_plan(config).value(), profile);
  EXPECT_EQ(bytes_of_sums(zero1, 0), bytes_of_sums(whole, 0) / 2);
  const auto half_ns = static_cast<std::int64_t>(whole.replicas.bucket_bytes[0].size()) * 1'000
                       + bytes_of_sums(whole, 0) / 2;
  expect_about(zero1.optimizer_ns[0], whole.optimizer_ns[0] / 2 + half_ns);
  expect_about(zero1.measuring_ns[0], whole.measuring_ns[0] / 2);
  EXPECT_EQ(zero1.stages[0], whole.stages[0]);

  config.train.optimizer_sharding = OptimizerSharding::zero2;
  const auto plan = make_plan(config).value();
  const auto zero2 = costs_of(plan, profile);
  EXPECT_EQ(bytes_of_sums(zero2, 0), 0);
  EXPECT_EQ(zero2.optimizer_ns[0], zero1.optimizer_ns[0]);
  expect_about(zero2.stages[0].backward_ns, whole.stages[0].backward_ns + half_ns);
  expect_about(zero2.stages[0].backward_weight_ns, whole.stages[0].backward_weight_ns + half_ns);
  EXPECT_EQ(zero2.stages[0].backward_input_ns, whole.stages[0].backward_input_ns);
  profile.has_spare_cores = true;
  const auto beside = costs_of(plan, profile).stages[0];
  EXPECT_GT(half_ns, whole.stages[0].backward_ns);
  expect_about(beside.backward_ns, half_ns);
  profile.reduction = {};
  EXPECT_EQ(costs_of(plan, profile).stages[0], whole.stages[0]);
  config.model.tie_embeddings = true;
  EXPECT_GT(bytes_of_sums(costs_of(make_plan(config).value(), profile), 0), 0)
      << "a gradient from two ends is whole until both have added theirs";
}

TEST(Profile, OnlyWhatIsAddedTravelsInTheFormatOfTheWire) {
  auto config = config_of(2);
  config.parallel.pipeline = 1;
  config.schedule.layers_per_stage.clear();
  config.train.optimizer_sharding = OptimizerSharding::zero1;
  const auto profile = linked_profile_of(make_plan(config).value());
  const auto fp32 = costs_of(make_plan(config).value(), profile, 2);
  config.train.gradient_wire = WireFormat::bf16;
  const auto bf16 = costs_of(make_plan(config).value(), profile, 2);
  EXPECT_EQ(bf16.replicas.wire.bytes_per_second, 2.0 * fp32.replicas.wire.bytes_per_second);
  EXPECT_EQ(bf16.optimizer_ns, fp32.optimizer_ns);
}

Config config_of_copies(std::uint32_t data) {
  auto config = config_of(data);
  config.model.tie_embeddings = false;
  config.schedule.name = "dualpipe";
  config.schedule.layers_per_stage.clear();
  return config;
}

/// All-reduces over the copies of all that a rank holds.
std::int64_t sums_ns_of(const Plan& plan, const Wire& wire) {
  std::int64_t sums_ns = 0;
  for (const std::uint32_t stage : {0U, 1U}) {  // A rank holds either, once.
    const auto graph = graph_of(plan.config.model, plan.stages[stage].spec, {});
    const auto latencies_ns = static_cast<std::int64_t>(graph.buckets.size()) * wire.latency_ns;
    sums_ns += latencies_ns + gradient_bytes_of(plan, stage);  // A byte takes a nanosecond.
  }
  return sums_ns;
}

TEST(Profile, CopiesOfTheModelSumTheirGradientsBehindTheirPasses) {
  const auto plan = make_plan(config_of_copies(1)).value();
  auto profile = linked_profile_of(plan);
  profile.measuring_ns_per_element = 0.0;
  const auto costs = costs_of(plan, profile);
  EXPECT_EQ(costs.replicas.count, 1U);
  const auto sums_ns = sums_ns_of(plan, profile.reduction);
  EXPECT_EQ(costs.measuring_ns, (std::vector{sums_ns, sums_ns}));
  const auto takes_ns = predict(plan, profile).makespan_ns;
  profile.reduction = {};
  EXPECT_EQ(takes_ns, predict(plan, profile).makespan_ns + sums_ns);
}

TEST(Profile, ReplicasOfCopiesSumOnce) {
  const auto plan = make_plan(config_of_copies(2)).value();
  auto profile = linked_profile_of(plan);
  profile.measuring_ns_per_element = 0.0;
  const auto costs = costs_of(plan, profile);
  EXPECT_EQ(costs.measuring_ns, (std::vector<std::int64_t>{0, 0}));
  EXPECT_EQ(bytes_of_sums(costs, 0), gradient_bytes_of(plan, 0));
}

TEST(Profile, CopiesOfTheModelShareOutTheOptimizer) {
  auto config = config_of_copies(1);
  auto profile = linked_profile_of(make_plan(config).value());
  profile.reduction = {};
  const auto whole = costs_of(make_plan(config).value(), profile).optimizer_ns;
  config.train.optimizer_sharding = OptimizerSharding::zero1;
  const auto halves = costs_of(make_plan(config).value(), profile).optimizer_ns;
  expect_about(halves[0], whole[0] / 2);
}

TEST(Profile, MakesASearchedScheduleForItsCosts) {
  auto config = config_of(1);
  config.schedule.name = "auto";
  const auto uneven = profile_of(make_plan(config).value());
  const auto made_for_it = make_plan(config, uneven).value();
  EXPECT_LE(predict(made_for_it, uneven).makespan_ns,
            predict(make_plan(config).value(), uneven).makespan_ns);
  config.schedule.name = "1f1b";
  EXPECT_EQ(make_plan(config, uneven)->training, make_plan(config)->training);
  EXPECT_LT(predict(made_for_it, uneven).makespan_ns,
            predict(*make_plan(config, uneven), uneven).makespan_ns);
}

TEST(Profile, StepsOfAnEvenMachineAreAsPredicted) {
  const auto plan = make_plan(config_of(2)).value();
  const auto profile = profile_of(plan);
  const auto makespan_ns = predict(plan, profile).makespan_ns;
  const auto steps = simulate_uneven(plan.training, costs_of(plan, profile), {});
  EXPECT_EQ(steps.mean_ns, static_cast<double>(makespan_ns));
  EXPECT_EQ(steps.tenth_ns, makespan_ns);
  EXPECT_EQ(steps.ninetieth_ns, makespan_ns);
}

TEST(Profile, EachMeasuredStepSlowsEachRankAsItDid) {
  const auto plan = serial_plan();
  auto profile = profile_of(plan);
  profile.optimizer_ns_per_element = 0.0;
  constexpr std::int64_t first_ns = 10 + 20 + 4 * 300;
  constexpr std::int64_t last_ns = 50 + 100 + 2 * 300;
  const auto steps_of = [&](std::vector<std::vector<double>> slowdowns) {
    return simulate_uneven(plan.training, costs_of(plan, profile), {std::move(slowdowns), 0.0});
  };
  const auto two = steps_of({{2.0, 1.0}, {0.5, 3.0}});
  EXPECT_EQ(two.mean_ns, 7 + (2.5 * first_ns + 4.0 * last_ns) / 2.0);
  EXPECT_EQ(two.tenth_ns, 7 + first_ns / 2 + 3 * last_ns);
  EXPECT_EQ(two.ninetieth_ns, 7 + 2 * first_ns + last_ns);
  // A core that computed alone is that of every rank.
  EXPECT_EQ(steps_of({{3.0}}).mean_ns, 7 + 3 * (first_ns + last_ns));
  std::vector<std::vector<double>> many;
  for (int i = 1; i <= 20; ++i) many.push_back({static_cast<double>(i)});
  EXPECT_EQ(steps_of(many).tenth_ns, 7 + 3 * (first_ns + last_ns));
  EXPECT_EQ(steps_of(many).ninetieth_ns, 7 + 18 * (first_ns + last_ns));
}

TEST(Profile, RanksWaitForUnevenPasses) {
  auto config = config_of(1);
  config.model.layers = 8;
  config.schedule.layers_per_stage = {4, 4};
  config.schedule.microbatches = 64;
  const auto plan = make_plan(config).value();
  const auto profile = profile_of(plan);
  const std::vector<std::vector<double>> even(20, {1.0});
  const auto mean_ns = [&](double spread) {
    return simulate_uneven(plan.training, costs_of(plan, profile), {even, spread}).mean_ns;
  };
  EXPECT_GT(mean_ns(0.2), 1.03 * mean_ns(0.0));
  EXPECT_GT(mean_ns(0.4), 1.03 * mean_ns(0.2));
  const auto steps = simulate_uneven(plan.training, costs_of(plan, profile), {even, 0.2});
  EXPECT_LT(steps.tenth_ns, steps.ninetieth_ns) << "each has jitter of its own";
}

TEST(Profile, EveryReplicaIsAsUnevenAsTheActorsThatWereMeasured) {
  const auto plan = make_plan(config_of(1)).value();
  auto costs = costs_of(plan, profile_of(plan));
  const Unevenness unevenness{{{1.0, 1.0, 1.0, 5.0}}, 0.0};
  const auto one = simulate_uneven(plan.training, costs, unevenness);
  costs.replicas.count = 2;
  EXPECT_GT(simulate_uneven(plan.training, costs, unevenness).mean_ns, one.mean_ns);
}

TEST(Profile, LeavesEveryOtherScheduleItsOwnStages) {
  auto config = config_of(1);
  const auto profile = profile_of(make_plan(config).value());
  config.schedule.name = "zb-v";
  config.schedule.layers_per_stage.clear();
  EXPECT_EQ(make_plan(config, profile).value().training, make_plan(config).value().training);
}

TEST(Profile, SaysWhenAStepWouldTakeYears) {
  const auto plan = make_plan(config_of(1)).value();
  auto profile = profile_of(plan);
  profile.parts[0].layer.forward_ns = std::int64_t{1} << 60U;
  EXPECT_EQ(check_fits(profile, plan).error().context,
            "by the profile a step may take years; measure one with `troupe profile`");
  profile.parts[0].layer.forward_ns = std::int64_t{1} << 50U;
  EXPECT_TRUE(check_fits(profile, plan).has_value());
  profile.unevenness.slowdowns = {{1.0}, {1.0, 100.0}};
  EXPECT_FALSE(check_fits(profile, plan).has_value());
  profile.unevenness = {{{1.0}}, Unevenness::pass_spread_max};
  EXPECT_FALSE(check_fits(profile, plan).has_value());
  profile.unevenness.pass_spread = 0.1;
  EXPECT_TRUE(check_fits(profile, plan).has_value()) << "as uneven as machines are";
}

TEST(Profile, SaysWhenLinksWouldTakeYears) {
  const auto plan = make_plan(config_of(2)).value();
  auto profile = linked_profile_of(plan);
  profile.stream_count = 4;
  const auto fits = [&] { return check_fits(profile, plan, 4).has_value(); };
  EXPECT_TRUE(fits());
  profile.reduction.bytes_per_second = 1e-7;
  EXPECT_TRUE(fits()) << "nothing is summed within a process";
  profile.between_processes->reduction.bytes_per_second = 1e-7;
  EXPECT_FALSE(fits());
  profile.between_processes->reduction = {std::int64_t{1} << 57U, 1e9};
  EXPECT_FALSE(fits());
  profile.between_processes->reduction = {};
  EXPECT_TRUE(fits());
  profile.between_processes->link = {std::int64_t{1} << 57U, 1e9};
  EXPECT_FALSE(fits());
  profile.between_processes->link = {0, 1e-7};
  EXPECT_FALSE(fits());
}

TEST(Profile, SaysWhenSumsOfNanosecondsWouldEnd) {
  auto config = config_of(256);
  config.parallel.pipeline = 1;
  config.schedule.layers_per_stage.clear();
  const auto plan = make_plan(config).value();
  auto profile = profile_of(plan);
  profile.parts[0].layer = {0, std::int64_t{1} << 51U, 0, 0};
  profile.stream_count = 2;
  EXPECT_FALSE(check_fits(profile, plan).has_value()) << "128 at a time on each core";
  config.parallel.data = 2;
  const auto two = make_plan(config).value();
  EXPECT_TRUE(check_fits(profile, two).has_value());
  config.parallel.data = 256;
  profile.stream_count = 256;
  EXPECT_FALSE(check_fits(profile, plan).has_value()) << "256 ranks idle for years together";
}

TEST(Profile, RefusesProcessesThatCannotBe) {
  const auto plan = make_plan(config_of(1)).value();
  const auto profile = profile_of(plan);
  EXPECT_EQ(check_fits(profile, plan, 3).error().context,
            "found 3 processes, expected 1 to 2, as many as the grid has actors");
  EXPECT_FALSE(check_fits(linked_profile_of(plan), plan, 0).has_value());
  EXPECT_EQ(check_fits(profile, plan, 2).error().context,
            "the profile knows no links between processes: they could not be measured; see "
            "`troupe doctor`, then measure another with `troupe profile`");
  EXPECT_TRUE(check_fits(linked_profile_of(plan), plan, 2).has_value());
}

TEST(Profile, RefusesAPlanOfOtherParts) {
  const auto plan = make_plan(config_of(1)).value();
  auto profile = profile_of(plan);
  EXPECT_TRUE(check_fits(profile, plan).has_value());
  profile.model.hidden = 8;
  EXPECT_EQ(check_fits(profile, plan).error().context,
            "the profile was measured with model.hidden = 8, the configuration has 4; measure one "
            "for it with `troupe profile`");
  profile = profile_of(plan);
  profile.model.family = Family::llama;
  EXPECT_EQ(check_fits(profile, plan).error().context,
            "the profile was measured with model.family = llama, the configuration has gpt2; "
            "measure one for it with `troupe profile`");
}

TEST(Profile, IsOfOnePrecision) {
  auto config = config_of(1);
  const auto profile = profile_of(make_plan(config).value());
  config.train.precision = Precision::bf16;
  EXPECT_EQ(check_fits(profile, make_plan(config).value()).error().context,
            "the profile was measured with train.precision = fp32, the configuration has bf16; "
            "measure one for it with `troupe profile`");
}

TEST(Profile, KnowsWhatStagesTakeByTheirNumberOfShards) {
  auto config = config_of(1);
  config.model.heads = config.model.feed_forward = 2;
  config.parallel.tensor = {2, 1};
  const auto plan = make_plan(config).value();
  auto profile = profile_of(plan);
  EXPECT_EQ(check_fits(profile, plan).error().context,
            "the profile was measured with parallel.tensor = 1, the configuration has 2; measure "
            "one for it with `troupe profile`");
  profile.parts.push_back(
      {.shard_count = 2, .embedding = {6, 12, 6, 6}, .layer = {60, 120, 60, 60}});
  ASSERT_TRUE(check_fits(profile, plan).has_value());
  const auto costs = costs_of(plan, profile);
  EXPECT_EQ(costs.stages[0].forward_ns, 6 + 4 * 60);
  EXPECT_EQ(costs.stages[1].forward_ns, 50 + 2 * 100);
  EXPECT_EQ(costs.slowdown, std::vector{1.5}) << "three actors on two cores";
}

TEST(Profile, IsOfShardsThatDivideRowsOrOfShardsThatDoNot) {
  auto config = config_of(1);
  config.model.heads = config.model.feed_forward = 2;
  config.parallel.tensor = {2, 1};
  auto profile = profile_of(make_plan(config).value());
  profile.parts.push_back({.shard_count = 2});
  config.train.sequence_parallel = true;
  const auto plan = make_plan(config).value();
  EXPECT_EQ(check_fits(profile, plan).error().context,
            "the profile was measured with train.sequence_parallel = false, the configuration has "
            "true; measure one for it with `troupe profile`");
  profile.sequence_parallel = true;
  EXPECT_TRUE(check_fits(profile, plan).has_value());
  // A stage that is no shard has nobody to divide rows with.
  config.parallel.tensor = 1;
  config.train.sequence_parallel = false;
  EXPECT_TRUE(check_fits(profile, make_plan(config).value()).has_value());
}

TEST(Profile, IsOfAModelThatDropsOrOneThatDoesNot) {
  auto config = config_of(1);
  const auto plain = profile_of(make_plan(config).value());
  config.model.attention_dropout = 0.1;
  const auto plan = make_plan(config).value();
  EXPECT_EQ(check_fits(plain, plan).error().context,
            "the profile was measured with model.attention_dropout = 0.0, the configuration has "
            "0.1; measure one for it with `troupe profile`");
  auto dropping = profile_of(plan);
  dropping.model.attention_dropout = 0.5;
  EXPECT_TRUE(check_fits(dropping, plan).has_value());
}

TEST(Profile, KnowsWhatALayerTakesThatRecomputes) {
  auto config = config_of(1);
  const auto plain = make_plan(config).value();
  auto profile = profile_of(plain);
  config.train.recompute = Recompute::full;
  config.train.recompute_stages = {0};
  const auto plan = make_plan(config).value();
  EXPECT_EQ(check_fits(profile, plan).error().context,
            "the profile was measured with train.recompute = none, the configuration has full; "
            "measure one for it with `troupe profile`");
  profile.recompute = Recompute::full;
  profile.parts[0].recomputing_layer = profile.parts[0].layer;
  profile.parts[0].recomputing_layer.backward_ns += 7;
  ASSERT_TRUE(check_fits(profile, plan).has_value());
  const auto of_plain = costs_of(plain, profile).stages;
  const auto of_plan = costs_of(plan, profile).stages;
  EXPECT_EQ(of_plan[0].backward_ns,
            of_plain[0].backward_ns + 7 * plan.stages[0].spec.layer_count());
  EXPECT_EQ(of_plan[1], of_plain[1]);
}

}  // namespace
}  // namespace troupe
