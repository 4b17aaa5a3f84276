// Trainings by several shards, each in a thread of its own, against the training by one.

#include <cmath>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/transport/in_process.hpp"

#include "../engine/custom_layers.hpp"
#include "../scope.hpp"
#include "custom_kernels.hpp"
#include "inline_device.hpp"
#include "stage_chain.hpp"

namespace troupe::stages {
namespace {

constexpr std::uint32_t step_count = scope(6U, 3U);

struct Trained {
  std::vector<double> losses;
  double validation_loss = 0.0;
  std::vector<std::vector<float>> weights;  ///< By owned parameter, whole.
};

ChainProps props_of(Family family, bool tie, std::vector<std::uint32_t> layers_per_stage) {
  TrainConfig train;
  train.steps = 10;
  train.warmup_steps = 2;
  train.optimizer = OptimizerKind::sgd;
  train.learning_rate = 0.5;
  train.clip_norm = 0.0;  // A shard alone does not know the norm.
  return {.model = {.family = family,
                    .layers = 3,
                    .heads = 6,
                    .hidden = 12,
                    .sequence = 5,
                    .vocabulary = 11,
                    .tie_embeddings = tie,
                    .kv_heads = family == Family::llama ? 3U : 0U,
                    .feed_forward = 18},
          .layers_per_stage = std::move(layers_per_stage),
          .microbatch_count = 2,
          .microbatch_size = 2,
          .train = train};
}

/// What one shard does, and its weights where they are in the whole.
void train_shard(const ChainProps& props, Trained& trained) {
  InlineDevice device;
  StageChain chain{device, props};
  const auto batch = [&](std::uint32_t step) {
    return make_batch(props.model, props.microbatch_count, props.microbatch_size, 21, step);
  };
  for (std::uint32_t step = 0; step < step_count; ++step) {
    trained.losses.push_back(chain.train(batch(0)).loss);
  }
  trained.validation_loss = chain.evaluate(batch(1));
  for (const auto& parameter : chain.parameters()) {
    trained.weights.emplace_back(parameter.values.begin(), parameter.values.end());
  }
}

/// Trains by `shard_count` shards and puts together what they hold.
Trained train(ChainProps props, std::uint32_t shard_count) {
  if (shard_count == 1) {
    Trained trained;
    train_shard(props, trained);
    return trained;
  }
  const auto group = transport::make_in_process_group(shard_count);
  std::vector<Trained> parts(shard_count);
  std::vector<InlineStream> streams(shard_count);
  {
    std::vector<std::jthread> threads;
    for (std::uint32_t i = 0; i < shard_count; ++i) {
      props.peers.shards = {.group = group[i].get(), .stream = &streams[i]};
      threads.emplace_back([props, &part = parts[i]] { train_shard(props, part); });
    }
  }
  auto trained = parts[0];
  const auto whole = parameters_of(props.model);
  const auto stage_count = static_cast<std::uint32_t>(props.layers_per_stage.size());
  const auto partition = partition_of(props.model, stage_count, props.layers_per_stage).value();
  for (std::uint32_t shard = 0; shard < shard_count; ++shard) {
    EXPECT_EQ(parts[shard].losses, parts[0].losses);
    std::size_t next = 0;
    for (const auto& stage : partition) {
      for (const auto& spec : parameters_of(props.model, stage, {shard, shard_count})) {
        if (!spec.owned) continue;
        auto& values = trained.weights[next];
        values.resize(whole[next].element_count());
        const auto& part = parts[shard].weights[next++];
        for (const auto& run : runs_of(spec)) {
          for (std::uint64_t k = 0; k < run.count; ++k) {
            values[run.in_whole + k] = part[run.in_part + k];
          }
        }
      }
    }
  }
  return trained;
}

void expect_near(const Trained& actual, const Trained& expected, const ModelSpec& model) {
  ASSERT_EQ(actual.losses.size(), expected.losses.size());
  for (std::size_t i = 0; i < expected.losses.size(); ++i) {
    EXPECT_NEAR(actual.losses[i], expected.losses[i], 1e-5 * expected.losses[i]) << "step " << i;
  }
  EXPECT_NEAR(actual.validation_loss, expected.validation_loss, 1e-5 * expected.validation_loss);
  const auto specs = parameters_of(model);
  for (std::size_t p = 0; p < specs.size(); ++p) {
    double largest = 0.0;
    for (const float value : expected.weights[p])
      largest = std::max(largest, std::abs(double{value}));
    ASSERT_EQ(actual.weights[p].size(), expected.weights[p].size()) << specs[p].name;
    for (std::size_t i = 0; i < expected.weights[p].size(); ++i) {
      // The biases of a BERT's keys have no gradient: they are nothing but roundings.
      ASSERT_NEAR(actual.weights[p][i], expected.weights[p][i], 1e-5 * largest + 1e-11)
          << specs[p].name << " [" << i << "]";
    }
  }
}

TEST(Shards, TrainAsOneDoesWhateverTheirNumber) {
  for (const auto family : {Family::gpt2, Family::llama, Family::bert}) {
    for (const bool tie : {true, false}) {
      const auto props = props_of(family, tie, {3});
      const auto expected = train(props, 1);
      EXPECT_LT(expected.losses.back(), expected.losses.front());
      for (const auto count : {3U}) {
        SCOPED_TRACE(std::string{family_names[static_cast<std::size_t>(family)]}
                     + (tie ? ", tied" : ", untied") + ", " + std::to_string(count) + " shards");
        expect_near(train(props, count), expected, props.model);
      }
    }
  }
}

/// Masks are those of whole heads and of all rows.
TEST(Shards, DropWhatOneDoes) {
  for (const auto family : {Family::gpt2, Family::llama, Family::bert}) {
    for (const auto recompute : {Recompute::none, Recompute::full}) {
      for (const bool divides_rows : {false, true}) {
        auto props = props_of(family, family != Family::llama, {1, 2});
        props.model.sequence = 6;
        const auto plain = train(props, 1);
        props.model.dropout = 0.1;
        props.model.attention_dropout = 0.2;
        const auto expected = train(props, 1);
        EXPECT_NE(expected.losses, plain.losses);
        props.recompute = recompute;
        props.train.sequence_parallel = divides_rows;
        SCOPED_TRACE(std::string{family_names[static_cast<std::size_t>(family)]} + ", recompute "
                     + std::string{recompute_names[static_cast<std::size_t>(recompute)]}
                     + (divides_rows ? ", rows divided" : ""));
        expect_near(train(props, 3), expected, props.model);
      }
    }
  }
}

TEST(Shards, ClassifyAsOneDoes) {
  for (const bool divides_rows : {false, true}) {
    auto props = props_of(Family::bert, false, {1, 2});
    props.model.sequence = 6;
    props.model.task = Task::classification;
    props.model.classes = 3;
    props.model.dropout = 0.1;
    const auto expected = train(props, 1);
    EXPECT_LT(expected.losses.back(), expected.losses.front());
    props.train.sequence_parallel = divides_rows;
    expect_near(train(props, 3), expected, props.model);
  }
}

TEST(Shards, ThatDivideRowsTrainAsOneDoes) {
  for (const auto family : {Family::gpt2, Family::llama, Family::bert}) {
    for (const auto recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
      for (const auto order : {BackwardOrder::whole, BackwardOrder::weights_last}) {
        auto props = props_of(family, family != Family::llama, {1, 2});
        props.model.sequence = 6;  // Twelve rows: each of three shards has four.
        props.order = order;
        const auto expected = train(props, 1);
        props.recompute = recompute;
        props.train.sequence_parallel = true;
        SCOPED_TRACE(std::string{family_names[static_cast<std::size_t>(family)]} + ", recompute "
                     + std::string{recompute_names[static_cast<std::size_t>(recompute)]});
        expect_near(train(props, 3), expected, props.model);
      }
    }
  }
}

/// Its averages and norms are of whole matrices. A Llama, because it blows the biases of GPT-2's
/// keys, whose gradients are mere rounding, up to whole steps.
TEST(Shards, StepAdafactorAsOneDoes) {
  auto props = props_of(Family::llama, true, {1, 2});
  props.train.optimizer = OptimizerKind::adafactor;
  props.train.learning_rate = 0.02;
  const auto expected = train(props, 1);
  EXPECT_LT(expected.losses.back(), expected.losses.front());
  expect_near(train(props, 3), expected, props.model);
}

TEST(Shards, GiveTheSameBitsHoweverTheModelIsCutTheBackwardPassOrderedAndWhatItRecomputes) {
  for (const auto family : {Family::gpt2, Family::llama, Family::bert}) {
    const auto expected = train(props_of(family, true, {3}), 3);
    for (const auto recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
      for (const auto order :
           {BackwardOrder::whole, BackwardOrder::split, BackwardOrder::weights_last}) {
        auto props = props_of(family, true, {1, 2});
        props.recompute = recompute;
        props.order = order;
        const auto actual = train(props, 3);
        EXPECT_EQ(actual.losses, expected.losses);
        EXPECT_TRUE(actual.weights == expected.weights)
            << "recompute " << static_cast<int>(recompute) << ", order " << static_cast<int>(order);
      }
    }
  }
}

/// Whoever reads its values: products that the shards divide, others, residuals.
TEST(Shards, TrainALayerOfOnesOwnAsOneDoes) {
  for (const auto& layer : {parallel_block(), tangle()}) {
    for (const double dropout : {0.0, 0.1}) {
      auto props = props_of(Family::custom, true, {1, 2});
      props.model.custom_layer = layer;
      props.model.sequence = 6;
      props.model.dropout = dropout;
      props.train.learning_rate = 0.1;
      props.custom_kernels = custom_kernels();
      const auto expected = train(props, 1);
      EXPECT_LT(expected.losses.back(), expected.losses.front());
      for (const auto recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
        for (const bool divides_rows : {false, true}) {
          for (const auto order :
               {BackwardOrder::whole, BackwardOrder::split, BackwardOrder::weights_last}) {
            props.recompute = recompute;
            props.train.sequence_parallel = divides_rows;
            props.order = order;
            SCOPED_TRACE(layer->name + ", recompute "
                         + std::string{recompute_names[static_cast<std::size_t>(recompute)]}
                         + (divides_rows ? ", rows divided" : "")
                         + (dropout > 0.0 ? ", dropout" : "") + ", order "
                         + std::to_string(static_cast<int>(order)));
            const auto serial = train(props, 1);
            EXPECT_EQ(serial.losses, expected.losses);
            EXPECT_TRUE(serial.weights == expected.weights);
            expect_near(train(props, 3), expected, props.model);
          }
        }
      }
    }
  }
}

/// Whatever the validator takes. Small steps, since a layer may be as steep as it happens to be.
TEST(Shards, TrainAnyLayerAsOneDoes) {
  constexpr std::uint64_t layer_count = 40;
  for (std::uint64_t seed = 1; seed <= layer_count; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    auto props = props_of(Family::custom, seed % 2 == 0, {1, 2});
    props.model.custom_layer = random_layer(seed);
    props.model.sequence = 6;
    props.model.dropout = seed % 5 == 0 ? 0.1 : 0.0;
    props.train.learning_rate = 1e-3;
    props.custom_kernels = custom_kernels();
    Config config;
    config.model = props.model;
    config.model.vocabulary = 256;
    config.parallel.tensor = 3;
    const auto valid = validate(config);
    ASSERT_TRUE(valid) << valid.error().context;
    const auto expected = train(props, 1);
    props.recompute = static_cast<Recompute>(seed % 3);
    props.order = static_cast<BackwardOrder>(seed / 3 % 3);
    const auto serial = train(props, 1);
    EXPECT_EQ(serial.losses, expected.losses);
    EXPECT_TRUE(serial.weights == expected.weights);
    props.train.sequence_parallel = seed % 4 < 2;
    expect_near(train(props, 3), expected, props.model);
  }
}

}  // namespace
}  // namespace troupe::stages
