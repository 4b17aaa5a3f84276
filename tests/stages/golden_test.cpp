// Trainings against PyTorch's: tests/stages/golden, made by scripts/make_golden.py from the same
// initial weights and data. On every device of the tests, and on every instruction set of this
// processor.

#include "golden.hpp"

#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "custom_kernels.hpp"
#include "device_cases.hpp"
#include "isa.hpp"
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
          .train = train_config_from(golden),
          .custom_kernels = custom_kernels()};
}

struct NamedDevice {
  std::string name;
  std::function<std::unique_ptr<Device>()> make;

  friend std::ostream& operator<<(std::ostream& out, const NamedDevice& device) {
    return out << device.name;
  }
};

std::vector<NamedDevice> devices() {
  std::vector<NamedDevice> result;
  for (const auto& device : device_cases()) result.push_back({device.name, device.make});
  for (const auto* const isa : available_isas()) {
    if (isa == available_isas().back()) continue;  // The device takes it of itself.
    result.push_back({std::string{"cpu_"} + isa->name, [isa] { return make_cpu_device(*isa); }});
  }
  return result;
}

class Golden : public testing::TestWithParam<std::tuple<NamedDevice, const char*>> {};

INSTANTIATE_TEST_SUITE_P(
    Trainings, Golden,
    testing::Combine(testing::ValuesIn(devices()),
                     testing::Values("tied_adamw", "untied_adamw", "tied_sgd", "tied_sgd_fp16",
                                     "llama_adamw", "tied_llama_sgd", "untied_adam",
                                     "llama_adafactor", "bert_adamw", "bert_classes_adamw",
                                     "dropout_adamw", "llama_dropout_sgd",
                                     "bert_classes_dropout_adamw", "parallel_block_adamw",
                                     "tied_sgd_bf16", "llama_sgd_bf16", "bert_sgd_bf16",
                                     "bert_classes_sgd_bf16")),
    [](const auto& test) { return std::get<0>(test.param).name + '_' + std::get<1>(test.param); });

std::vector<std::vector<float>> values_of(Device& device, StageChain& chain) {
  std::vector<std::vector<float>> values;
  for (const auto& parameter : chain.parameters()) {
    values.push_back(copy_of(device, parameter.values));
  }
  return values;
}

TEST_P(Golden, TrainingAgreesWithPyTorch) {
  const auto& [device_case, name] = GetParam();
  const auto golden = read_golden(name);
  const auto props = props_from(golden);
  const auto device = device_case.make();
  StageChain chain{*device, props};
  const auto before = values_of(*device, chain);
  for (std::uint32_t step = 0; step < props.train.steps; ++step) {
    SCOPED_TRACE("step " + std::to_string(step + 1));
    const auto outcome =
        chain.train(make_batch(props.model, props.microbatch_count, props.microbatch_size,
                               golden.at("train").at("data_seed"), step));
    expect_step(golden, step, outcome.loss, outcome.gradient_norm);
  }
  const auto weights = read_golden_weights(name);
  const auto after = values_of(*device, chain);
  const auto parameters = chain.parameters();
  ASSERT_EQ(parameters.size(), weights.tensors().size());
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    expect_weights(weights, props.train, *parameters[i].spec, before[i], after[i]);
  }
}

}  // namespace
}  // namespace troupe::stages
