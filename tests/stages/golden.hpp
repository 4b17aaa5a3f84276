// tests/stages/golden.hpp -- reads tests/stages/golden/*.json and compares trainings with them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "troupe/engine/config.hpp"
#include "troupe/engine/model_spec.hpp"

namespace troupe::stages {

/// How far from PyTorch's values a training may be, relative to their size.
inline constexpr double golden_tolerance = 1e-4;

inline nlohmann::json read_golden(const std::string& name) {
  std::ifstream file{std::string{TROUPE_GOLDEN_DIR} + '/' + name + ".json"};
  return nlohmann::json::parse(file);
}

inline ModelSpec model_from(const nlohmann::json& golden) {
  const auto& from = golden.at("model");
  return {.layers = from.at("layers"),
          .heads = from.at("heads"),
          .hidden = from.at("hidden"),
          .sequence = from.at("sequence"),
          .vocabulary = from.at("vocabulary"),
          .tie_embeddings = from.at("tie_embeddings")};
}

inline TrainConfig train_config_from(const nlohmann::json& golden) {
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
  return train;
}

/// Expects the loss and the gradient norm (before clipping) of a step, counted from 0.
inline void expect_step(const nlohmann::json& golden, std::uint32_t step, double loss,
                        double gradient_norm) {
  const double expected_loss = golden.at("losses").at(step);
  const double expected_norm = golden.at("gradient_norms").at(step);
  EXPECT_NEAR(loss, expected_loss, golden_tolerance * expected_loss);
  EXPECT_NEAR(gradient_norm, expected_norm, golden_tolerance * expected_norm);
}

/// A bias of the keys shifts all scores of a query alike, which softmax ignores: its gradient is
/// rounding noise, and AdamW scales noise up to steps that no two programs share.
inline std::vector<float> without_key_bias(const std::string& name, std::span<const float> all) {
  std::vector<float> values(all.begin(), all.end());
  if (!name.ends_with("c_attn.bias")) return values;
  const auto third = static_cast<std::ptrdiff_t>(values.size() / 3);
  values.erase(values.begin() + third, values.begin() + 2 * third);
  return values;
}

/// Expects what `digest` says of the parameter called `name` after the last step.
inline void expect_weights(const std::string& name, std::span<const float> all,
                           const nlohmann::json& digest) {
  const auto values = without_key_bias(name, all);
  double sum = 0.0;
  double squares = 0.0;
  for (const auto value : values) {
    sum += value;
    squares += double{value} * value;
  }
  const double rms = std::sqrt(squares / static_cast<double>(values.size()));
  // Relative to what such a sum of as many independent elements is in size.
  EXPECT_NEAR(sum, digest.at("sum").get<double>(),
              golden_tolerance * std::max(std::abs(sum), std::sqrt(squares)));
  EXPECT_NEAR(squares, digest.at("squares").get<double>(), golden_tolerance * squares);
  const std::size_t stride = digest.at("stride");
  std::size_t index = 0;
  for (const double expected : digest.at("elements")) {
    EXPECT_NEAR(values[index], expected, golden_tolerance * std::max(std::abs(expected), rms))
        << "element " << index;
    index += stride;
  }
}

}  // namespace troupe::stages
