// Every grid of up to eight ranks against the serial run: what is divided how leaves no trace but
// rounding. The other settings go round with the grids, so that each meets many others.

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tiny_training.hpp"

namespace troupe::actors {
namespace {

struct Kind {
  Family family = Family::gpt2;
  Task task = Task::masked;
};

Config grid_config(const Kind& kind) {
  const auto& [family, task] = kind;
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
                  .classes = classifies ? 3U : 0U};
  config.schedule.microbatches = 12;
  config.schedule.microbatch_size = 3;
  config.train.steps = 20;
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
         + (train.sequence_parallel ? ", sequence parallel" : "");
}

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
  const auto expected = train(config);
  std::uint32_t turn = 0;
  for (std::uint32_t data = 1; data <= 4; ++data) {
    for (std::uint32_t tensor = 1; tensor <= 4; ++tensor) {
      for (std::uint32_t pipeline = 1; pipeline <= 4; ++pipeline) {
        if (data * tensor * pipeline > 8) continue;
        auto grid = config;
        grid.parallel = {.data = data, .tensor = tensor, .pipeline = pipeline};
        grid.schedule.microbatches /= data;
        grid.schedule.name = turn % 2 == 0 ? "1f1b" : "zb-h1";
        grid.train.optimizer_sharding = static_cast<OptimizerSharding>(turn % 3);
        grid.train.recompute = static_cast<Recompute>(turn / 2 % 3);
        grid.train.sequence_parallel = turn % 5 < 3;
        ++turn;
        SCOPED_TRACE(describe(grid));
        expect_close(train(grid), expected);
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
  config.train.steps = 8;
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
                    Kind{Family::bert, Task::classification}),
    [](const auto& test) {
      return std::string{family_names[static_cast<std::size_t>(test.param.family)]}
             + (test.param.task == Task::classification ? "_classification" : "");
    });

}  // namespace
}  // namespace troupe::actors
