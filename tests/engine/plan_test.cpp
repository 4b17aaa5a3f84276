#include "troupe/engine/plan.hpp"

#include <gtest/gtest.h>

#include "troupe/engine/schedule_generators.hpp"
#include "troupe/engine/schedule_text.hpp"

namespace troupe {
namespace {

Config small_config() {
  Config config;
  config.model = {.layers = 4, .heads = 2, .hidden = 16, .sequence = 8, .vocabulary = 256};
  config.parallel.pipeline = 2;
  config.schedule.microbatches = 4;
  config.schedule.microbatch_size = 2;
  return config;
}

TEST(Plan, CountsTheTokensOfAllReplicas) {
  auto config = small_config();
  config.parallel.data = 3;
  const auto plan = make_plan(config);
  ASSERT_TRUE(plan.has_value()) << plan.error().context;
  EXPECT_EQ(plan->sequences_per_step(), 3U * 4U * 2U);
  EXPECT_EQ(plan->tokens_per_step(), 3U * 4U * 2U * 8U);
}

TEST(Plan, ItsFlopsDoNotDependOnTheGrid) {
  auto config = small_config();
  const auto two = make_plan(config)->flops_per_step();
  config.parallel.pipeline = 4;
  EXPECT_DOUBLE_EQ(make_plan(config)->flops_per_step(), two);
}

TEST(Plan, CountsTheShardsOfEachStage) {
  auto config = small_config();
  const auto whole = make_plan(config).value();
  config.parallel.tensor = {2, 1};
  const auto plan = make_plan(config).value();
  EXPECT_EQ(plan.config.parallel.rank_count(), 3U);
  EXPECT_EQ(plan.shard(StageIndex{0}, 1), (Shard{.index = 1, .count = 2}));
  EXPECT_EQ(plan.shard(StageIndex{1}, 0), (Shard{.index = 0, .count = 1}));
  EXPECT_DOUBLE_EQ(plan.flops_per_step(), whole.flops_per_step());
  EXPECT_GT(plan.stages[0].spec.layer_count(), plan.stages[1].spec.layer_count())
      << "two shards take more of the layers";
  config.schedule.layers_per_stage = {whole.stages[0].spec.layer_count(),
                                      whole.stages[1].spec.layer_count()};
  const auto same = make_plan(config).value();
  EXPECT_LT(same.bytes_of(RankIndex{0}), whole.bytes_of(RankIndex{0}));
  EXPECT_EQ(same.stages[1].memory, whole.stages[1].memory);
}

TEST(Plan, RefusesUnequalShardsOfWhatTwoStagesHold) {
  auto config = small_config();
  config.parallel.tensor = {2, 1};
  config.train.optimizer = OptimizerKind::adafactor;
  EXPECT_EQ(make_plan(config).error().context,
            "parallel.tensor: train.optimizer = \"adafactor\" keeps the copies of tied embeddings "
            "equal only on as many shards, and pipeline rank 0 has 2 shards but pipeline rank 1 1; "
            "give both the same");
  config.model.tie_embeddings = false;
  EXPECT_TRUE(make_plan(config).has_value());
  config.parallel = {.data = 1, .tensor = {1, 2, 1, 1}, .pipeline = 4};
  config.schedule.name = "dualpipe";
  config.schedule.microbatches = 8;
  EXPECT_EQ(
      make_plan(config).error().context,
      "parallel.tensor: in the two directions of the schedule dualpipe the same layers lie on "
      "two ranks, and pipeline rank 1 has 2 shards but pipeline rank 2 1; give both the same");
  config.parallel.tensor = {1, 2, 2, 1};
  EXPECT_TRUE(make_plan(config).has_value());
}

TEST(Plan, BoundsFollowTheSchedule) {
  auto config = small_config();
  config.parallel.pipeline = 4;
  const auto plan = make_plan(config);
  // 1F1B holds P - r microbatches on rank r, and what the rank before may send ahead.
  for (std::uint32_t r = 0; r < 4; ++r) {
    const auto& bounds = plan->stages[r].bounds;
    EXPECT_EQ(bounds.slots, 4 - r);
    EXPECT_EQ(bounds.activations_in, r == 0 ? 0U : 4U - (r - 1));
    EXPECT_EQ(bounds.gradients_in, r == 3 ? 0U : 4U - r);
    EXPECT_EQ(bounds.activations_out, r == 3 ? 0U : 2U);
    EXPECT_EQ(bounds.gradients_out, r == 0 ? 0U : 2U);
    EXPECT_FALSE(bounds.splits_backward);
  }
}

TEST(Plan, OffloadsTheSlotsOfStagesThatHaveMoreThanStayOnTheDevice) {
  auto config = small_config();
  config.parallel.pipeline = 4;
  const auto plain = make_plan(config).value();
  config.train.offload = Offload::activations;
  const auto plan = make_plan(config).value();
  for (std::uint32_t r = 0; r < 4; ++r) {
    const RankIndex rank{r};
    const auto slot_bytes =
        graph_of(config.model, plan.stages[r].spec, {.microbatch_size = 2}).slot_bytes;
    // 1F1B has 4 - r in flight.
    const bool offloads = r < 2;
    EXPECT_EQ(plan.stages[r].bounds.slots, 4 - r);
    EXPECT_EQ(plan.stages[r].bounds.offloads, offloads);
    const auto device_bytes = [&](const Plan& of) {
      return of.bytes_of(rank) - of.host_bytes_of(rank);
    };
    EXPECT_EQ(device_bytes(plain) - device_bytes(plan), offloads ? (2 - r) * slot_bytes : 0);
    EXPECT_EQ(plan.host_bytes_of(rank) - plain.host_bytes_of(rank),
              offloads ? (4 - r) * slot_bytes : 0);
    EXPECT_EQ(plan.offloaded_bytes_of(rank), offloads ? 4 * slot_bytes : 0) << "each forward pass";
    EXPECT_EQ(plain.offloaded_bytes_of(rank), 0U);
  }
}

TEST(Plan, CountsWhatTheHalvesOfABackwardPassOffload) {
  auto config = small_config();
  config.schedule.name = "gpipe";
  config.schedule.split_backward = true;
  config.train.offload = Offload::activations;
  const auto plan = make_plan(config).value();
  const auto slot_bytes =
      graph_of(config.model, plan.stages[0].spec, {.microbatch_size = 2, .splits_backward = true})
          .slot_bytes;
  EXPECT_EQ(plan.offloaded_bytes_of(RankIndex{0}), 8 * slot_bytes);
}

TEST(Plan, OffloadsOnlyFromDevicesWithMemoryOfTheirOwn) {
  auto config = small_config();
  EXPECT_TRUE(check_device(make_plan(config).value(), MemorySpace::host));
  config.train.offload = Offload::activations;
  const auto plan = make_plan(config).value();
  EXPECT_TRUE(check_device(plan, MemorySpace::device));
  const auto refused = check_device(plan, MemorySpace::host);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::invalid_config);
  EXPECT_EQ(
      refused.error().context,
      "train.offload: \"activations\" moves them from the device to host memory, but "
      "run.device = \"cpu\" computes in host memory; set \"none\", and where memory is short, "
      "train.recompute");
}

TEST(Plan, SaysWhereTheScheduleAndTheConfigurationDisagree) {
  const auto config = small_config();
  auto ranks = make_plan(config, make_1f1b(3, 4));
  ASSERT_FALSE(ranks.has_value());
  EXPECT_NE(ranks.error().context.find("parallel.pipeline"), std::string::npos);
  auto microbatches = make_plan(config, make_1f1b(2, 5));
  ASSERT_FALSE(microbatches.has_value());
  EXPECT_NE(microbatches.error().context.find("schedule.microbatches"), std::string::npos);
}

TEST(Plan, RefusesToSumGradientsInPassesWhoseOrderDiffers) {
  auto config = small_config();
  config.train.optimizer_sharding = OptimizerSharding::zero2;
  EXPECT_TRUE(make_plan(config).has_value());
  config.schedule.policy = Policy::backward_first;
  EXPECT_EQ(make_plan(config).error().context,
            "train.optimizer_sharding: \"zero2\" sums gradients in the middle of passes, which all "
            "replicas must run in the same order, and schedule.policy lets each choose; \"zero1\" "
            "works");
  config.schedule.policy = Policy::in_order;
  config.schedule.name = "dualpipe";
  EXPECT_EQ(make_plan(config).error().context,
            "train.optimizer_sharding: \"zero2\" sums gradients in the middle of passes, which all "
            "replicas must run in the same order, and the schedule dualpipe runs two copies of the "
            "model; \"zero1\" works");
}

TEST(Plan, RefusesServersForTwoCopiesOfTheModel) {
  auto config = small_config();
  config.parallel.data = 2;
  config.train.synchronization = Synchronization::parameter_server;
  EXPECT_TRUE(make_plan(config).has_value());
  config.schedule.name = "dualpipe";
  EXPECT_EQ(make_plan(config).error().context,
            "train.synchronization: \"parameter_server\" serves replicas, and schedule.name = "
            "\"dualpipe\" runs two copies of the model in each, which sum up their gradients as "
            "replicas do; set \"all_reduce\", or take another schedule");
}

TEST(Plan, AServerKeepsTheOptimizerStateThatItsReplicasDoNot) {
  auto config = small_config();
  config.parallel.data = 3;
  const auto bytes = [](const std::vector<MemoryItem>& items, const std::string& name) {
    const auto found = std::ranges::find(items, name, &MemoryItem::name);
    return found == items.end() ? 0 : found->bytes;
  };
  for (const auto optimizer :
       {OptimizerKind::adamw, OptimizerKind::sgd, OptimizerKind::adafactor}) {
    config.train.optimizer = optimizer;
    config.train.synchronization = Synchronization::all_reduce;
    const auto together = make_plan(config).value();
    config.train.synchronization = Synchronization::parameter_server;
    const auto served = make_plan(config).value();
    EXPECT_EQ(together.rank_count(), 6U);
    EXPECT_EQ(served.rank_count(), 8U);
    for (std::size_t v = 0; v < served.stages.size(); ++v) {
      const auto& replica = served.stages[v].memory;
      const auto& server = served.stages[v].server_memory;
      EXPECT_TRUE(together.stages[v].server_memory.empty());
      for (const auto* use : {"parameters", "gradients"}) {
        EXPECT_EQ(bytes(replica, use), bytes(together.stages[v].memory, use));
        EXPECT_EQ(bytes(server, use), bytes(replica, use));
      }
      EXPECT_EQ(bytes(replica, "optimizer state"), 0U);
      EXPECT_EQ(bytes(server, "optimizer state"),
                bytes(together.stages[v].memory, "optimizer state"));
      for (const auto* use : {"slots", "edge buffers", "tied gradients", "tokens"}) {
        EXPECT_EQ(bytes(replica, use), bytes(together.stages[v].memory, use));
        EXPECT_EQ(bytes(server, use), 0U) << use;
      }
    }
    EXPECT_GT(served.server_bytes_of(RankIndex{0}), 0U);
  }
}

TEST(Plan, StaleReplicasKeepWeightsAndGradientsOfAsManyStepsMore) {
  auto config = small_config();
  config.parallel.data = 2;
  config.train.synchronization = Synchronization::parameter_server;
  const auto served = make_plan(config).value();
  config.train.staleness = 3;
  const auto stale = make_plan(config).value();
  for (std::size_t v = 0; v < served.stages.size(); ++v) {
    EXPECT_EQ(stale.stages[v].server_memory, served.stages[v].server_memory);
    for (std::size_t i = 0; i < served.stages[v].memory.size(); ++i) {
      const auto& [name, bytes, for_host] = served.stages[v].memory[i];
      const bool is_kept = name == "parameters" || name == "gradients";
      EXPECT_EQ(stale.stages[v].memory[i], (MemoryItem{name, (is_kept ? 4 : 1) * bytes, for_host}));
    }
  }
}

TEST(Plan, OptimizerStateOfFourReplicasTakesAQuarterOfTheMemory) {
  auto config = small_config();
  config.parallel.data = 4;
  const auto bytes = [&](OptimizerSharding sharding) {
    config.train.optimizer_sharding = sharding;
    double sum = 0.0;
    const auto plan = make_plan(config).value();
    for (const auto& stage : plan.stages) {
      for (const auto& item : stage.memory) {
        if (item.name == "optimizer state") sum += static_cast<double>(item.bytes);
      }
    }
    return sum;
  };
  const auto whole = bytes(OptimizerSharding::none);
  EXPECT_NEAR(bytes(OptimizerSharding::zero1), whole / 4, 0.05 * whole);
  EXPECT_NEAR(bytes(OptimizerSharding::zero2), whole / 4, 0.05 * whole);
}

TEST(Plan, RefusesAScheduleThatNamesAStageItDoesNotHave) {
  auto config = small_config();
  auto schedule = make_1f1b(2, 4);
  schedule.ranks[1].back().stage = StageIndex{7};
  const auto plan = make_plan(config, std::move(schedule));
  ASSERT_FALSE(plan.has_value());
  EXPECT_EQ(plan.error().code, Errc::invalid_schedule);
}

TEST(Plan, AScheduleBringsItsOwnStages) {
  auto config = small_config();
  config.parallel.pipeline = 1;
  config.schedule.name = "mine.csv";
  config.schedule.microbatches = 1;
  const auto three_stages = [] { return *from_csv("0F0,1F0,2F0,2B0,1B0,0B0\n", "mine.csv"); };
  auto plan = make_plan(config, three_stages());
  ASSERT_TRUE(plan.has_value()) << plan.error().context;
  EXPECT_EQ(plan->stages.size(), 3U);
  config.schedule.layers_per_stage = {2, 1, 1};
  EXPECT_TRUE(make_plan(config, three_stages()).has_value());
  config.schedule.layers_per_stage = {2, 2};
  EXPECT_FALSE(make_plan(config, three_stages()).has_value());
  config.schedule.layers_per_stage.clear();
  config.schedule.chunks = 2;
  EXPECT_FALSE(make_plan(config, three_stages()).has_value());
  config.schedule.chunks = 3;
  config.schedule.split_backward = true;
  plan = make_plan(config, three_stages());
  ASSERT_TRUE(plan.has_value()) << plan.error().context;
  EXPECT_EQ(to_text(plan->training), "rank 0: 0F0 1F0 2F0 2I0 2W0 1I0 1W0 0I0 0W0\n");
}

TEST(Plan, BringsTheWeightPassesOfAFileIntoOrder) {
  auto config = small_config();
  config.parallel.pipeline = 1;
  config.schedule.microbatches = 2;
  auto schedule = from_csv("0F0,0F1,0B1,0B0\n", "reversed.csv");
  ASSERT_TRUE(schedule.has_value());
  const auto plan = make_plan(config, std::move(*schedule));
  ASSERT_TRUE(plan.has_value()) << plan.error().context;
  EXPECT_EQ(to_text(plan->training), "rank 0: 0F0 0F1 0I1 0B0 0W1\n");
}

TEST(Plan, ANamedScheduleBringsAsManyStagesAsItNeeds) {
  auto config = small_config();
  config.schedule.name = "zb-v";
  const auto plan = make_plan(config);
  ASSERT_TRUE(plan.has_value()) << plan.error().context;
  EXPECT_EQ(plan->training, make_zb_v(config.parallel.pipeline, config.schedule.microbatches));
  EXPECT_EQ(plan->stages.size(), 2 * config.parallel.pipeline);
}

TEST(Plan, HalfTheBytesOfGradientsTravelInBf16) {
  auto config = small_config();
  std::uint64_t element_count = 0;
  for (const auto& parameter : parameters_of(config.model)) {
    element_count += parameter.element_count();
  }
  // The tied embedding is on both ends.
  if (config.model.tie_embeddings) element_count += config.model.vocabulary * config.model.hidden;
  const auto bytes_of = [&](WireFormat wire) {
    config.train.gradient_wire = wire;
    const auto plan = make_plan(config).value();
    std::uint64_t sum = 0;
    for (std::uint32_t r = 0; r < plan.training.rank_count(); ++r) {
      sum += plan.gradient_bytes_of(RankIndex{r});
    }
    return sum;
  };
  EXPECT_EQ(bytes_of(WireFormat::fp32), 4 * element_count);
  EXPECT_EQ(bytes_of(WireFormat::bf16), 2 * element_count);
}

TEST(Plan, AsManyStreamsComputeAtOnceAsThereAreRanksAndCores) {
  auto config = small_config();
  config.run.threads_per_stage = 2;
  const auto plan = make_plan(config).value();
  EXPECT_EQ(concurrent_streams(plan, 4, 16), 4U);
  EXPECT_EQ(concurrent_streams(plan, 4, 7), 3U);
  EXPECT_EQ(concurrent_streams(plan, 4, 1), 1U);
}

}  // namespace
}  // namespace troupe
