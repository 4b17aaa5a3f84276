// Defines a transformer layer that troupe does not know, with an operation of its own, and trains a
// model of it alone and on a grid of 2 shards x 2 pipeline ranks: the losses are the same but for
// rounding.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "troupe/actors/trainer.hpp"
#include "troupe/engine/layer_builder.hpp"
#include "troupe/engine/memory.hpp"
#include "troupe/stages/custom_kernel.hpp"

namespace {

// -- the layer ------------------------------------------------------------------------------------

/// The square of what is positive (So et al. 2021, Primer).
const troupe::CustomOperation squared_relu{
    .name = "squared_relu", .forward_flops = 2.0, .backward_flops = 3.0};

/// Attention and feed-forward side by side, both from one norm (Wang & Komatsuzaki 2021, GPT-J).
troupe::ValueIndex append_parallel_block(troupe::LayerBuilder& layer, troupe::ValueIndex x) {
  const auto& model = layer.model();
  const troupe::Product to_residual{.deviation = layer.residual_deviation()};
  const auto norm = layer.layer_norm("ln", x);
  const auto qkv = layer.column_product("attn.qkv", norm, model.hidden, {}, 3);
  const auto attended = layer.attention("attn", layer.rotate(qkv));
  const auto wide = layer.column_product("mlp.up", norm, model.feed_forward_width());
  const auto squared = layer.custom("mlp.act", wide, squared_relu);
  const auto middle = layer.row_product("attn.out", attended, x, to_residual);
  return layer.row_product("mlp.down", squared, middle, to_residual);
}

/// On streams, whose threads call it with some of the rows each.
troupe::stages::CustomKernel squared_relu_kernel() {
  using Rows = troupe::stages::CustomRows;
  return {
      .forward =
          [](const Rows&, std::span<const float> x, std::span<float> y) {
            for (std::size_t i = 0; i < x.size(); ++i) {
              const float positive = std::max(x[i], 0.0F);
              y[i] = positive * positive;
            }
          },
      .backward_input =
          [](const Rows&, std::span<const float> x, std::span<const float> dy,
             std::span<float> dx) {
            for (std::size_t i = 0; i < x.size(); ++i) dx[i] = 2 * std::max(x[i], 0.0F) * dy[i];
          },
  };
}

// -- a training of it -----------------------------------------------------------------------------

constexpr std::string_view text =
    "All the world's a stage, and all the men and women merely players. ";

/// Each sequence reads on from its own place in the sentence, which has no end.
void fill(troupe::StepKind, std::uint32_t step, std::uint32_t, troupe::stages::Batch& batch) {
  for (std::size_t i = 0; i < batch.tokens.size(); ++i) {
    const std::size_t place = step + i + i / batch.sequence * 7;
    batch.tokens[i] = static_cast<unsigned char>(text[place % text.size()]);
    batch.targets[i] = static_cast<unsigned char>(text[(place + 1) % text.size()]);
  }
}

/// The losses of all steps.
troupe::Expected<std::vector<double>> train(const troupe::Config& config) {
  const auto plan = troupe::make_plan(config);
  if (!plan) return plan.error();
  for (const auto& stage : plan->stages) {
    std::printf("stage %u: %u layers, %s on each of %u shards\n", stage.stage.value(),
                stage.spec.layer_count(), troupe::format_bytes(plan->bytes_of(stage.rank)).c_str(),
                plan->shard_count(stage.stage));
  }
  troupe::actors::RankParts parts;
  parts.custom_kernels[squared_relu.name] = squared_relu_kernel();
  const auto trainer = troupe::actors::Trainer::make(*plan, fill, parts);
  if (!trainer) return trainer.error();
  std::vector<double> losses;
  for (std::uint32_t step = 0; step < config.train.steps; ++step) {
    const auto report = (*trainer)->train_step();
    if (!report) return report.error();
    losses.push_back(report->loss);
  }
  return losses;
}

int fail(const troupe::Error& error) {
  std::fprintf(stderr, "custom_layer: %s\n", error.context.c_str());
  return 1;
}

}  // namespace

int main() {
  troupe::CustomLayer layer;
  layer.name = "parallel-block";
  layer.build = append_parallel_block;
  layer.has_positions = false;  // It rotates.

  troupe::Config config;
  config.model = {.family = troupe::Family::custom,
                  .layers = 4,
                  .heads = 4,
                  .hidden = 64,
                  .sequence = 32,
                  .custom_layer = std::make_shared<const troupe::CustomLayer>(layer)};
  config.schedule = {.name = "zb-h1", .microbatches = 4, .microbatch_size = 2};
  // AdamW would make steps of roundings, of words that the text has not.
  config.train = {.steps = 20,
                  .optimizer = troupe::OptimizerKind::sgd,
                  .learning_rate = 0.1,
                  .warmup_steps = 4};
  const auto serial = train(config);
  if (!serial) return fail(serial.error());
  config.parallel = {.data = 1, .tensor = 2, .pipeline = 2};
  config.train.sequence_parallel = true;
  const auto grid = train(config);
  if (!grid) return fail(grid.error());

  double farthest = 0.0;
  for (std::size_t step = 0; step < serial->size(); ++step) {
    const auto apart = std::abs((*grid)[step] - (*serial)[step]) / (*serial)[step];
    farthest = std::max(farthest, apart);
    std::printf("step %2zu  alone %.6f  on the grid %.6f\n", step + 1, (*serial)[step],
                (*grid)[step]);
  }
  if (farthest > 1e-5) return fail({troupe::Errc::internal, "the losses differ"});
  const bool learns = serial->back() < serial->front();
  return learns ? 0 : fail({troupe::Errc::internal, "the layer learns nothing"});
}
