#include "troupe/engine/profile.hpp"

#include <gtest/gtest.h>

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
