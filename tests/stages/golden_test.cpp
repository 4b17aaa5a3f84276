// Trainings against PyTorch's: tests/stages/golden/*.json, made by scripts/make_golden.py from the
// same initial weights and data.

#include "golden.hpp"

#include <string>
#include <tuple>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "device_cases.hpp"
#include "stage_chain.hpp"

namespace troupe::stages {
namespace {

ChainProps props_from(const nlohmann::json& golden) {
  const auto& train = golden.at("train");
  return {.model = model_from(golden),
          .layers_per_stage = {1, 2},
          .microbatch_count = train.at("microbatches"),
          .microbatch_size = train.at("microbatch_size"),
          .order = BackwardOrder::whole,
          .train = train_config_from(golden)};
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
  const auto props = props_from(golden);
  const auto device = device_case.make();
  StageChain chain{*device, props};
  for (std::uint32_t step = 0; step < props.train.steps; ++step) {
    SCOPED_TRACE("step " + std::to_string(step + 1));
    const auto outcome =
        chain.train(make_batch(props.model, props.microbatch_count, props.microbatch_size,
                               golden.at("train").at("data_seed"), step));
    expect_step(golden, step, outcome.loss, outcome.gradient_norm);
  }
  const auto& weights = golden.at("weights");
  const auto parameters = chain.parameters();
  EXPECT_EQ(parameters.size(), weights.size());
  for (const auto& parameter : parameters) {
    SCOPED_TRACE(parameter.spec->name);
    expect_weights(parameter.spec->name, copy_of(*device, parameter.values),
                   weights.at(parameter.spec->name));
  }
}

}  // namespace
}  // namespace troupe::stages
