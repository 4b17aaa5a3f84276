// Every grid of up to eight ranks against the serial run: what is divided how leaves no trace but
// rounding. The other settings go round with the grids, so that each meets many others.

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "../scope.hpp"
#include "tiny_training.hpp"

namespace troupe::actors {
namespace {

struct Kind {
  Family family = Family::gpt2;
  Task task = Task::masked;
  std::shared_ptr<const CustomLayer> custom_layer{};
};

Config grid_config(const Kind& kind) {
  const auto& [family, task, custom_layer] = kind;
  const bool classifies = task == Task::classification;
  auto config = tiny_config(false);
  config.model = {.family = family,
                  .layers = 4,
                  .heads = 12,
                  .hidden = 48,
                  .sequence = 8,
                  .vocabulary = 257,
                  .tie_embeddings = family != Family::llama && !classifies,
                  .feed_forward = 96,
                  .task = task,
                  .classes = classifies ? 3U : 0U,
                  .custom_layer = custom_layer};
  config.schedule.microbatches = 12;
  config.schedule.microbatch_size = 3;
  config.train.steps = scope(20U, 4U);
  // AdamW makes steps of words that are hardly ever seen, and so of mere rounding.
  config.train.optimizer = OptimizerKind::sgd;
  config.train.learning_rate = 0.05;
  return config;
}

std::string describe(const Config& config) {
  const auto& [data, tensor, pipeline] = config.parallel;
  const auto& train = config.train;
  return std::string{family_names[static_cast<std::size_t>(config.model.family)]}
         + (config.model.tie_embeddings ? " tied" : "") + ", data " + std::to_string(data)
         + ", tensor " + to_string(tensor) + ", pipeline " + std::to_string(pipeline) + ", "
         + config.schedule.name + " "
         + std::string{policy_names[static_cast<std::size_t>(config.schedule.policy)]} + ", "
         + std::string{optimizer_sharding_names[static_cast<std::size_t>(train.optimizer_sharding)]}
         + ", recompute " + std::string{recompute_names[static_cast<std::size_t>(train.recompute)]}
         + (train.sequence_parallel ? ", sequence parallel" : "")
         + (config.model.dropout > 0.0 ? ", dropout" : "");
}

/// Of what products multiply, and of gradients on their way.
constexpr double rounding_bound = 0.01;

void expect_close(const Outcome& outcome, const Outcome& expected) {
  ASSERT_EQ(outcome.losses.size(), expected.losses.size());
  for (std::size_t i = 0; i < expected.losses.size(); ++i) {
    EXPECT_NEAR(outcome.losses[i], expected.losses[i], 1e-5 * expected.losses[i]);
    EXPECT_NEAR(outcome.norms[i], expected.norms[i], 1e-5 * expected.norms[i]);
  }
  for (const auto& [name, values] : expected.weights) {
    const auto& found = outcome.weights.at(name);
    ASSERT_EQ(found.size(), values.size()) << name;
    auto farthest = 0.0F;
    for (std::size_t i = 0; i < values.size(); ++i) {
      farthest = std::max(farthest, std::abs(found[i] - values[i]));
    }
    EXPECT_LT(farthest, 1e-5F) << name;
  }
}

class Grids : public testing::TestWithParam<Kind> {};

TEST_P(Grids, OfUpToEightRanksTrainAsOneDoes) {
  const auto config = grid_config(GetParam());
  auto dropping = config;
  dropping.model.dropout = 0.1;
  dropping.model.attention_dropout = 0.1;
  const std::array outcomes{train(config), train(dropping)};
  std::uint32_t turn = 0;
  for (std::uint32_t data = 1; data <= 4; ++data) {
    for (std::uint32_t tensor = 1; tensor <= 4; ++tensor) {
      for (std::uint32_t pipeline = 1; pipeline <= 4; ++pipeline) {
        if (data * tensor * pipeline > 8) continue;
        // Every other turn of each of the settings below drops elements.
        const bool drops = (turn + turn / 6) % 2 == 1;
        const auto& expected = outcomes.at(drops ? 1 : 0);
        auto grid = drops ? dropping : config;
        grid.parallel = {.data = data, .tensor = tensor, .pipeline = pipeline};
        grid.schedule.microbatches /= data;
        grid.schedule.name = turn % 2 == 0 ? "1f1b" : "zb-h1";
        grid.train.optimizer_sharding = static_cast<OptimizerSharding>(turn % 3);
        grid.train.recompute = static_cast<Recompute>(turn / 2 % 3);
        grid.train.sequence_parallel = turn % 5 < 3;
        ++turn;
        SCOPED_TRACE(describe(grid));
        expect_close(train(grid), expected);
        if (turn % 4 != 0) continue;
        grid.train.precision = turn % 8 == 0 ? Precision::fp16 : Precision::bf16;
        grid.train.gradient_wire = WireFormat::bf16;
        const auto rounded = train(grid);
        for (std::size_t i = 0; i < expected.losses.size(); ++i) {
          EXPECT_NEAR(rounded.losses[i], expected.losses[i], rounding_bound * expected.losses[i]);
          EXPECT_NEAR(rounded.norms[i], expected.norms[i], 10 * rounding_bound * expected.norms[i]);
        }
      }
    }
  }
}

TEST_P(Grids, WithParameterServersTrainToTheBitsOfThoseWithout) {
  auto config = grid_config(GetParam());
  config.train.steps = scope(6U, 3U);
  config.train.optimizer = OptimizerKind::adamw;
  std::uint32_t turn = 0;
  for (std::uint32_t data = 2; data <= 4; ++data) {
    for (std::uint32_t tensor = 1; tensor <= 4; ++tensor) {
      for (std::uint32_t pipeline = 1; pipeline <= 4; ++pipeline) {
        if (data * tensor * pipeline > 8) continue;
        auto grid = config;
        grid.parallel = {.data = data, .tensor = tensor, .pipeline = pipeline};
        grid.schedule.microbatches /= data;
        grid.schedule.name = turn % 2 == 0 ? "1f1b" : "zb-h1";
        grid.train.recompute = static_cast<Recompute>(turn % 3);
        grid.train.sequence_parallel = turn % 5 < 3;
        grid.model.dropout = turn % 2 == 0 ? 0.1 : 0.0;
        ++turn;
        SCOPED_TRACE(describe(grid));
        const auto expected = train(grid);
        grid.train.synchronization = Synchronization::parameter_server;
        EXPECT_TRUE(train(grid) == expected);
      }
    }
  }
}

TEST_P(Grids, OfUnequalShardsTrainAsOneDoes) {
  struct Case {
    ShardCounts tensor;
    std::uint32_t data;
    const char* schedule;
    std::uint32_t chunks = 1;
    Policy policy = Policy::in_order;
  };
  const std::vector<Case> cases{
      {{2, 1}, 1, "1f1b"},
      {{1, 2}, 1, "zb-h1"},
      {{4, 2}, 1, "gpipe"},
      {{1, 3}, 2, "1f1b"},
      {{3, 2}, 1, "1f1b"},
      {{2, 1, 2}, 1, "1f1b"},
      {{1, 2, 4}, 1, "zb-h1"},
      {{2, 1}, 2, "interleaved-1f1b", 2},
      {{1, 3}, 1, "interleaved-1f1b", 2},
      {{2, 4}, 1, "zb-v", 2},
      {{1, 2, 2, 1}, 1, "dualpipe"},
      {{2, 1}, 2, "1f1b", 1, Policy::backward_first},
      {{1, 4, 2}, 1, "1f1b", 1, Policy::forward_first},
      {{4, 1}, 1, "interleaved-1f1b", 2, Policy::backward_first},
  };
  auto config = grid_config(GetParam());
  config.train.steps = scope(8U, 3U);
  std::uint32_t turn = 0;
  for (const bool tied : {true, false}) {
    if (tied && config.model.classifies()) continue;
    config.model.tie_embeddings = tied;
    const auto expected = train(config);
    for (const auto& [tensor, data, schedule, chunks, policy] : cases) {
      auto grid = config;
      grid.parallel = {.data = data,
                       .tensor = tensor,
                       .pipeline = static_cast<std::uint32_t>(tensor.by_rank.size())};
      grid.schedule.microbatches /= data;
      grid.schedule.name = schedule;
      grid.schedule.chunks = chunks;
      grid.schedule.policy = policy;
      const bool may_sum_parts = policy == Policy::in_order && grid.schedule.name != "dualpipe";
      grid.train.optimizer_sharding =
          static_cast<OptimizerSharding>(turn % (may_sum_parts ? 3 : 2));
      grid.train.recompute = static_cast<Recompute>(turn / 2 % 3);
      grid.train.sequence_parallel = (turn % 2 == 0) == tied;
      SCOPED_TRACE(describe(grid));
      const auto outcome = train(grid);
      expect_close(outcome, expected);
      if (turn % 7 == 0) {
        EXPECT_TRUE(train(grid) == outcome) << "the same bits on every run";
      }
      ++turn;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Families, Grids,
    testing::Values(Kind{Family::gpt2}, Kind{Family::llama}, Kind{Family::bert},
                    Kind{Family::bert, Task::classification},
                    Kind{Family::custom, Task::masked, parallel_block()}),
    [](const auto& test) {
      return std::string{family_names[static_cast<std::size_t>(test.param.family)]}
             + (test.param.task == Task::classification ? "_classification" : "");
    });

// -- predictions ----------------------------------------------------------------------------------

constexpr std::uint32_t class_count = 3;
constexpr std::uint32_t evaluated_count = 31;  ///< Of 36 sequences: the others have no target.

/// A sequence of a step is of this class, and shows it by its tokens.
std::int32_t class_of(StepKind kind, std::uint32_t step, std::uint32_t sample) {
  Random random{step * 1000 + sample * 2 + (kind == StepKind::training ? 0U : 1U)};
  return static_cast<std::int32_t>(random.below(class_count));
}

BatchSource shown_classes(const Config& config) {
  return [config](StepKind kind, std::uint32_t step, std::uint32_t replica, stages::Batch& batch) {
    const auto rows = batch.microbatch_count * batch.microbatch_size;
    const bool trains = kind == StepKind::training;
    batch.target_count = trains ? config.parallel.data * rows : evaluated_count;
    for (std::uint32_t row = 0; row < rows; ++row) {
      const auto sample = replica * rows + row;
      const auto shown = class_of(kind, step, sample);
      const auto sequence = config.model.sequence;
      for (std::uint32_t t = 0; t < sequence; ++t) {
        batch.tokens[std::size_t{row} * sequence + t] = t == 0 ? 256 : 10 + shown;
      }
      batch.targets[row] = trains || sample < evaluated_count ? shown : -1;
    }
  };
}

/// By a model that has learned to see it.
TEST(Predictions, AreTheClassOfEachSequenceInItsPlaceOnEveryGrid) {
  auto config = grid_config({Family::bert, Task::classification});
  config.train.steps = 20;
  config.train.optimizer = OptimizerKind::adamw;
  config.train.learning_rate = 3e-3;
  std::optional<double> expected_loss;
  for (const auto& [parallel, schedule] :
       {std::pair{GridExtent{1, 1, 1}, "gpipe"}, std::pair{GridExtent{2, 1, 1}, "1f1b"},
        std::pair{GridExtent{1, 2, 1}, "1f1b"}, std::pair{GridExtent{1, 1, 4}, "1f1b"},
        std::pair{GridExtent{3, 1, 2}, "zb-h1"}, std::pair{GridExtent{2, 2, 2}, "1f1b"},
        std::pair{GridExtent{1, 1, 2}, "interleaved-1f1b"},
        std::pair{GridExtent{2, 1, 2}, "dualpipe"}, std::pair{GridExtent{1, 1, 2}, "zb-v"}}) {
    auto grid = config;
    grid.parallel = parallel;
    grid.schedule.microbatches /= parallel.data;
    grid.schedule.name = schedule;
    grid.schedule.chunks = grid.schedule.name == "interleaved-1f1b" ? 2 : 1;
    grid.train.sequence_parallel = parallel.tensor.most() > 1;
    SCOPED_TRACE(describe(grid));
    const auto plan = make_plan(grid);
    ASSERT_TRUE(plan) << plan.error().context;
    const auto trainer = Trainer::make(*plan, shown_classes(grid)).value();
    for (std::uint32_t step = 1; step <= config.train.steps; ++step) {
      const auto report = trainer->train_step();
      ASSERT_TRUE(report) << report.error().context;
      EXPECT_TRUE(report->predictions.empty());
      EXPECT_EQ(report->target_count, 36U);
    }
    for (const std::uint32_t index : {1U, 2U}) {
      const auto report = trainer->evaluate_step(index);
      ASSERT_TRUE(report) << report.error().context;
      EXPECT_EQ(report->target_count, evaluated_count);
      ASSERT_EQ(report->predictions.size(), 36U);
      for (std::uint32_t sample = 0; sample < 36; ++sample) {
        EXPECT_EQ(report->predictions[sample], class_of(StepKind::evaluation, index, sample))
            << "sample " << sample;
      }
      if (index == 2) continue;
      if (!expected_loss) expected_loss = report->loss;
      EXPECT_NEAR(report->loss, *expected_loss, 1e-4 * *expected_loss);
    }
  }
}

}  // namespace
}  // namespace troupe::actors
