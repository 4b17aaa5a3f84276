// Gradients against finite differences, on the reference kernels.
//
// With f computed from 32-bit activations, f has a relative error of about 1e-7. The four-point
// difference with step h errs by h^4 / 30 of the fifth derivative, which norms over few elements
// make large, and by about 1e-7 / h: with h = 0.005 and weights of size 0.3 both stay below 1e-4.
// The gradients are of size 0.01 to 1; a missing or wrong term of any of them is far above the
// tolerance of 2e-3 of the largest element of the same tensor plus 2e-5.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>

#include <gtest/gtest.h>

#include "troupe/engine/random.hpp"

#include "../engine/custom_layers.hpp"
#include "../scope.hpp"
#include "custom_kernels.hpp"
#include "inline_device.hpp"
#include "stage_chain.hpp"

namespace troupe::stages {
namespace {

constexpr float step_size = 0.005F;

ModelSpec gpt2(bool tie) {
  return {
      .layers = 3, .heads = 2, .hidden = 6, .sequence = 4, .vocabulary = 7, .tie_embeddings = tie};
}

ModelSpec llama(bool tie) {
  return {.family = Family::llama,
          .layers = 3,
          .heads = 4,
          .hidden = 8,
          .sequence = 4,
          .vocabulary = 7,
          .tie_embeddings = tie,
          .kv_heads = 2,
          .feed_forward = 5};
}

ModelSpec bert(bool tie) {
  return {.family = Family::bert,
          .layers = 3,
          .heads = 2,
          .hidden = 6,
          .sequence = 4,
          .vocabulary = 7,
          .tie_embeddings = tie,
          .feed_forward = 9};
}

ModelSpec custom(std::shared_ptr<const CustomLayer> layer) {
  auto model = gpt2(false);
  model.family = Family::custom;
  model.hidden = 8;
  model.feed_forward = 5;
  model.custom_layer = std::move(layer);
  return model;
}

ModelSpec classifier() {
  auto model = bert(false);
  model.task = Task::classification;
  model.classes = 3;
  return model;
}

/// One stage and one microbatch. The loss is the model's on a stage with the head; elsewhere it is
/// the product of the output with a fixed direction.
class Probe {
public:
  Probe(const ModelSpec& model, StageSpec spec, bool splits)
      : spec_{spec},
        splits_{splits},
        drops_{model.dropout > 0.0},
        sends_tied_{model.tie_embeddings && spec.has_embedding != spec.has_head},
        rows_{microbatch_size * model.sequence},
        batch_{make_batch(model, 1, microbatch_size, 5, 0)} {
    const StageBounds bounds{.slots = 1,
                             .activations_in = spec.has_embedding ? 0U : 1U,
                             .activations_out = spec.has_head ? 0U : 1U,
                             .gradients_in = spec.has_head ? 0U : 1U,
                             .gradients_out = spec.has_embedding ? 0U : 1U,
                             .splits_backward = splits};
    stage_ = make_transformer_stage(device_, stream_,
                                    {.model = model,
                                     .spec = spec,
                                     .bounds = bounds,
                                     .microbatch_count = 1,
                                     .microbatch_size = microbatch_size,
                                     .train = {},
                                     .custom_kernels = custom_kernels()})
                 .value();
    // Weights larger than a training begins with, and no two equal: every term counts.
    for (const auto& parameter : stage_->parameters()) {
      const bool is_gain = parameter.spec->initial == Initial::ones;
      for (std::size_t i = 0; i < parameter.values.size(); ++i) {
        parameter.values[i] =
            (is_gain ? 1.0F : 0.0F) + 0.3F * initial_normal(11, parameter.spec->name, i);
      }
    }
    input_ = random_vector("input", spec.has_embedding ? 0 : rows_ * model.hidden);
    direction_ = random_vector("direction", spec.has_head ? 0 : rows_ * model.hidden);
  }

  /// The loss of a forward pass: of an evaluation, for which nothing is kept, or, as only that
  /// drops anything, of a training, whose backward pass then frees the memory.
  double loss() {
    begin(drops_ ? StepKind::training : StepKind::evaluation);
    forward();
    const double found = spec_.has_head ? stage_->losses()[0] / batch_.target_count : take_output();
    if (drops_) run_backward();
    return found;
  }

  /// Leaves the gradients of the parameters in their place and returns that of the input.
  std::vector<float> backward() {
    begin(StepKind::training);
    forward();
    if (!spec_.has_head) take_output();
    return run_backward();
  }

  std::span<const ParameterView> parameters() { return stage_->parameters(); }
  std::span<float> input() { return input_; }

private:
  static constexpr std::uint32_t microbatch_size = 2;

  /// Its product with the direction.
  double take_output() {
    double sum = 0.0;
    take(Edge::activation_out, [&](std::span<float> output) {
      for (std::size_t i = 0; i < output.size(); ++i) sum += double{output[i]} * direction_[i];
    });
    return sum;
  }

  std::vector<float> run_backward() {
    if (!spec_.has_head) hold(Edge::gradient_in, direction_);
    run_pass(*stage_, stream_, splits_ ? Pass::backward_input : Pass::backward, 0);
    std::vector<float> gradient;
    if (!spec_.has_embedding) {
      take(Edge::gradient_out, [&](std::span<float> d) { gradient.assign(d.begin(), d.end()); });
    }
    if (splits_) run_pass(*stage_, stream_, Pass::backward_weight, 0);
    if (sends_tied_) take(Edge::tied_out, [](std::span<float>) {});
    return gradient;
  }

