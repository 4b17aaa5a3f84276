// Trainings against PyTorch's: tests/stages/golden/*.json, made by scripts/make_golden.py from the
// same initial weights and data.

#include <algorithm>
#include <cmath>
#include <fstream>
#include <tuple>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "device_cases.hpp"
#include "stage_chain.hpp"

namespace troupe::stages {
namespace {

constexpr double relative_tolerance = 1e-4;

nlohmann::json read_golden(const std::string& name) {
  std::ifstream file{std::string{TROUPE_GOLDEN_DIR} + '/' + name + ".json"};
  return nlohmann::json::parse(file);
}

ChainProps props_from(const nlohmann::json& golden, std::vector<std::uint32_t> layers_per_stage) {
  const auto& model = golden.at("model");
  const auto& from = golden.at("train");
  TrainConfig train;
  train.steps = from.at("steps");
  train.seed = from.at("seed");
  train.optimizer = from.at("optimizer") == "sgd" ? OptimizerKind::sgd : OptimizerKind::adamw;
  train.learning_rate = from.at("learning_rate");
  train.min_learning_rate = from.at("min_learning_rate");
  train.warmup_steps = from.at("warmup_steps");
  train.clip_norm = from.at("clip_norm");
  train.weight_decay = from.at("weight_decay");
  if (train.optimizer == OptimizerKind::sgd) {
    train.momentum = from.at("momentum");
  } else {
    train.beta1 = from.at("beta1");
    train.beta2 = from.at("beta2");
    train.epsilon = from.at("epsilon");
  }
  return {.model = {.layers = model.at("layers"),
                    .heads = model.at("heads"),
                    .hidden = model.at("hidden"),
                    .sequence = model.at("sequence"),
                    .vocabulary = model.at("vocabulary"),
                    .tie_embeddings = model.at("tie_embeddings")},
          .layers_per_stage = std::move(layers_per_stage),
          .microbatch_count = from.at("microbatches"),
          .microbatch_size = from.at("microbatch_size"),
          .order = BackwardOrder::whole,
          .train = train};
}

/// A bias of the keys shifts all scores of a query alike, which softmax ignores: its gradient is
/// rounding noise, and AdamW scales noise up to steps that no two programs share.
std::vector<float> without_key_bias(const ParameterView& parameter) {
  std::vector<float> values(parameter.values.begin(), parameter.values.end());
  if (!parameter.spec->name.ends_with("c_attn.bias")) return values;
  const auto third = static_cast<std::ptrdiff_t>(values.size() / 3);
  values.erase(values.begin() + third, values.begin() + 2 * third);
  return values;
}

void expect_weights(const ParameterView& parameter, const nlohmann::json& digest) {
  const auto values = without_key_bias(parameter);
  double sum = 0.0;
  double squares = 0.0;
  for (const auto value : values) {
    sum += value;
    squares += double{value} * value;
  }
  const double rms = std::sqrt(squares / static_cast<double>(values.size()));
  // Relative to what such a sum of as many independent elements is in size.
  EXPECT_NEAR(sum, digest.at("sum").get<double>(),
              relative_tolerance * std::max(std::abs(sum), std::sqrt(squares)));
  EXPECT_NEAR(squares, digest.at("squares").get<double>(), relative_tolerance * squares);
  const std::size_t stride = digest.at("stride");
  std::size_t index = 0;
  for (const double expected : digest.at("elements")) {
    EXPECT_NEAR(values[index], expected, relative_tolerance * std::max(std::abs(expected), rms))
        << "element " << index;
    index += stride;
  }
}

class Golden : public testing::TestWithParam<std::tuple<DeviceCase, const char*>> {};

INSTANTIATE_TEST_SUITE_P(Trainings, Golden,
                         testing::Combine(testing::ValuesIn(device_cases),
                                          testing::Values("tied_adamw", "untied_adamw",
                                                          "tied_sgd")),
                         [](const auto& test) {
                           return std::string{std::get<0>(test.param).name} + '_'
                                  + std::get<1>(test.param);
                         });

TEST_P(Golden, TrainingAgreesWithPyTorch) {
  const auto& [device_case, name] = GetParam();
  const auto golden = read_golden(name);
  const auto props = props_from(golden, {1, 2});
  const auto device = device_case.make();
  StageChain chain{*device, props};
  for (std::uint32_t step = 0; step < props.train.steps; ++step) {
    SCOPED_TRACE("step " + std::to_string(step + 1));
    const auto outcome =
        chain.train(make_batch(props.model, props.microbatch_count, props.microbatch_size,
                               golden.at("train").at("data_seed"), step));
    const double loss = golden.at("losses").at(step);
    const double norm = golden.at("gradient_norms").at(step);
    EXPECT_NEAR(outcome.loss, loss, relative_tolerance * loss);
    EXPECT_NEAR(outcome.gradient_norm, norm, relative_tolerance * norm);
  }
  const auto& weights = golden.at("weights");
  const auto parameters = chain.parameters();
  EXPECT_EQ(parameters.size(), weights.size());
  for (const auto& parameter : parameters) {
    SCOPED_TRACE(parameter.spec->name);
    expect_weights(parameter, weights.at(parameter.spec->name));
  }
}

}  // namespace
}  // namespace troupe::stages
