// Trainings of the whole system against PyTorch's: what the director adds to the stages (step
// numbers, the learning rate, the mean loss, the norm, clipping) is PyTorch's too.

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/actors/trainer.hpp"

#include "../stages/custom_kernels.hpp"
#include "../stages/golden.hpp"
#include "../stages/stage_chain.hpp"

namespace troupe::actors {
namespace {

/// The golden vocabularies are smaller than a byte, which a configuration refuses because texts
/// would not fit. Nothing in a plan depends on it but the sums that it announces.
Plan plan_from(const nlohmann::json& golden, std::uint32_t ranks) {
  Config config;
  config.model = stages::model_from(golden);
  config.model.vocabulary = 256;
  config.train = stages::train_config_from(golden);
  config.parallel.pipeline = ranks;
  config.schedule.name = "1f1b";
  config.schedule.microbatches = golden.at("train").at("microbatches");
  config.schedule.microbatch_size = golden.at("train").at("microbatch_size");
  if (ranks == 2) config.schedule.layers_per_stage = {1, 2};
  auto plan = make_plan(config).value();
  plan.config.model = stages::model_from(golden);
  return plan;
}

/// The batches that the golden trainings saw; steps count from 0 there.
BatchSource source_of(const Plan& plan, std::uint64_t seed) {
  return [model = plan.config.model, seed](StepKind, std::uint32_t step, std::uint32_t,
                                           stages::Batch& batch) {
    batch =
        stages::make_batch(model, batch.microbatch_count, batch.microbatch_size, seed, step - 1);
  };
}

std::vector<std::vector<float>> values_of(Trainer& trainer) {
  std::vector<std::vector<float>> values;
  for (const auto& parameter : parameters_of(trainer.plan().config.model)) {
    auto& read = values.emplace_back(parameter.element_count());
    EXPECT_TRUE(trainer.read_parameter(values.size() - 1, read));
  }
  return values;
}

class GoldenTrainer : public testing::TestWithParam<std::tuple<const char*, std::uint32_t>> {};

INSTANTIATE_TEST_SUITE_P(
    Trainings, GoldenTrainer,
    testing::Combine(testing::Values("tied_adamw", "untied_adamw", "tied_sgd", "tied_sgd_fp16",
                                     "llama_adamw", "tied_llama_sgd", "untied_adam",
                                     "llama_adafactor", "bert_adamw", "bert_classes_adamw",
                                     "dropout_adamw", "llama_dropout_sgd",
                                     "bert_classes_dropout_adamw", "parallel_block_adamw",
                                     "tied_sgd_bf16", "llama_sgd_bf16", "bert_sgd_bf16",
                                     "bert_classes_sgd_bf16"),
                     testing::Values(1U, 2U)),
    [](const auto& test) {
      return std::string{std::get<0>(test.param)} + "_ranks_"
             + std::to_string(std::get<1>(test.param));
    });

TEST_P(GoldenTrainer, AgreesWithPyTorch) {
  const auto& [name, ranks] = GetParam();
  const auto golden = stages::read_golden(name);
  const auto plan = plan_from(golden, ranks);
  RankParts parts;
  parts.custom_kernels = stages::custom_kernels();
  auto trainer =
      Trainer::make(plan, source_of(plan, golden.at("train").at("data_seed")), std::move(parts));
  ASSERT_TRUE(trainer.has_value()) << trainer.error().context;
  const auto before = values_of(**trainer);
  for (std::uint32_t step = 0; step < plan.config.train.steps; ++step) {
    SCOPED_TRACE("step " + std::to_string(step + 1));
    const auto report = (*trainer)->train_step();
    ASSERT_TRUE(report.has_value()) << report.error().context;
    stages::expect_step(golden, step, report->loss, report->gradient_norm);
  }
  const auto weights = stages::read_golden_weights(name);
  const auto after = values_of(**trainer);
  const auto parameters = parameters_of(plan.config.model);
  ASSERT_EQ(parameters.size(), weights.tensors().size());
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    stages::expect_weights(weights, plan.config.train, parameters[i], before[i], after[i]);
  }
}

}  // namespace
}  // namespace troupe::actors
