// tests/actors/tiny_training.hpp -- a training small enough to repeat for every grid, bit by bit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/actors/trainer.hpp"
#include "troupe/engine/random.hpp"

#include "../engine/custom_layers.hpp"
#include "../stages/custom_kernels.hpp"

namespace troupe::actors {

inline constexpr std::uint32_t step_count = 8;
inline constexpr std::uint32_t samples_per_step = 24;

inline Config tiny_config(bool tied) {
  Config config;
  config.model = {.layers = 12,
                  .heads = 2,
                  .hidden = 16,
                  .sequence = 8,
                  .vocabulary = 256,
                  .tie_embeddings = tied};
  config.schedule.microbatches = 12;
  config.schedule.microbatch_size = 2;
  config.train.steps = step_count;
  config.train.warmup_steps = 4;
  config.train.learning_rate = 1e-2;
  config.train.weight_decay = 0.01;
  config.train.seed = 7;
  return config;
}

/// The schedule called `name`, with as many chunks as it needs.
inline Expected<Plan> plan_of(Config config, std::string_view name, std::uint32_t ranks) {
  const bool is_looped = name == "interleaved-1f1b" || name == "looped-bfs";
  config.parallel.pipeline = ranks;
  config.schedule.name = name;
  config.schedule.chunks = is_looped ? 2 : 1;
  return make_plan(config);
}

/// What a BERT has of a sequence besides the tokens: the first two it is to tell, the first of them
/// behind a zero; or the class of the first.
inline void fill_bert(const ModelSpec& model, std::uint32_t row, Random& random,
                      stages::Batch& batch) {
  const auto tokens = std::span{batch.tokens}.subspan(std::size_t{row} * model.sequence);
  const auto length = 2 + random.below(model.sequence - 1);
  batch.lengths[row] = static_cast<std::int32_t>(length);
  for (std::uint32_t t = 0; t < model.sequence; ++t) {
    batch.segments[std::size_t{row} * model.sequence + t] = t % 2 == 1 && t < length ? 1 : 0;
  }
  if (model.classifies()) {
    batch.targets[row] = tokens[0] % static_cast<std::int32_t>(model.classes);
    return;
  }
  const auto targets = std::span{batch.targets}.subspan(std::size_t{row} * model.sequence);
  std::ranges::fill(targets.first(model.sequence), -1);
  std::ranges::copy(tokens.first(2), targets.begin());
  tokens[0] = 0;
}

/// Samples that depend on (step, sample) alone: sample g of a step is the same for every grid.
inline BatchSource source_of(const Config& config) {
  if (config.model.family == Family::bert) {
    return
        [config](StepKind kind, std::uint32_t step, std::uint32_t replica, stages::Batch& batch) {
          const auto& model = config.model;
          const auto rows = batch.microbatch_count * batch.microbatch_size;
          for (std::uint32_t row = 0; row < rows; ++row) {
            Random random{(std::uint64_t{step} << 32U) + (std::uint64_t{replica} * rows + row) * 2
                          + (kind == StepKind::training ? 0 : 1)};
            const auto stride = 1 + random.below(3);
            const auto first = random.below(model.vocabulary);
            for (std::uint32_t t = 0; t < model.sequence; ++t) {
              batch.tokens[std::size_t{row} * model.sequence + t] =
                  static_cast<std::int32_t>((first + t * stride) % model.vocabulary);
            }
            fill_bert(model, row, random, batch);
          }
          batch.target_count = config.parallel.data * rows * (model.classifies() ? 1 : 2);
        };
  }
  return [vocabulary = config.model.vocabulary,
          per_replica = config.schedule.microbatches * config.schedule.microbatch_size](
             StepKind kind, std::uint32_t step, std::uint32_t replica, stages::Batch& batch) {
    const auto length = batch.sequence;
    for (std::uint32_t row = 0; row < per_replica; ++row) {
      const std::uint64_t sample = std::uint64_t{replica} * per_replica + row;
      Random random{(std::uint64_t{step} << 32U) + sample * 2
                    + (kind == StepKind::training ? 0 : 1)};
      // A text with something to learn: arithmetic progressions modulo the vocabulary.
      auto token = random.below(vocabulary);
      const auto stride = 1 + random.below(3);
      for (std::uint32_t t = 0; t < length; ++t) {
        batch.tokens[std::size_t{row} * length + t] = static_cast<std::int32_t>(token);
        token = (token + stride) % vocabulary;
        batch.targets[std::size_t{row} * length + t] = static_cast<std::int32_t>(token);
      }
    }
  };
}

/// At which the first steps of these trainings overflow in half precision, and not the later ones.
inline constexpr double overflowing_scale = 0x1p26;

struct Outcome {
  std::vector<double> losses;
  std::vector<double> norms;   ///< 0 of a step that was skipped.
  std::vector<double> scales;  ///< Of the loss.
  std::map<std::string, std::vector<float>> weights;
  friend bool operator==(const Outcome&, const Outcome&) = default;
};

/// Trains as long as the plan says.
inline Outcome train(Trainer& trainer) {
  Outcome outcome;
  const auto& config = trainer.plan().config;
  for (std::uint32_t step = 1; step <= config.train.steps; ++step) {
    const auto report = trainer.train_step();
    EXPECT_TRUE(report.has_value()) << report.error().context;
    if (!report) return outcome;
    outcome.losses.push_back(report->loss);
    outcome.norms.push_back(report->is_skipped ? 0.0 : report->gradient_norm);
    outcome.scales.push_back(report->loss_scale);
  }
  const auto parameters = parameters_of(config.model);
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    auto& values = outcome.weights[parameters[i].name];
    values.resize(parameters[i].element_count());
    EXPECT_TRUE(trainer.read_parameter(i, values));
  }
  return outcome;
}

/// With the kernels of the layers that tests define.
inline RankParts parts_of_tests() {
  RankParts parts;
  parts.custom_kernels = stages::custom_kernels();
  return parts;
}

inline Outcome train(const Expected<Plan>& plan) {
  EXPECT_TRUE(plan.has_value()) << plan.error().context;
  auto trainer = Trainer::make(*plan, source_of(plan->config), parts_of_tests());
  EXPECT_TRUE(trainer.has_value());
  return train(**trainer);
}

inline Outcome train(const Config& config) {
  return train(make_plan(config));
}

}  // namespace troupe::actors
