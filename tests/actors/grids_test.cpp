// Every grid of up to eight ranks against the serial run: what is divided how leaves no trace but
// rounding. The other settings go round with the grids, so that each meets many others.

#include <array>
#include <string>

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
  return std::string{family_names[static_cast<std::size_t>(config.model.family)]} + ", data "
         + std::to_string(data) + ", tensor " + std::to_string(tensor) + ", pipeline "
         + std::to_string(pipeline) + ", " + config.schedule.name + ", "
         + std::string{optimizer_sharding_names[static_cast<std::size_t>(train.optimizer_sharding)]}
         + ", recompute " + std::string{recompute_names[static_cast<std::size_t>(train.recompute)]}
         + (train.sequence_parallel ? ", sequence parallel" : "")
         + (config.model.dropout > 0.0 ? ", dropout" : "");
}

/// Of what products multiply, and of gradients on their way.
constexpr double rounding_bound = 0.01;

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
        const auto outcome = train(grid);
        ASSERT_EQ(outcome.losses.size(), expected.losses.size());
        for (std::size_t i = 0; i < expected.losses.size(); ++i) {
          EXPECT_NEAR(outcome.losses[i], expected.losses[i], 1e-5 * expected.losses[i]);
          EXPECT_NEAR(outcome.norms[i], expected.norms[i], 1e-5 * expected.norms[i]);
        }
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
