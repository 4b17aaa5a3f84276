// tests/stages/golden.hpp -- reads tests/stages/golden/* and compares trainings with them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "troupe/engine/config.hpp"
#include "troupe/engine/model_layout.hpp"
#include "troupe/engine/model_spec.hpp"
#include "troupe/storage/safetensors.hpp"

#include "../engine/custom_layers.hpp"

namespace troupe::stages {

/// How far from PyTorch's values a training may be.
struct GoldenTolerance {
  double of_steps;    ///< Relative to a loss or a norm.
  double of_weights;  ///< Relative to the change of the weight.
};

/// In fp32 five times what the kernels here are apart from PyTorch's. Where operands are rounded,
/// what is apart in the last digit of an fp32 may fall on other sides of a tie: in bf16 norms are
/// then up to 5e-5 apart. From a training in fp32 norms are 7e-5 apart at first in fp16, and in
/// each of the trainings in bf16 at least 4e-4 at some step.
inline GoldenTolerance tolerance_of(Precision precision) {
  switch (precision) {
    case Precision::fp32:
      return {.of_steps = 1e-4, .of_weights = 1e-4};
    case Precision::fp16:
      return {.of_steps = 3e-5, .of_weights = 1e-2};
    case Precision::bf16:
      return {.of_steps = 1e-4, .of_weights = 1e-2};
  }
  return {};
}

inline nlohmann::json read_golden(const std::string& name) {
  std::ifstream file{std::string{TROUPE_GOLDEN_DIR} + '/' + name + ".json"};
  return nlohmann::json::parse(file);
}

inline storage::SafetensorsFile read_golden_weights(const std::string& name) {
  const auto path = std::string{TROUPE_GOLDEN_DIR} + '/' + name + ".safetensors";
  return storage::SafetensorsFile::open(path).value();
}

inline ModelSpec model_from(const nlohmann::json& golden) {
  const auto& from = golden.at("model");
  const auto place_of = [&](const char* key, std::span<const std::string_view> names,
                            const char* otherwise) {
    return std::ranges::find(names, from.value(key, otherwise)) - names.begin();
  };
  const auto family = static_cast<Family>(place_of("family", family_names, ""));
  return {.family = family,
          .layers = from.at("layers"),
          .heads = from.at("heads"),
          .hidden = from.at("hidden"),
          .sequence = from.at("sequence"),
          .vocabulary = from.at("vocabulary"),
          .tie_embeddings = from.at("tie_embeddings"),
          .kv_heads = from.at("kv_heads"),
          .feed_forward = from.at("feed_forward"),
          .norm_epsilon = from.value("norm_epsilon", 1e-5),
          .task = static_cast<Task>(place_of("task", task_names, "masked")),
          .classes = from.value("classes", 0U),
          .dropout = from.value("dropout", 0.0),
          .attention_dropout = from.value("attention_dropout", 0.0),
          .custom_layer = family == Family::custom ? parallel_block() : nullptr};
}

inline TrainConfig train_config_from(const nlohmann::json& golden) {
  const auto& from = golden.at("train");
  TrainConfig train;
  train.steps = from.at("steps");
  train.seed = from.at("seed");
  const std::map<std::string, OptimizerKind> kinds{{"adamw", OptimizerKind::adamw},
                                                   {"sgd", OptimizerKind::sgd},
                                                   {"adam", OptimizerKind::adam},
                                                   {"adafactor", OptimizerKind::adafactor}};
  train.optimizer = kinds.at(from.at("optimizer"));
  train.learning_rate = from.at("learning_rate");
  train.min_learning_rate = from.at("min_learning_rate");
  train.warmup_steps = from.at("warmup_steps");
  train.clip_norm = from.at("clip_norm");
  train.weight_decay = from.at("weight_decay");
  train.momentum = from.value("momentum", 0.0);
  train.beta1 = from.value("beta1", 0.0);
  train.beta2 = from.value("beta2", 0.0);
  train.epsilon = from.value("epsilon", 1e-8);
  train.precision =
      static_cast<Precision>(std::ranges::find(precision_names, from.value("precision", "fp32"))
                             - precision_names.begin());
  train.loss_scale = from.value("loss_scale", 1.0);
  return train;
}

/// Expects the loss and the gradient norm (before clipping) of a step, counted from 0.
inline void expect_step(const nlohmann::json& golden, std::uint32_t step, double loss,
                        double gradient_norm) {
  const double expected_loss = golden.at("losses").at(step);
  const double expected_norm = golden.at("gradient_norms").at(step);
  const auto tolerance = tolerance_of(train_config_from(golden).precision).of_steps;
  EXPECT_NEAR(loss, expected_loss, tolerance * expected_loss);
  EXPECT_NEAR(gradient_norm, expected_norm, tolerance * expected_norm);
}

/// How much the training changed a tensor: the root mean square over its elements.
inline double change_of(std::span<const float> before, std::span<const float> after) {
  double squares = 0.0;
  for (std::size_t i = 0; i < before.size(); ++i) {
    squares += std::pow(double{after[i]} - before[i], 2);
  }
  return std::sqrt(squares / static_cast<double>(before.size()));
}

/// Whether the element's true gradient is zero. A bias of the keys, in GPT-2 the middle third,
/// shifts all scores of a query alike, which softmax ignores: its gradient is nothing but rounding.
inline bool has_no_gradient(const std::string& name, std::size_t index, std::size_t count) {
  return name.ends_with("self.key.bias")
         || (name.ends_with("c_attn.bias") && 3 * index / count == 1);
}

/// Expects every element of a parameter after the last step, given what all were before the first:
/// `tolerance_of` relative to what PyTorch changed in that tensor, and four units in the last place
/// for the roundings of so many steps. That is far less than as much of the weight: most
/// of a weight is still its initial value, which both programs share.
///
/// All but SGD divide a gradient by its own size, and so make steps of mere rounding that no two
/// programs share: of the biases of the keys it is expected only that they stay smaller than the
/// changes of their neighbours, or, where they are a parameter of their own, next to nothing. Under
/// SGD they are compared like all others, unless they are a parameter of their own, whose change is
/// nothing but rounding.
inline void expect_weights(const storage::SafetensorsFile& golden, const TrainConfig& train,
                           const ParameterSpec& spec, std::span<const float> before,
                           std::span<const float> after) {
  SCOPED_TRACE(spec.name);
  const auto* const tensor = golden.find(spec.name);
  ASSERT_NE(tensor, nullptr);
  ASSERT_EQ(tensor->dtype, storage::DType::f32);
  ASSERT_EQ(tensor->shape, spec.shape);
  std::vector<float> expected(after.size());
  ASSERT_EQ(tensor->bytes.size(), std::as_bytes(std::span{expected}).size());
  std::memcpy(expected.data(), tensor->bytes.data(), tensor->bytes.size());

  const auto change = change_of(before, expected);
  const bool is_alone = !spec.name.ends_with("c_attn.bias");
  const auto noise = is_alone ? 1e-6 : change;
  const auto closeness = tolerance_of(train.precision).of_weights;
  constexpr auto rounding = 4.0 * std::numeric_limits<float>::epsilon();
  std::size_t wrong_count = 0;
  for (std::size_t i = 0; i < after.size(); ++i) {
    const bool is_noise = has_no_gradient(spec.name, i, after.size())
                          && (train.optimizer != OptimizerKind::sgd || is_alone);
    const auto tolerance =
        (is_noise ? noise : closeness * change) + rounding * std::abs(expected[i]);
    const bool is_near = std::abs(double{after[i]} - expected[i]) <= tolerance;  // NaN is not.
    if (is_near || ++wrong_count > 1) continue;
    ADD_FAILURE() << "element " << i << " is " << after[i] << ", expected " << expected[i] << " +- "
                  << tolerance;
  }
  EXPECT_EQ(wrong_count, 0U) << "of " << after.size() << " elements";
}

}  // namespace troupe::stages