  static std::vector<float> random_vector(const char* name, std::size_t count) {
    std::vector<float> values(count);
    for (std::size_t i = 0; i < count; ++i) values[i] = 0.5F * initial_normal(3, name, i);
    return values;
  }

  void begin(StepKind kind) { stage_->begin_step({.step = 0, .kind = kind, .batch = &batch_}); }

  void forward() {
    if (!spec_.has_embedding) hold(Edge::activation_in, input_);
    run_pass(*stage_, stream_, Pass::forward, 0);
  }

  void hold(Edge edge, std::span<const float> values) {
    auto buffer = stage_->buffers().take_free(edge);
    std::memcpy(buffer.data(), values.data(), values.size_bytes());
    stage_->buffers().hold(edge, MicrobatchIndex{0}, std::move(buffer));
  }

  void take(Edge edge, const std::function<void(std::span<float>)>& read) {
    auto buffer = stage_->buffers().release(edge, MicrobatchIndex{0});
    read({reinterpret_cast<float*>(buffer.data()), buffer.size_bytes() / sizeof(float)});
    stage_->buffers().give_free(edge, std::move(buffer));
  }

  StageSpec spec_;
  bool splits_;
  bool drops_;
  bool sends_tied_;
  std::uint32_t rows_;
  Batch batch_;
  InlineDevice device_;
  InlineStream stream_;
  std::unique_ptr<TransformerStage> stage_;
  std::vector<float> input_;
  std::vector<float> direction_;
};

/// The derivative of the loss with respect to `x`, by four points.
double difference(Probe& probe, float& x) {
  const float at = x;
  const auto loss_at = [&](float offset) {
    x = at + offset;
    const double loss = probe.loss();
    x = at;
    return loss;
  };
  return (8.0 * (loss_at(step_size) - loss_at(-step_size))
          - (loss_at(2 * step_size) - loss_at(-2 * step_size)))
         / (12.0 * double{step_size});
}

void expect_gradient(Probe& probe, const std::string& name, std::span<float> values,
                     std::span<const float> gradient) {
  ASSERT_EQ(values.size(), gradient.size());
  const double largest =
      std::abs(*std::ranges::max_element(gradient, {}, [](float g) { return std::abs(g); }));
  for (std::size_t i = 0; i < values.size(); i += scope(1U, 5U)) {
    ASSERT_NEAR(gradient[i], difference(probe, values[i]), 2e-3 * largest + 2e-5)
        << name << " [" << i << "], largest " << largest;
  }
}

/// Checks every element of every parameter and of the input, but under a sanitizer.
void expect_gradients(const ModelSpec& model, StageSpec spec, bool splits) {
  SCOPED_TRACE(std::string{family_names[static_cast<std::size_t>(model.family)]}
               + (model.classifies() ? ", classification" : "")
               + (model.dropout > 0.0 ? ", dropout" : "")
               + (model.tie_embeddings ? ", tied" : ", untied") + (splits ? ", split" : ", whole"));
  Probe probe{model, spec, splits};
  const auto input_gradient = probe.backward();
  std::vector<std::vector<float>> gradients;
  for (const auto& parameter : probe.parameters()) {
    gradients.emplace_back(parameter.gradients.begin(), parameter.gradients.end());
  }
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    const auto& parameter = probe.parameters()[i];
    expect_gradient(probe, parameter.spec->name, parameter.values, gradients[i]);
  }
  if (!input_gradient.empty()) expect_gradient(probe, "input", probe.input(), input_gradient);
}

void expect_gradients(bool tie, StageSpec spec) {
  std::vector models{gpt2(tie), llama(tie), bert(tie)};
  if (!tie) models.push_back(classifier());
  for (auto model : models) {
    for (const bool splits : {false, true}) expect_gradients(model, spec, splits);
    model.dropout = 0.3;
    model.attention_dropout = 0.2;
    expect_gradients(model, spec, false);
  }
}

TEST(Gradient, OfALayerIsTheDifferenceQuotient) {
  expect_gradients(true, {.layer_begin = 1, .layer_end = 2});
}

TEST(Gradient, OfTwoLayersIsTheDifferenceQuotient) {
  expect_gradients(true, {.layer_begin = 1, .layer_end = 3});
}

TEST(Gradient, OfTheEmbeddingIsTheDifferenceQuotient) {
  expect_gradients(true, {.layer_begin = 0, .layer_end = 1, .has_embedding = true});
}

TEST(Gradient, OfTheHeadIsTheDifferenceQuotient) {
  for (const bool tie : {true, false}) {
    expect_gradients(tie, {.layer_begin = 2, .layer_end = 3, .has_head = true});
  }
}

TEST(Gradient, OfAWholeModelIsTheDifferenceQuotient) {
  for (const bool tie : {true, false}) {
    expect_gradients(tie,
                     {.layer_begin = 0, .layer_end = 2, .has_embedding = true, .has_head = true});
  }
}

TEST(Gradient, OfALayerOfOnesOwnIsTheDifferenceQuotient) {
  for (const auto& layer : {parallel_block(), tangle()}) {
    auto model = custom(layer);
    for (const double dropout : {0.0, 0.3}) {
      model.dropout = dropout;
      model.attention_dropout = dropout;
      for (const bool splits : {false, true}) {
        SCOPED_TRACE(layer->name);
        expect_gradients(model, {.layer_begin = 1, .layer_end = 2}, splits);
        expect_gradients(model, {.layer_begin = 1, .layer_end = 3}, splits);
        expect_gradients(
            model, {.layer_begin = 0, .layer_end = 1, .has_embedding = true, .has_head = true},
            splits);
      }
    }
  }
}

}  // namespace
}  // namespace troupe::stages
