// The promise that makes all others checkable: on the CPU, what a run computes does not depend on
// the pipeline's width nor on its schedule, bit for bit, and hardly on the number of replicas. Real
// actors, real threads, real kernels.

#include "troupe/actors/trainer.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/engine/random.hpp"
#include "troupe/engine/schedule_generators.hpp"
#include "troupe/stages/counting_stage.hpp"

#include "../engine/v_schedule.hpp"
#include "device_apart.hpp"
#include "stage_in_disguise.hpp"
#include "tiny_training.hpp"

namespace troupe::actors {
namespace {

/// With as many chunks as it needs.
void set_schedule(Config& config, const char* name) {
  config.schedule.name = name;
  config.schedule.chunks = config.schedule.name == "interleaved-1f1b" ? 2 : 1;
}

const Outcome& serial(bool tied) {
  static std::map<bool, Outcome> outcomes;
  if (!outcomes.contains(tied)) outcomes[tied] = train(tiny_config(tied));
  return outcomes[tied];
}

TEST(SameBits, TheSerialRunLearns) {
  for (const bool tied : {false, true}) {
    auto config = tiny_config(tied);
    config.train.steps = 20;
    const auto losses = train(config).losses;
    EXPECT_NEAR(losses.front(), std::log(256.0), 0.05) << "a uniform guess at first";
    EXPECT_LT(losses.back(), losses.front() - 0.1);
  }
}

class SameBitsOfPipelines
    : public testing::TestWithParam<std::tuple<std::uint32_t, std::string, bool>> {};

TEST_P(SameBitsOfPipelines, LossesNormsAndWeightsEqualTheSerialRuns) {
  const auto& [ranks, schedule, split] = GetParam();
  for (const bool tied : {false, true}) {
    SCOPED_TRACE(tied ? "tied" : "untied");
    auto config = tiny_config(tied);
    config.parallel.pipeline = ranks;
    config.schedule.name = schedule;
    config.schedule.chunks = schedule == "interleaved-1f1b" ? 2 : 1;
    config.schedule.split_backward = split;
    const auto outcome = train(config);
    EXPECT_EQ(outcome.losses, serial(tied).losses);
    EXPECT_EQ(outcome.norms, serial(tied).norms);
    EXPECT_EQ(outcome.weights.size(), serial(tied).weights.size());
    for (const auto& [name, values] : serial(tied).weights) {
      EXPECT_TRUE(outcome.weights.at(name) == values) << name << " differs";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Grid, SameBitsOfPipelines,
                         testing::Combine(testing::Values(1U, 2U, 3U, 6U),
                                          testing::Values("gpipe", "1f1b", "interleaved-1f1b"),
                                          testing::Bool()),
                         [](const auto& parameter) {
                           auto name = std::get<1>(parameter.param) + "_"
                                       + std::to_string(std::get<0>(parameter.param))
                                       + (std::get<2>(parameter.param) ? "_split" : "_whole");
                           std::erase(name, '-');
                           return name;
                         });

TEST(SameBits, APolicyEqualsTheSerialRun) {
  for (const auto policy : {Policy::backward_first, Policy::forward_first}) {
    for (const auto* schedule : {"1f1b", "gpipe", "interleaved-1f1b"}) {
      for (const bool split : {false, true}) {
        SCOPED_TRACE(testing::Message() << policy_names[static_cast<std::size_t>(policy)] << " "
                                        << schedule << " split=" << split);
        auto config = tiny_config(true);
        config.parallel.pipeline = 3;
        set_schedule(config, schedule);
        config.schedule.split_backward = split;
        config.schedule.policy = policy;
        EXPECT_TRUE(train(config) == serial(true));
      }
    }
  }
}

TEST(Trainer, DelaysWhatRanksSendToEachOtherAndNothingElse) {
  constexpr std::int64_t delay_ns = 5'000'000;
  auto config = tiny_config(true);
  config.parallel.pipeline = 2;
  config.schedule.name = "interleaved-1f1b";
  config.schedule.chunks = 2;
  config.schedule.microbatches = 2;
  const auto prompt = train(config);
  config.run.link_delay_us = delay_ns / 1000;
  EXPECT_TRUE(train(config) == prompt);

  // Forwards and backwards a microbatch changes ranks three times each.
  auto trainer = Trainer::make(*make_plan(config), source_of(config));
  const auto report = (*trainer)->train_step();
  ASSERT_TRUE(report.has_value()) << report.error().context;
  EXPECT_GE(report->end_ns - report->begin_ns, 6 * delay_ns);
}

TEST(Trainer, RunsWhatItsPolicyPrefers) {
  auto config = tiny_config(false);
  config.parallel.pipeline = 2;
  config.schedule.name = "gpipe";
  config.schedule.policy = Policy::backward_first;
  auto trainer = Trainer::make(*make_plan(config), source_of(config));
  const auto report = (*trainer)->train_step();
  ASSERT_TRUE(report.has_value()) << report.error().context;
  // The last stage has its gradient as soon as it has been forward, and does not wait.
  const auto& trace = report->ranks[1].trace;
  for (std::uint32_t m = 0; m < config.schedule.microbatches; ++m) {
    const StageIndex last{1};
    EXPECT_EQ(trace[std::size_t{2} * m].action, (Action{last, Pass::forward, MicrobatchIndex{m}}));
    EXPECT_EQ(trace[std::size_t{2} * m + 1].action,
              (Action{last, Pass::backward, MicrobatchIndex{m}}));
  }
}

TEST(SameBits, AVShapedPipelineEqualsTheSerialRun) {
  for (const bool tied : {false, true}) {
    SCOPED_TRACE(tied ? "tied" : "untied");
    auto config = tiny_config(tied);
    config.parallel.pipeline = 3;
    const auto whole = make_v_schedule(3, config.schedule.microbatches);
    EXPECT_TRUE(train(make_plan(config, whole)) == serial(tied));
    EXPECT_TRUE(train(make_plan(config, split_backward(whole))) == serial(tied));
  }
}

double relative_distance(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0.0;
  double norm = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2);
    norm += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / norm);
}

/// A bias on the keys adds the same to every score of a query: its gradient is zero but for
/// rounding, which AdamW blows up to full steps. It changes nothing, and nothing can be asked of
/// it.
std::vector<float> without_key_bias(const std::string& name, std::vector<float> values) {
  if (name.ends_with("attn.c_attn.bias")) {
    const auto third = static_cast<std::ptrdiff_t>(values.size() / 3);
    values.erase(values.begin() + third, values.begin() + 2 * third);
  }
  return values;
}

struct ReplicatedCase {
  std::uint32_t replicas;
  std::uint32_t ranks;
  const char* schedule = "1f1b";
  std::uint32_t chunks = 1;
  bool split = false;
};

TEST(SameBits, ReplicasStayCloseToTheSerialRunAndRepeatThemselves) {
  const std::vector<ReplicatedCase> cases{
      {2, 1}, {2, 2}, {4, 1}, {4, 2}, {2, 2, "interleaved-1f1b", 2}, {2, 3, "1f1b", 1, true}};
  for (const auto& [replicas, ranks, schedule, chunks, split] : cases) {
    SCOPED_TRACE(testing::Message() << "replicas=" << replicas << " ranks=" << ranks << " "
                                    << schedule << " split=" << split);
    auto config = tiny_config(true);
    config.parallel = {.data = replicas, .tensor = 1, .pipeline = ranks};
    config.schedule.name = schedule;
    config.schedule.chunks = chunks;
    config.schedule.split_backward = split;
    config.schedule.microbatches = samples_per_step / config.schedule.microbatch_size / replicas;
    const auto outcome = train(config);
    for (std::size_t step = 0; step < step_count; ++step) {
      EXPECT_NEAR(outcome.losses[step] / serial(true).losses[step], 1.0, 1e-5) << "step " << step;
    }
    for (const auto& [name, values] : serial(true).weights) {
      const auto expected = without_key_bias(name, values);
      const auto found = without_key_bias(name, outcome.weights.at(name));
      EXPECT_LT(relative_distance(found, expected), 1e-5) << name;
    }
    EXPECT_EQ(train(config), outcome) << "the same bits on every run";
  }
}

/// The head of a BERT tells words, or classes.
class SameBitsOfBerts : public testing::TestWithParam<Task> {
protected:
  static Config config_of(Task task) {
    const bool is_masked = task == Task::masked;
    auto config = tiny_config(is_masked);
    config.model.family = Family::bert;
    config.model.task = task;
    config.model.classes = is_masked ? 0 : 3;
    return config;
  }
};

INSTANTIATE_TEST_SUITE_P(Tasks, SameBitsOfBerts,
                         testing::Values(Task::masked, Task::classification), [](const auto& test) {
                           return std::string{task_names[static_cast<std::size_t>(test.param)]};
                         });

TEST_P(SameBitsOfBerts, TheSerialRunLearns) {
  auto config = config_of(GetParam());
  config.train.steps = 20;
  const auto losses = train(config).losses;
  EXPECT_LT(losses.back(), losses.front());
}

TEST_P(SameBitsOfBerts, PipelinesAndRecomputationEqualTheSerialRun) {
  const auto serial_run = train(config_of(GetParam()));
  for (const std::uint32_t ranks : {2U, 3U}) {
    for (const auto* schedule : {"1f1b", "interleaved-1f1b", "zb-h1"}) {
      for (const auto recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
        SCOPED_TRACE(testing::Message() << ranks << " ranks, " << schedule << ", recompute "
                                        << static_cast<int>(recompute));
        auto config = config_of(GetParam());
        config.parallel.pipeline = ranks;
        set_schedule(config, schedule);
        config.train.recompute = recompute;
        EXPECT_TRUE(train(config) == serial_run);
      }
    }
  }
}

/// The loss is a mean over the targets of all replicas.
TEST_P(SameBitsOfBerts, ReplicasStayCloseToTheSerialRun) {
  auto config = config_of(GetParam());
  config.train.optimizer = OptimizerKind::sgd;
  const auto expected = train(config);
  config.parallel = {.data = 2, .tensor = 1, .pipeline = 2};
  config.schedule.microbatches /= 2;
  const auto outcome = train(config);
  for (std::size_t step = 0; step < step_count; ++step) {
    EXPECT_NEAR(outcome.losses[step], expected.losses[step], 1e-5 * expected.losses[step]);
    EXPECT_NEAR(outcome.norms[step], expected.norms[step], 1e-4 * expected.norms[step]);
  }
}

/// What shards change is the order of additions within the products that they share out.
TEST(SameBits, ShardsStayCloseToTheSerialRunAndEqualThemselvesInAnyPipeline) {
  for (const auto& [family, tied] : {std::pair{Family::gpt2, true}, std::pair{Family::llama, false},
                                     std::pair{Family::bert, true}}) {
    SCOPED_TRACE(testing::Message()
                 << family_names[static_cast<std::size_t>(family)] << " tied=" << tied);
    auto config = tiny_config(tied);
    config.model.family = family;
    config.model.vocabulary = 257;
    // AdamW makes steps of words that are hardly ever seen, and so of mere rounding.
    config.train.optimizer = OptimizerKind::sgd;
    config.train.learning_rate = 0.05;
    const auto expected = train(config);
    for (const std::uint32_t data : {1U, 2U}) {
      std::optional<Outcome> first;
      for (const std::uint32_t pipeline : {1U, 2U, 3U}) {
        if (data == 2 && pipeline == 3) continue;
        auto sharded = config;
        sharded.parallel = {.data = data, .tensor = 2, .pipeline = pipeline};
        sharded.schedule.microbatches /= data;
        sharded.schedule.split_backward = pipeline == 2;
        const auto outcome = train(sharded);
        ASSERT_EQ(outcome.losses.size(), expected.losses.size());
        for (std::size_t i = 0; i < expected.losses.size(); ++i) {
          EXPECT_NEAR(outcome.losses[i], expected.losses[i], 1e-5 * expected.losses[i]);
          EXPECT_NEAR(outcome.norms[i], expected.norms[i], 1e-5 * expected.norms[i]);
        }
        if (!first) first = outcome;
        EXPECT_TRUE(outcome == *first) << "pipeline " << pipeline << ", data " << data;
      }
    }
  }
}

/// Each shard by itself would choose by what has come to it.
TEST(SameBits, ShardsFollowThePolicyOfTheirLeader) {
  auto config = tiny_config(true);
  config.parallel.tensor = 2;
  const auto in_order = train(config);
  config.parallel = {.data = 1, .tensor = 2, .pipeline = 3};
  for (const auto policy : {Policy::backward_first, Policy::forward_first}) {
    for (const auto* schedule : {"1f1b", "interleaved-1f1b"}) {
      for (const bool split : {false, true}) {
        SCOPED_TRACE(testing::Message() << policy_names[static_cast<std::size_t>(policy)] << " "
                                        << schedule << " split=" << split);
        config.schedule.policy = policy;
        set_schedule(config, schedule);
        config.schedule.split_backward = split;
        EXPECT_TRUE(train(config) == in_order);
      }
    }
  }
}

/// Who updates what leaves no trace; the norm alone is added up in another order.
TEST(SameBits, ShardedOptimizerStateEqualsWholeState) {
  for (const auto family : {Family::gpt2, Family::llama, Family::bert}) {
    for (const auto& [parallel, schedule] :
         {std::pair{GridExtent{.data = 2, .tensor = 1, .pipeline = 1}, "1f1b"},
          std::pair{GridExtent{.data = 3, .tensor = 1, .pipeline = 2}, "zb-h1"},
          std::pair{GridExtent{.data = 2, .tensor = 2, .pipeline = 2}, "1f1b"},
          std::pair{GridExtent{.data = 1, .tensor = 1, .pipeline = 2}, "dualpipe"}}) {
      SCOPED_TRACE(testing::Message()
                   << family_names[static_cast<std::size_t>(family)] << " data " << parallel.data
                   << " tensor " << to_string(parallel.tensor) << " " << schedule);
      auto config = tiny_config(true);
      config.model.family = family;
      config.train.clip_norm = 0.0;
      config.parallel = parallel;
      config.schedule.name = schedule;
      config.schedule.microbatches /= parallel.data;
      const auto whole = train(config);
      config.train.optimizer_sharding = OptimizerSharding::zero1;
      const auto sharded = train(config);
      EXPECT_EQ(sharded.losses, whole.losses);
      EXPECT_EQ(sharded.weights, whole.weights);
      for (std::size_t i = 0; i < whole.norms.size(); ++i) {
        EXPECT_NEAR(sharded.norms[i], whole.norms[i], 1e-7 * whole.norms[i]);
      }
    }
  }
}

/// Whoever adds up gradients, in the order of the replicas, and updates: all optimizers, what
/// rounds and what skips steps, policies, shards of unequal numbers, tied weights.
TEST(SameBits, AParameterServerEqualsAnAllReduce) {
  std::vector<Config> configs;
  const auto add = [&](bool tied, const GridExtent& grid, auto change) {
    auto config = tiny_config(tied);
    config.parallel = grid;
    config.schedule.microbatches /= grid.data;
    change(config);
    configs.push_back(std::move(config));
  };
  add(true, {2, 1, 1}, [](Config&) {});
  add(true, {3, 1, 2}, [](Config& c) { c.schedule.name = "zb-h1"; });
  add(false, {2, 2, 2}, [](Config& c) {
    c.train.optimizer = OptimizerKind::adafactor;
    c.train.sequence_parallel = true;
  });
  add(true, {2, {1, 2}, 2}, [](Config& c) {
    c.schedule.policy = Policy::backward_first;
    c.train.optimizer = OptimizerKind::sgd;
  });
  add(false, {2, 1, 2}, [](Config& c) {
    c.model.family = Family::llama;
    c.schedule.name = "interleaved-1f1b";
    c.schedule.chunks = 2;
    c.train.gradient_wire = WireFormat::bf16;
  });
  add(true, {2, 1, 2}, [](Config& c) {
    c.train.precision = Precision::fp16;
    c.train.loss_scale = overflowing_scale;
  });
  for (auto& config : configs) {
    SCOPED_TRACE(to_toml(config));
    const auto expected = train(config);
    config.train.synchronization = Synchronization::parameter_server;
    EXPECT_TRUE(train(config) == expected);
  }
}

/// Gradients kept in parts are added up replica by replica before they are over microbatches.
TEST(SameBits, ShardedGradientsStayCloseToWholeOnesAndRepeatThemselves) {
  struct Case {
    bool tied;
    GridExtent parallel;
    const char* schedule;
  };
  for (const auto& [tied, parallel, schedule] :
       {Case{true, {.data = 2, .tensor = 1, .pipeline = 1}, "1f1b"},
        Case{true, {.data = 2, .tensor = 2, .pipeline = 2}, "1f1b"},
        Case{false, {.data = 3, .tensor = 1, .pipeline = 2}, "zb-h1"}}) {
    SCOPED_TRACE(testing::Message() << "tied=" << tied << " data " << parallel.data << " tensor "
                                    << to_string(parallel.tensor) << " " << schedule);
    auto config = tiny_config(tied);
    config.model.family = tied ? Family::gpt2 : Family::llama;
    config.train.optimizer = OptimizerKind::sgd;
    config.train.learning_rate = 0.05;
    config.parallel = parallel;
    config.schedule.name = schedule;
    config.schedule.microbatches /= parallel.data;
    const auto whole = train(config);
    config.train.optimizer_sharding = OptimizerSharding::zero2;
    const auto sharded = train(config);
    for (std::size_t i = 0; i < whole.losses.size(); ++i) {
      EXPECT_NEAR(sharded.losses[i], whole.losses[i], 1e-5 * whole.losses[i]);
      EXPECT_NEAR(sharded.norms[i], whole.norms[i], 1e-5 * whole.norms[i]);
    }
    EXPECT_TRUE(train(config) == sharded);
  }
}

TEST(SameBits, AHolderMayHaveNoPartOfASmallBucket) {
  auto config = tiny_config(false);
  config.model = {.layers = 1,
                  .heads = 1,
                  .hidden = 1,
                  .sequence = 4,
                  .vocabulary = 256,
                  .tie_embeddings = false,
                  .feed_forward = 1};
  config.parallel.data = 16;
  config.schedule.microbatches = 2;
  config.schedule.microbatch_size = 1;
  const auto whole = train(config);
  for (const auto sharding : {OptimizerSharding::zero1, OptimizerSharding::zero2}) {
    config.train.optimizer_sharding = sharding;
    const auto sharded = train(config);
    for (std::size_t i = 0; i < whole.losses.size(); ++i) {
      EXPECT_NEAR(sharded.losses[i], whole.losses[i], 1e-4 * whole.losses[i]);
    }
  }
}

class RoundedTo : public testing::TestWithParam<Precision> {};

/// Of the loss in fp32, at every step: what docs/adr/0024-precision.md promises.
constexpr double bound = 0.01;

TEST_P(RoundedTo, StaysCloseToFp32AndEqualsItselfInAnyPipeline) {
  for (const auto family : {Family::gpt2, Family::llama}) {
    auto config = tiny_config(false);
    config.model.family = family;
    const auto exact = train(config);
    config.train.precision = GetParam();
    const auto rounded = train(config);
    EXPECT_NE(rounded.losses, exact.losses);
    for (std::size_t i = 0; i < exact.losses.size(); ++i) {
      EXPECT_NEAR(rounded.losses[i], exact.losses[i], bound * exact.losses[i]) << "step " << i;
    }
    EXPECT_TRUE(train(config) == rounded);
    config.parallel.pipeline = 3;
    EXPECT_TRUE(train(config) == rounded);
    config.schedule.name = "zb-h1";
    EXPECT_TRUE(train(config) == rounded);
  }
}

INSTANTIATE_TEST_SUITE_P(SameBits, RoundedTo, testing::Values(Precision::bf16, Precision::fp16),
                         [](const auto& test) {
                           return std::string{
                               precision_names[static_cast<std::size_t>(test.param)]};
                         });

TEST(GradientWire, OfBf16StaysCloseToFp32WithEqualBitsOnEveryHolder) {
  auto config = tiny_config(true);
  config.parallel = {.data = 3, .tensor = 1, .pipeline = 2};
  config.schedule.microbatches /= 3;
  const auto exact = train(config);
  config.train.gradient_wire = WireFormat::bf16;
  const auto rounded = train(config);
  EXPECT_NE(rounded.losses, exact.losses);
  for (std::size_t i = 0; i < exact.losses.size(); ++i) {
    EXPECT_NEAR(rounded.losses[i], exact.losses[i], 0.01 * exact.losses[i]) << "step " << i;
  }
  config.schedule.name = "zb-h1";
  EXPECT_TRUE(train(config) == rounded);
  // Who keeps the optimizer's state of a part alone sums that part alone: of the same addends.
  config.train.optimizer_sharding = OptimizerSharding::zero1;
  const auto sharded = train(config);
  for (std::size_t i = 0; i < rounded.losses.size(); ++i) {
    EXPECT_NEAR(sharded.losses[i], rounded.losses[i], 1e-5 * rounded.losses[i]);
  }
}

// -- loss scaling ---------------------------------------------------------------------------------

/// As long as one step after the other is skipped, and then some more.
Config overflowing(Config config) {
  config.train.precision = Precision::fp16;
  config.train.loss_scale = 0x1p30;
  config.train.steps = 30;
  return config;
}

std::vector<std::vector<float>> weights_of(Trainer& trainer) {
  std::vector<std::vector<float>> weights;
  const auto parameters = parameters_of(trainer.plan().config.model);
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    weights.emplace_back(parameters[i].element_count());
    EXPECT_TRUE(trainer.read_parameter(i, weights.back()));
  }
  return weights;
}

std::vector<Config> overflowing_grids() {
  std::vector<Config> configs;
  const auto add = [&](bool tied, const GridExtent& grid, auto change) {
    auto config = overflowing(tiny_config(tied));
    config.parallel = grid;
    config.schedule.microbatches /= grid.data;
    change(config);
    configs.push_back(std::move(config));
  };
  add(true, {1, 1, 1}, [](Config&) {});
  add(false, {1, 1, 3}, [](Config& c) { c.schedule.name = "zb-h1"; });
  add(true, {2, 1, 2}, [](Config& c) { c.train.optimizer_sharding = OptimizerSharding::zero1; });
  add(true, {2, 2, 2}, [](Config& c) { c.train.optimizer_sharding = OptimizerSharding::zero2; });
  add(false, {1, 2, 2}, [](Config& c) { c.schedule.policy = Policy::backward_first; });
  add(true, {2, 2, 1}, [](Config& c) {
    c.train.optimizer = OptimizerKind::adafactor;
    c.train.gradient_wire = WireFormat::bf16;
  });
  return configs;
}

TEST(LossScaling, OverflowSkipsTheUpdateOnAllRanksUntilTheScaleIsSmallEnough) {
  for (const auto& config : overflowing_grids()) {
    const auto& [data, tensor, pipeline] = config.parallel;
    SCOPED_TRACE(testing::Message() << data << " x " << to_string(tensor) << " x " << pipeline);
    auto trainer = Trainer::make(make_plan(config).value(), source_of(config)).value();
    const auto before = weights_of(*trainer);
    auto scale = config.train.loss_scale;
    std::vector<double> losses;
    std::uint32_t skipped_count = 0;
    for (std::uint32_t step = 1; step <= config.train.steps; ++step) {
      const auto report = trainer->train_step();
      ASSERT_TRUE(report.has_value()) << report.error().context;
      EXPECT_EQ(report->loss_scale, scale);
      losses.push_back(report->loss);
      EXPECT_NE(report->is_skipped, std::isfinite(report->gradient_norm));
      EXPECT_EQ(weights_of(*trainer) == before, report->is_skipped && skipped_count + 1 == step);
      if (!report->is_skipped) continue;
      scale /= 2.0;
      ++skipped_count;
    }
    EXPECT_GE(skipped_count, 4U);
    EXPECT_LE(skipped_count, 20U);
    EXPECT_NEAR(losses.front(), std::log(256.0), 0.05) << "without the scale";
    EXPECT_LT(losses.back(), losses.front());
  }
}

TEST(LossScaling, TheScaleGrowsAgain) {
  auto config = tiny_config(false);
  config.train.precision = Precision::fp16;
  config.train.loss_scale = 8.0;
  config.train.loss_scale_interval = 5;
  const auto outcome = train(config);
  for (std::uint32_t i = 0; i < step_count; ++i) {
    EXPECT_EQ(outcome.scales[i], std::ldexp(8.0, static_cast<int>(i / 5)));
  }
}

/// Neither moments nor their bias correction know of it.
TEST(LossScaling, ASkippedStepLeavesNoTrace) {
  for (const auto optimizer :
       {OptimizerKind::adamw, OptimizerKind::adam, OptimizerKind::sgd, OptimizerKind::adafactor}) {
    auto config = overflowing(tiny_config(true));
    config.parallel.pipeline = 2;
    config.train.optimizer = optimizer;
    config.train.learning_rate_schedule = LearningRateSchedule::constant;
    config.train.warmup_steps = 0;
    const BatchSource same = [source = source_of(config)](
                                 StepKind kind, std::uint32_t, std::uint32_t replica,
                                 stages::Batch& batch) { source(kind, 1, replica, batch); };
    // The scale of the first update, and what is left after five.
    const auto train_five = [&] {
      auto trainer = Trainer::make(make_plan(config).value(), same).value();
      std::vector<double> scales;
      while (scales.size() < 5) {
        const auto report = trainer->train_step().value();
        if (!report.is_skipped) scales.push_back(report.loss_scale);
      }
      return std::pair{scales.front(), weights_of(*trainer)};
    };
    const auto [scale, skipping] = train_five();
    EXPECT_LT(scale, config.train.loss_scale);
    config.train.loss_scale = scale;
    const auto [same_scale, expected] = train_five();
    EXPECT_EQ(same_scale, scale);
    EXPECT_TRUE(skipping == expected) << "optimizer " << static_cast<int>(optimizer);
  }
}

TEST(SameBits, RecomputationEqualsTheSerialRunOnWhateverStages) {
  for (const auto recompute : {Recompute::selective, Recompute::full}) {
    auto config = tiny_config(true);
    config.parallel.pipeline = 3;
    config.train.recompute = recompute;
    EXPECT_TRUE(train(config) == serial(true));
    config.train.recompute_stages = {0, 2};
    config.schedule.name = "zb-h1";
    EXPECT_TRUE(train(config) == serial(true));
  }
}

Config dropping(Config config) {
  config.model.dropout = 0.1;
  config.model.attention_dropout = 0.2;
  return config;
}

const Outcome& serial_dropping() {
  static const auto outcome = train(dropping(tiny_config(true)));
  return outcome;
}

TEST(SameBits, DropoutInReplicasIsThatOfTheSerialRun) {
  EXPECT_NE(serial_dropping().losses, serial(true).losses);
  for (const std::uint32_t replicas : {2U, 4U}) {
    SCOPED_TRACE(testing::Message() << replicas << " replicas");
    auto config = dropping(tiny_config(true));
    config.parallel = {.data = replicas, .tensor = 1, .pipeline = 2};
    config.schedule.microbatches /= replicas;
    const auto outcome = train(config);
    for (std::size_t step = 0; step < step_count; ++step) {
      EXPECT_NEAR(outcome.losses[step] / serial_dropping().losses[step], 1.0, 1e-5)
          << "step " << step;
    }
    EXPECT_EQ(train(config), outcome) << "the same bits on every run";
  }
}

class SameBitsOfSchedules : public testing::TestWithParam<std::string_view> {};

TEST_P(SameBitsOfSchedules, EqualTheSerialRunOrTwoReplicasIfThereAreTwoCopies) {
  for (const std::uint32_t ranks : {2U, 3U}) {
    for (const bool tied : {false, true}) {
      SCOPED_TRACE(testing::Message() << "ranks=" << ranks << (tied ? " tied" : " untied"));
      const auto config = tiny_config(tied);
      const auto plan = plan_of(config, GetParam(), ranks);
      if (!plan) {
        EXPECT_EQ(GetParam(), "dualpipe") << plan.error().context;
        continue;  // It needs an even number of ranks.
      }
      if (plan->training.copy_count == 1) {
        EXPECT_TRUE(train(plan) == serial(tied));
        continue;
      }
      auto replicated = config;
      replicated.parallel.data = 2;
      replicated.schedule.microbatches /= 2;
      EXPECT_TRUE(train(plan) == train(plan_of(replicated, "1f1b", ranks)));
    }
  }
}

/// Which elements are dropped depends on where they are in the whole, not on who drops them when.
TEST_P(SameBitsOfSchedules, DropWhatTheSerialRunDrops) {
  for (const auto recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
    SCOPED_TRACE(testing::Message() << "recompute " << static_cast<int>(recompute));
    auto config = dropping(tiny_config(true));
    config.train.recompute = recompute;
    const auto plan = plan_of(config, GetParam(), 2);
    ASSERT_TRUE(plan) << plan.error().context;
    if (plan->training.copy_count == 1) {
      EXPECT_TRUE(train(plan) == serial_dropping());
      continue;
    }
    auto replicated = config;
    replicated.parallel.data = 2;
    replicated.schedule.microbatches /= 2;
    EXPECT_TRUE(train(plan) == train(plan_of(replicated, "1f1b", 2)));
  }
}

INSTANTIATE_TEST_SUITE_P(Named, SameBitsOfSchedules,
                         testing::ValuesIn(schedule_names().begin(), schedule_names().end()),
                         [](const auto& parameter) {
                           std::string name{parameter.param};
                           std::erase(name, '-');
                           return name;
                         });

TEST(SameBits, TwoCopiesOfTheModelInReplicasEqualMoreReplicas) {
  auto config = tiny_config(true);
  config.parallel.data = 2;
  config.schedule.microbatches /= 2;
  const auto outcome = train(plan_of(config, "dualpipe", 2));
  config.parallel.data = 4;
  config.schedule.microbatches /= 2;
  EXPECT_EQ(outcome, train(plan_of(config, "1f1b", 2)));
}

/// In any pipeline, whatever it recomputes; and so do shards.
TEST(SameBits, ALayerOfOnesOwnEqualsTheSerialRun) {
  auto config = tiny_config(true);
  config.model.family = Family::custom;
  config.model.layers = 4;
  config.model.custom_layer = tangle();
  config.train.steps = 6;
  for (const std::uint32_t shards : {1U, 2U}) {
    config.parallel = {.data = 1, .tensor = shards, .pipeline = 1};
    config.schedule.name = "gpipe";
    config.schedule.chunks = 1;
    config.train.recompute = Recompute::none;
    const auto expected = train(config);
    ASSERT_EQ(expected.losses.size(), 6U);
    EXPECT_LT(expected.losses.back(), expected.losses.front());
    std::uint32_t turn = 0;
    for (const auto& [schedule, ranks, chunks] :
         {std::tuple{"1f1b", 4U, 1U}, std::tuple{"zb-h1", 2U, 1U},
          std::tuple{"interleaved-1f1b", 2U, 2U}, std::tuple{"zb-v", 2U, 1U}}) {
      config.parallel.pipeline = ranks;
      config.schedule.name = schedule;
      config.schedule.chunks = chunks;
      config.train.recompute = static_cast<Recompute>(turn++ % 3);
      SCOPED_TRACE(std::string{schedule} + ", " + std::to_string(shards) + " shards");
      EXPECT_TRUE(train(config) == expected);
    }
  }
}

TEST(Trainer, NamesTheKernelThatIsMissing) {
  auto config = tiny_config(true);
  config.model.family = Family::custom;
  config.model.custom_layer = parallel_block();
  const auto plan = make_plan(config).value();
  const auto refusal_of = [&](auto change) {
    auto parts = parts_of_tests();
    change(parts.custom_kernels);
    const auto trainer = Trainer::make(plan, source_of(config), parts);
    EXPECT_FALSE(trainer);
    EXPECT_EQ(trainer.error().code, Errc::invalid_config);
    return trainer.error().context;
  };
  const std::string begin =
      "the operation \"square\" of the layer \"parallel-block\" has no kernel";
  const std::string end = "; give it under that name in custom_kernels of RankParts";
  EXPECT_EQ(refusal_of([](auto& kernels) { kernels.erase("square"); }), begin + end);
  EXPECT_EQ(refusal_of([](auto& kernels) { kernels["square"].forward = {}; }),
            begin + " for the forward pass" + end);
  EXPECT_EQ(refusal_of([](auto& kernels) { kernels["square"].backward_input = {}; }),
            begin + " for the gradient of its input" + end);
  EXPECT_EQ(refusal_of([](auto& kernels) { kernels["square"].backward_weight = {}; }),
            begin + " for the gradients of its parameters" + end);
}

TEST(Trainer, EvaluationReportsALossAndChangesNothing) {
  auto config = tiny_config(true);
  config.parallel.pipeline = 2;
  const auto plan = make_plan(config);
  auto trainer = Trainer::make(*plan, source_of(config));
  std::vector<double> losses;
  for (std::uint32_t step = 1; step <= 4; ++step) {
    const auto first = (*trainer)->evaluate_step(1);
    const auto second = (*trainer)->evaluate_step(1);
    EXPECT_EQ(first->loss, second->loss);
    EXPECT_EQ(first->kind, StepKind::evaluation);
    losses.push_back((*trainer)->train_step()->loss);
  }
  const auto& expected = serial(true).losses;
  EXPECT_EQ(losses, std::vector<double>(expected.begin(), expected.begin() + 4));
}

/// Expects that the account adds up, and covers and agrees with what the device says it did. Passes
/// that wait for weights compute less.
void expect_account_without_remainder(const RankReport& rank, bool passes_wait) {
  const auto& account = rank.account;
  EXPECT_EQ(account.total_ns(), account.end_ns - account.begin_ns);
  std::int64_t passes_ns = 0;
  for (const auto& entry : rank.trace) {
    EXPECT_GE(entry.begin_ns, account.begin_ns);
    EXPECT_LE(entry.end_ns, account.end_ns);
    if (entry.kind == TraceEntry::Kind::pass) passes_ns += entry.end_ns - entry.begin_ns;
  }
  const auto open_ns = account[TimeCause::computing] + account[TimeCause::dispatch];
  if (passes_wait) {
    EXPECT_LE(account[TimeCause::computing], std::min(passes_ns, open_ns));
  } else {
    EXPECT_EQ(account[TimeCause::computing], std::min(passes_ns, open_ns));
  }
}

TEST(Trainer, AccountsForEveryNanosecondOfEveryActor) {
  for (const auto synchronization :
       {Synchronization::all_reduce, Synchronization::parameter_server}) {
    auto config = tiny_config(false);
    config.parallel = {.data = 2, .tensor = 1, .pipeline = 2};
    config.schedule.microbatches = 6;
    config.train.synchronization = synchronization;
    const auto plan = make_plan(config);
    auto trainer = Trainer::make(*plan, source_of(config));
    std::vector<std::int64_t> end_ns(plan->rank_count(), 0);
    for (std::uint32_t step = 1; step <= 10; ++step) {
      const auto report = step % 3 == 0 ? (*trainer)->evaluate_step(1) : (*trainer)->train_step();
      ASSERT_TRUE(report.has_value()) << report.error().context;
      auto all = report->ranks;
      all.insert(all.end(), report->servers.begin(), report->servers.end());
      ASSERT_EQ(all.size(), end_ns.size());
      for (std::size_t r = 0; r < end_ns.size(); ++r) {
        SCOPED_TRACE(testing::Message() << "step " << step << " rank " << r);
        const auto& account = all[r].account;
        expect_account_without_remainder(all[r], plan->has_servers());
        EXPECT_TRUE(step == 1 || account.begin_ns == end_ns[r]) << "time between two steps is lost";
        EXPECT_LE(account.end_ns, report->end_ns);
        EXPECT_GT(account.end_ns, report->begin_ns);
        end_ns[r] = account.end_ns;
      }
    }
  }
}

/// Initial weights depend on their names: each is found where the model has it.
TEST(Trainer, ReadsItsParametersInModelOrder) {
  for (const bool tied : {false, true}) {
    auto config = tiny_config(tied);
    const auto alone = Trainer::make(*make_plan(config), source_of(config));
    config.parallel.pipeline = 2;
    const auto piped = Trainer::make(*make_plan(config), source_of(config));
    const auto specs = parameters_of(config.model);
    std::set<std::vector<float>> seen;
    for (std::size_t i = 0; i < specs.size(); ++i) {
      std::vector<float> expected(specs[i].element_count());
      std::vector<float> values(expected.size());
      ASSERT_TRUE((*alone)->read_parameter(i, expected));
      ASSERT_TRUE((*piped)->read_parameter(i, values));
      EXPECT_EQ(values, expected) << specs[i].name;
      const bool is_drawn = specs[i].shape.size() == 2;
      EXPECT_TRUE(!is_drawn || seen.insert(values).second) << specs[i].name << " is another's";
    }
  }
}

TEST(Trainer, MakesOneGroupForEachStageOfTheModel) {
  auto config = tiny_config(false);
  config.parallel = {.data = 3, .tensor = 1, .pipeline = 2};
  std::vector<std::uint32_t> sizes;
  RankParts parts;
  parts.make_group = [&sizes](std::uint32_t size, WireFormat wire) {
    sizes.push_back(size);
    return transport::make_in_process_group(size, wire);
  };
  auto trainer = Trainer::make(*make_plan(config), source_of(config), std::move(parts));
  EXPECT_EQ(sizes, (std::vector<std::uint32_t>{3, 3}));
  EXPECT_TRUE((*trainer)->train_step().has_value());
}

std::unique_ptr<stages::Stage> counting_stage(const Plan& plan, const StagePlan& stage,
                                              stages::Device& device, stages::Stream& stream) {
  return stages::make_counting_stage(device, stream,
                                     {.stage = stage.stage,
                                      .stage_count = plan.training.stages_per_copy(),
                                      .bounds = stage.bounds,
                                      .microbatch_count = plan.training.microbatch_count})
      .value();
}

/// Notes what it is asked to fetch.
class FetchingStage final : public StageInDisguise {
public:
  FetchingStage(std::unique_ptr<stages::Stage> stage, std::vector<std::uint32_t>& fetched)
      : StageInDisguise{std::move(stage)}, fetched_{fetched} {}
  void fetch(MicrobatchIndex microbatch) override { fetched_.push_back(microbatch.value()); }

private:
  std::vector<std::uint32_t>& fetched_;
};

TEST(Trainer, HasSlotsFetchedForTheBackwardPassesOfStagesThatOffload) {
  auto config = tiny_config(false);
  config.parallel.pipeline = 3;
  config.train.offload = Offload::activations;
  const auto plan = make_plan(config).value();
  TakenBytes taken;
  std::vector<std::vector<std::uint32_t>> fetched(3);
  RankParts parts;
  parts.make_device = [&] { return std::make_unique<DeviceApart>(taken); };
  parts.make_stage = [&](const Plan& of, const StagePlan& stage, stages::Device& device,
                         stages::Stream& stream,
                         const auto&) -> Expected<std::unique_ptr<stages::Stage>> {
    return std::unique_ptr<stages::Stage>{std::make_unique<FetchingStage>(
        counting_stage(of, stage, device, stream), fetched[stage.stage.value()])};
  };
  auto trainer = Trainer::make(plan, source_of(config), parts);
  ASSERT_TRUE(trainer.has_value());
  ASSERT_TRUE((*trainer)->train_step().has_value());
  std::vector<std::uint32_t> all(config.schedule.microbatches);
  std::iota(all.begin(), all.end(), 0U);
  // 1F1B has three microbatches in flight on the first stage, two and one on the others.
  EXPECT_EQ(fetched, (std::vector<std::vector<std::uint32_t>>{all, {}, {}}));
}

TEST(Trainer, ReportsAFailingStageOnceAndByName) {
  /// Fails the third pass it is given, and no other.
  class FailingStage final : public StageInDisguise {
  public:
    using StageInDisguise::StageInDisguise;
    void enqueue(const Action& action, stages::DeviceDone done) override {
      if (++count_ != 3) return StageInDisguise::enqueue(action, std::move(done));
      failed_ = std::move(done);
      StageInDisguise::enqueue(
          action, [this](Errc, stages::DeviceSpan span) { failed_(Errc::device_failure, span); });
    }

  private:
    stages::DeviceDone failed_;
    int count_ = 0;
  };

  auto config = tiny_config(false);
  config.parallel.pipeline = 2;
  const auto plan = make_plan(config);
  RankParts parts;
  parts.make_stage = [](const Plan& p, const StagePlan& stage, stages::Device& device,
                        stages::Stream& stream,
                        const stages::StagePeers&) -> Expected<std::unique_ptr<stages::Stage>> {
    auto made = counting_stage(p, stage, device, stream);
    if (stage.stage == StageIndex{1}) return {std::make_unique<FailingStage>(std::move(made))};
    return {std::move(made)};
  };
  auto trainer = Trainer::make(*plan, source_of(config), std::move(parts));
  const auto report = (*trainer)->train_step();
  ASSERT_FALSE(report.has_value());
  EXPECT_EQ(report.error().code, Errc::device_failure);
  EXPECT_EQ(report.error().context,
            "step 1: pipeline rank 1 of replica 0 failed at the pass 1F1: the device reported a "
            "failure");
}

/// The address sanitizer sees it otherwise.
TEST(Trainer, KeepsBatchesUntilStreamsAreEmptyWhenTheLoaderHasGone) {
  /// Fails its first pass, but leaves work on its stream that reads the batch when nobody has the
  /// source any more.
  class LateStage final : public StageInDisguise {
  public:
    LateStage(std::unique_ptr<stages::Stage> stage, stages::Stream& stream,
              std::weak_ptr<const int> source)
        : StageInDisguise{std::move(stage)}, stream_{stream}, source_{std::move(source)} {}
    void begin_step(const stages::StepInfo& info) override {
      batch_ = info.batch;
      StageInDisguise::begin_step(info);
    }
    void enqueue(const Action& /*action*/, stages::DeviceDone done) override {
      stream_.enqueue([this] {
        while (!source_.expired()) std::this_thread::yield();
        EXPECT_TRUE(std::ranges::all_of(batch_->tokens, [](auto token) { return token == 5; }));
      });
      done(Errc::device_failure, {});
    }

  private:
    stages::Stream& stream_;
    std::weak_ptr<const int> source_;
    const stages::Batch* batch_ = nullptr;
  };

  const auto plan = make_plan(tiny_config(false));
  auto source = std::make_shared<const int>(0);
  RankParts parts;
  parts.make_stage = [weak = std::weak_ptr{source}](
                         const Plan& p, const StagePlan& stage, stages::Device& device,
                         stages::Stream& stream,
                         const stages::StagePeers&) -> Expected<std::unique_ptr<stages::Stage>> {
    return {std::make_unique<LateStage>(counting_stage(p, stage, device, stream), stream, weak)};
  };
  auto trainer = Trainer::make(
      *plan,
      [held = std::move(source)](StepKind, std::uint32_t, std::uint32_t, stages::Batch& batch) {
        std::ranges::fill(batch.tokens, 5);
      },
      std::move(parts));
  EXPECT_FALSE((*trainer)->train_step().has_value());
}

TEST(Trainer, EndsTheStepWhenTheSourceFails) {
  const auto plan = make_plan(tiny_config(false));
  auto trainer = Trainer::make(*plan, [](StepKind, std::uint32_t step, std::uint32_t, auto&) {
    if (step == 2) throw std::runtime_error{"the tape broke"};
  });
  EXPECT_TRUE((*trainer)->train_step().has_value());
  const auto report = (*trainer)->train_step();
  ASSERT_FALSE(report.has_value());
  EXPECT_EQ(report.error().code, Errc::invalid_batch);
  EXPECT_EQ(report.error().context, "step 2: the tape broke");
}

TEST(Trainer, RefusesBatchesThatNoBertCanRead) {
  auto config = tiny_config(true);
  config.model.family = Family::bert;
  const auto plan = make_plan(config);
  const auto refusal_of = [&](auto spoil) {
    auto trainer = Trainer::make(
        *plan, [&, source = source_of(config)](auto kind, auto step, auto replica, auto& batch) {
          source(kind, step, replica, batch);
          spoil(batch);
        });
    const auto report = (*trainer)->train_step();
    return report ? "accepted" : report.error().context;
  };
  EXPECT_EQ(refusal_of([](auto&) {}), "accepted");
  EXPECT_EQ(refusal_of([](auto& batch) { batch.segments[5] = 2; }),
            "step 1: the segment 2 at position 5 of replica 0's batch is outside the 2 segments");
  EXPECT_EQ(refusal_of([](auto& batch) { batch.lengths[1] = 0; }),
            "step 1: the length 0 at position 1 of replica 0's batch is outside 1 to 8");
  EXPECT_EQ(refusal_of([](auto& batch) { batch.lengths[1] = 9; }),
            "step 1: the length 9 at position 1 of replica 0's batch is outside 1 to 8");
  EXPECT_EQ(refusal_of([](auto& batch) { batch.targets[3] = -2; }),
            "step 1: the target -2 at position 3 of replica 0's batch is outside the vocabulary of "
            "256");
  EXPECT_EQ(refusal_of([](auto& batch) { batch.target_count = 47; }),
            "step 1: replica 0's batch has 48 targets, but says that the step has 47");
}

TEST(Trainer, RefusesTokensOutsideTheVocabulary) {
  const auto plan = make_plan(tiny_config(false));
  for (const std::int32_t token : {-1, 256}) {
    auto trainer = Trainer::make(
        *plan, [token](StepKind, std::uint32_t, std::uint32_t, auto& b) { b.targets[3] = token; });
    const auto report = (*trainer)->train_step();
    ASSERT_FALSE(report.has_value());
    EXPECT_EQ(report.error().context, "step 1: the target " + std::to_string(token)
                                          + " at position 3 of replica 0's batch is outside the "
                                            "vocabulary of 256");
  }
}

TEST(Trainer, CanBeMadeAndDestroyedWithoutAStep) {
  auto config = tiny_config(true);
  config.parallel = {.data = 2, .tensor = 1, .pipeline = 2};
  config.schedule.microbatches = 6;
  for (int i = 0; i < 20; ++i) {
    EXPECT_TRUE(Trainer::make(*make_plan(config), source_of(config)).has_value());
  }
}

}  // namespace
}  // namespace troupe::actors
