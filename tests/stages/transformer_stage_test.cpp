#include "troupe/stages/transformer_stage.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstring>
#include <thread>
#include <utility>

#include <gtest/gtest.h>

#include "troupe/stages/cpu_device.hpp"
#include "troupe/transport/in_process.hpp"

#include "../engine/custom_layers.hpp"
#include "allocations.hpp"
#include "custom_kernels.hpp"
#include "device_cases.hpp"
#include "stage_chain.hpp"

namespace troupe::stages {
namespace {

constexpr std::uint64_t data_seed = 21;

ModelSpec small(bool tie, Family family = Family::gpt2) {
  return {.family = family,
          .layers = 6,
          .heads = 2,
          .hidden = 8,
          .sequence = 5,
          .vocabulary = 11,
          .tie_embeddings = tie,
          .kv_heads = family == Family::llama ? 1U : 0U,
          .feed_forward = family == Family::llama ? 12U : 0U,
          .custom_layer = family == Family::custom ? parallel_block() : nullptr};
}

constexpr std::array families{Family::gpt2, Family::llama, Family::bert, Family::custom};

ChainProps props_of(bool tie, std::vector<std::uint32_t> layers_per_stage,
                    BackwardOrder order = BackwardOrder::whole, Family family = Family::gpt2) {
  TrainConfig train;
  train.steps = 10;
  train.warmup_steps = 2;
  train.learning_rate = 0.01;
  train.weight_decay = 0.1;
  return {.model = small(tie, family),
          .layers_per_stage = std::move(layers_per_stage),
          .microbatch_count = 3,
          .microbatch_size = 2,
          .order = order,
          .train = train,
          .custom_kernels = custom_kernels()};
}

ModelSpec dropping(ModelSpec model) {
  model.dropout = 0.1;
  model.attention_dropout = 0.2;
  return model;
}

Batch batch_of(const ChainProps& props, std::uint32_t step) {
  return make_batch(props.model, props.microbatch_count, props.microbatch_size, data_seed, step);
}

/// Everything a training leaves behind.
struct Trace {
  std::vector<StepOutcome> outcomes;
  std::vector<std::vector<float>> gradients;  ///< Of the last step, by owned parameter.
  std::vector<std::vector<float>> weights;

  friend bool operator==(const Trace&, const Trace&) = default;
};

Trace trace_of(Device& device, StageChain& chain, const ChainProps& props,
               std::uint32_t step_count) {
  Trace trace;
  for (std::uint32_t step = 0; step < step_count; ++step) {
    trace.outcomes.push_back(chain.train(batch_of(props, step)));
  }
  for (const auto& parameter : chain.parameters()) {
    trace.gradients.push_back(copy_of(device, parameter.gradients));
    trace.weights.push_back(copy_of(device, parameter.values));
  }
  return trace;
}

/// A stage alone, to be driven by hand.
StageProps alone(bool tie, StageSpec spec, std::uint32_t microbatch_count, bool splits) {
  return {.model = small(tie),
          .spec = spec,
          .bounds = {.slots = microbatch_count,
                     .activations_in = spec.has_embedding ? 0U : microbatch_count,
                     .activations_out = spec.has_head ? 0U : 1U,
                     .gradients_in = spec.has_head ? 0U : microbatch_count,
                     .gradients_out = spec.has_embedding ? 0U : 1U,
                     .splits_backward = splits},
          .microbatch_count = microbatch_count,
          .microbatch_size = 2,
          .train = {},
          .custom_kernels = custom_kernels()};
}

constexpr StageSpec whole{
    .layer_begin = 0, .layer_end = 6, .has_embedding = true, .has_head = true};

std::uint64_t bytes_of(const StageProps& props) {
  std::uint64_t sum = 0;
  for (const auto& item : memory_of(props.shape())) sum += item.bytes;
  return sum;
}

class TransformerStageOn : public testing::TestWithParam<DeviceCase> {
protected:
  /// What a chain leaves after so many steps, on a device of its own: what a kernel takes on the
  /// separate one grows with the memory of all who are there.
  static Trace trained(const ChainProps& props, std::uint32_t step_count) {
    const auto device = GetParam().make();
    StageChain chain{*device, props};
    return trace_of(*device, chain, props, step_count);
  }

  std::unique_ptr<Device> device_ = GetParam().make();
};

INSTANTIATE_TEST_SUITE_P(Devices, TransformerStageOn, testing::ValuesIn(device_cases()),
                         [](const auto& test) { return std::string{test.param.name}; });

TEST_P(TransformerStageOn, TrainsToTheSameBitsHoweverTheModelIsCutAndTheBackwardPassOrdered) {
  for (const auto family : families) {
    for (const bool tie : {true, false}) {
      const auto expected = trained(props_of(tie, {6}, BackwardOrder::whole, family), 4);
      // A BERT has few targets: it learns more slowly.
      if (family != Family::bert) {
        EXPECT_LT(expected.outcomes[3].loss, expected.outcomes[0].loss);
      }
      for (const auto& cut :
           std::vector<std::vector<std::uint32_t>>{{6}, {1, 5}, {2, 2, 2}, {1, 1, 1, 1, 1, 1}}) {
        for (const auto order :
             {BackwardOrder::whole, BackwardOrder::split, BackwardOrder::weights_last}) {
          EXPECT_TRUE(trained(props_of(tie, cut, order, family), 4) == expected)
              << "family " << static_cast<int>(family) << (tie ? ", tied, " : ", untied, ")
              << cut.size() << " stages, order " << static_cast<int>(order);
        }
      }
    }
  }
}

TEST_P(TransformerStageOn, TrainsToTheSameBitsWhateverItRecomputes) {
  for (const auto family : families) {
    const auto expected = trained(props_of(true, {6}, BackwardOrder::whole, family), 4);
    for (const auto recompute : {Recompute::selective, Recompute::full}) {
      for (const auto& cut : std::vector<std::vector<std::uint32_t>>{{6}, {2, 3, 1}}) {
        for (const auto order :
             {BackwardOrder::whole, BackwardOrder::split, BackwardOrder::weights_last}) {
          auto props = props_of(true, cut, order, family);
          props.recompute = recompute;
          EXPECT_TRUE(trained(props, 4) == expected)
              << "family " << static_cast<int>(family) << ", recompute "
              << static_cast<int>(recompute) << ", " << cut.size() << " stages, order "
              << static_cast<int>(order);
        }
      }
    }
  }
}

TEST_P(TransformerStageOn, DropsTheSameElementsHoweverTheModelIsCutOrderedAndRecomputed) {
  for (const auto family : families) {
    auto serial_props = props_of(true, {6}, BackwardOrder::whole, family);
    StageChain without{*device_, serial_props};
    const auto loss_without = without.train(batch_of(serial_props, 0)).loss;
    serial_props.model = dropping(serial_props.model);
    const auto expected = trained(serial_props, 4);
    EXPECT_NE(expected.outcomes[0].loss, loss_without);
    for (const auto recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
      for (const auto order :
           {BackwardOrder::whole, BackwardOrder::split, BackwardOrder::weights_last}) {
        auto props = props_of(true, {2, 3, 1}, order, family);
        props.model = dropping(props.model);
        props.recompute = recompute;
        EXPECT_TRUE(trained(props, 4) == expected)
            << "family " << static_cast<int>(family) << ", recompute "
            << static_cast<int>(recompute) << ", order " << static_cast<int>(order);
      }
    }
  }
}

/// As far as additions allow: gradients of other microbatches are added up in another order.
TEST_P(TransformerStageOn, DropsOfASampleTheSameInAnyMicrobatch) {
  auto props = props_of(true, {6});
  props.model = dropping(props.model);
  StageChain chain{*device_, props};
  const auto expected = trace_of(*device_, chain, props, 3);
  std::swap(props.microbatch_count, props.microbatch_size);
  StageChain other{*device_, props};
  const auto found = trace_of(*device_, other, props, 3);
  for (std::size_t step = 0; step < 3; ++step) {
    const auto& [loss, norm] = expected.outcomes[step];
    EXPECT_NEAR(found.outcomes[step].loss, loss, 1e-5 * loss);
    EXPECT_NEAR(found.outcomes[step].gradient_norm, norm, 1e-4 * norm);
  }
}

TEST_P(TransformerStageOn, DropsOtherElementsInOtherStepsAndUnderOtherSeeds) {
  auto props = props_of(true, {6});
  props.model = dropping(props.model);
  props.train.learning_rate = 0.0;
  const auto batch = batch_of(props, 0);
  StageChain chain{*device_, props};
  const auto first = chain.train(batch);
  EXPECT_NE(chain.train(batch), first);
  StageChain again{*device_, props};
  EXPECT_EQ(again.train(batch), first);
}

TEST_P(TransformerStageOn, DropsNothingWhenItEvaluates) {
  for (const auto family : families) {
    auto props = props_of(true, {2, 4}, BackwardOrder::whole, family);
    const auto batch = batch_of(props, 0);
    StageChain plain{*device_, props};
    const auto expected = plain.evaluate(batch);
    props.model = dropping(props.model);
    StageChain chain{*device_, props};
    EXPECT_NEAR(chain.evaluate(batch), expected, 1e-6 * expected);
  }
}

TEST_P(TransformerStageOn, KeepsBothCopiesOfATiedEmbeddingEqual) {
  const auto props = props_of(true, {2, 2, 2});
  StageChain chain{*device_, props};
  static_cast<void>(trace_of(*device_, chain, props, 3));
  const auto& first = chain.stage(0).parameters().front();
  const auto& last = chain.stage(2).parameters().back();
  ASSERT_EQ(last.spec->name, "wte.weight");
  EXPECT_EQ(copy_of(*device_, first.values), copy_of(*device_, last.values));
  EXPECT_EQ(copy_of(*device_, first.gradients), copy_of(*device_, last.gradients));
}

TEST_P(TransformerStageOn, EvaluatesToTheLossOfTrainingAndLeavesItNoTrace) {
  const auto props = props_of(true, {3, 3});
  StageChain chain{*device_, props};
  StageChain undisturbed{*device_, props};
  const auto loss = chain.evaluate(batch_of(props, 0));
  const auto trace = trace_of(*device_, chain, props, 2);
  EXPECT_EQ(trace, trace_of(*device_, undisturbed, props, 2));
  EXPECT_EQ(loss, trace.outcomes[0].loss);
}

TEST_P(TransformerStageOn, EvaluatesToTheSameLossWithOneSetOfActivationsForAllLayers) {
  const auto props = props_of(false, {6});
  StageChain chain{*device_, props};
  const auto batch = batch_of(props, 0);
  auto evaluating = alone(false, whole, 1, false);
  evaluating.microbatch_count = 3;
  evaluating.bounds.trains = false;
  const auto stream = device_->make_stream("stage", 1);
  const auto stage = make_transformer_stage(*device_, *stream, evaluating).value();
  stage->begin_step({.step = 0, .kind = StepKind::evaluation, .batch = &batch});
  double sum = 0.0;
  for (std::uint32_t m = 0; m < 3; ++m) {
    run_pass(*stage, *stream, Pass::forward, m);
    sum += stage->losses()[m];
  }
  EXPECT_EQ(sum / static_cast<double>(batch.tokens.size()), chain.evaluate(batch));
  EXPECT_TRUE(stage->parameters().front().gradients.empty());
}

TEST_P(TransformerStageOn, GivesLogitsWhoseCrossEntropyIsTheLoss) {
  const auto props = alone(true, whole, 1, false);
  const auto stream = device_->make_stream("stage", 1);
  const auto stage = make_transformer_stage(*device_, *stream, props).value();
  const auto batch = make_batch(props.model, 1, 2, data_seed, 0);
  stage->begin_step({.step = 0, .kind = StepKind::evaluation, .batch = &batch});
  run_pass(*stage, *stream, Pass::forward, 0);
  double loss = 0.0;
  for (std::size_t row = 0; row < 10; ++row) {
    std::array<float, 11> logits{};
    stage->read_logits(row, logits);
    double sum = 0.0;
    for (const auto logit : logits) sum += std::exp(double{logit});
    loss += std::log(sum) - logits[static_cast<std::size_t>(batch.targets[row])];
  }
  EXPECT_NEAR(stage->losses()[0], loss, 1e-5);
}

ModelSpec classifier() {
  auto model = small(false, Family::bert);
  model.task = Task::classification;
  model.classes = 5;
  return model;
}

/// Logits can be read of the last microbatch alone, hence each is the last once.
TEST_P(TransformerStageOn, TakesEachSequenceForTheClassWithTheLargestLogit) {
  for (const bool in_two : {false, true}) {
    auto props = props_of(false, in_two ? std::vector{2U, 4U} : std::vector{6U});
    props.model = classifier();
    StageChain chain{*device_, props};
    auto& last = chain.stage(chain.stage_count() - 1);
    auto batch = batch_of(props, 0);
    for (std::uint32_t step = 0; step < 3; ++step) (void)chain.train(batch);
    EXPECT_TRUE(last.predictions().empty()) << "a training step tells none";
    std::vector<std::int32_t> expected;
    for (std::uint32_t turn = 0; turn < 3; ++turn) {
      (void)chain.evaluate(batch);
      EXPECT_EQ(chain.stage(0).predictions().empty(), in_two);
      const auto predictions = last.predictions();
      ASSERT_EQ(predictions.size(), 6U);
      if (turn == 0) expected.assign(predictions.begin(), predictions.end());
      EXPECT_TRUE(std::ranges::equal(predictions, expected));
      for (std::size_t row = 0; row < 2; ++row) {
        std::array<float, 5> logits{};
        last.read_logits(row, logits);
        EXPECT_EQ(predictions[4 + row], std::ranges::max_element(logits) - logits.begin());
      }
      for (auto* of_batch :
           {&batch.tokens, &batch.segments, &batch.lengths, &batch.targets, &expected}) {
        const auto of_microbatch = static_cast<std::ptrdiff_t>(of_batch->size() / 3);
        std::ranges::rotate(*of_batch, of_batch->begin() + of_microbatch);
      }
    }
    EXPECT_NE(std::ranges::min(expected), std::ranges::max(expected)) << "else nothing is seen";
  }
}

TEST_P(TransformerStageOn, StartsFromTheNormalNumbersOfEachParameterAndReadsWhatWasWritten) {
  auto props = alone(true, whole, 1, false);
  props.train.seed = 77;
  props.model.vocabulary = 40'000;  // An embedding that is uploaded in two pieces.
  const auto stream = device_->make_stream("stage", 1);
  const auto stage = make_transformer_stage(*device_, *stream, props).value();
  for (std::size_t i = 0; i < stage->parameters().size(); ++i) {
    const auto& spec = *stage->parameters()[i].spec;
    std::vector<float> values(spec.element_count());
    stage->read_parameter(i, values);
    for (std::size_t k = 0; k < values.size(); ++k) {
      const float expected = spec.initial == Initial::zeros ? 0.0F
                             : spec.initial == Initial::ones
                                 ? 1.0F
                                 : spec.deviation * initial_normal(77, spec.name, k);
      ASSERT_EQ(values[k], expected) << spec.name << " [" << k << ']';
    }
    for (std::size_t k = 0; k < values.size(); ++k) values[k] = static_cast<float>(1000 * i + k);
    stage->write_parameter(i, values);
  }
  for (std::size_t i = 0; i < stage->parameters().size(); ++i) {
    const auto values = copy_of(*device_, stage->parameters()[i].values);
    for (std::size_t k = 0; k < values.size(); ++k) {
      ASSERT_EQ(values[k], static_cast<float>(1000 * i + k));
    }
  }
}

TEST_P(TransformerStageOn, MayBeGivenPassesAheadOfTheirCompletions) {
  const auto forward = [](std::uint32_t m) {
    return Action{.stage = {}, .pass = Pass::forward, .microbatch = MicrobatchIndex{m}};
  };
  const auto backward = [](std::uint32_t m) {
    return Action{.stage = {}, .pass = Pass::backward, .microbatch = MicrobatchIndex{m}};
  };
  auto props = alone(true, whole, 1, false);
  props.microbatch_count = 3;
  const auto batch = make_batch(props.model, 3, 2, data_seed, 0);
  const auto stream = device_->make_stream("stage", 1);
  const auto ahead = make_transformer_stage(*device_, *stream, props).value();
  const auto in_step = make_transformer_stage(*device_, *stream, props).value();
  const auto done = [](Errc, DeviceSpan) {};
  for (const auto kind : {StepKind::evaluation, StepKind::training}) {
    const auto passes = kind == StepKind::evaluation
                            ? std::vector{forward(0), forward(1), forward(2)}
                            : std::vector{forward(0),  backward(0), forward(1),
                                          backward(1), forward(2),  backward(2)};
    const StepInfo info{.step = 0, .kind = kind, .batch = &batch};
    ahead->begin_step(info);
    in_step->begin_step(info);
    for (const auto& pass : passes) ahead->enqueue(pass, done);
    stream->synchronize();
    for (const auto& pass : passes) {
      ahead->finish(pass);
      run_pass(*in_step, *stream, pass.pass, pass.microbatch.value());
    }
    const auto expected = in_step->losses();
    EXPECT_TRUE(std::ranges::equal(ahead->losses(), expected));
    EXPECT_GT(*std::ranges::min_element(expected), 0.0);
  }
  for (std::size_t i = 0; i < ahead->parameters().size(); ++i) {
    EXPECT_EQ(copy_of(*device_, ahead->parameters()[i].gradients),
              copy_of(*device_, in_step->parameters()[i].gradients));
  }
}

TEST_P(TransformerStageOn, ScalesItsGradientsByTheTargetsOfAllReplicas) {
  const auto props = alone(true, whole, 1, false);
  auto batch = make_batch(props.model, 1, 2, data_seed, 0);
  std::vector<std::vector<float>> gradients;
  for (const std::uint32_t target_count : {16U, 32U}) {
    batch.target_count = target_count;
    const auto stream = device_->make_stream("stage", 1);
    const auto stage = make_transformer_stage(*device_, *stream, props).value();
    stage->begin_step({.step = 0, .kind = StepKind::training, .batch = &batch});
    run_pass(*stage, *stream, Pass::forward, 0);
    run_pass(*stage, *stream, Pass::backward, 0);
    for (const auto& parameter : stage->parameters()) {
      auto& values = gradients.emplace_back(copy_of(*device_, parameter.gradients));
      // Twice the targets, half the gradient: exact in binary.
      for (auto& value : values) value *= static_cast<float>(target_count);
    }
  }
  const auto half = gradients.begin() + static_cast<std::ptrdiff_t>(gradients.size() / 2);
  EXPECT_TRUE(std::equal(gradients.begin(), half, half));
}

TEST_P(TransformerStageOn, AllocatesExactlyWhatTheBudgetAnnounces) {
  for (const bool tie : {true, false}) {
    for (const bool splits : {true, false}) {
      for (const auto& spec :
           {whole, StageSpec{.layer_begin = 0, .layer_end = 2, .has_embedding = true},
            StageSpec{.layer_begin = 2, .layer_end = 5},
            StageSpec{.layer_begin = 5, .layer_end = 6, .has_head = true}}) {
        std::vector<ModelSpec> models;
        for (const auto family : families) models.push_back(small(tie, family));
        if (!tie) models.push_back(classifier());
        for (const auto& model : models) {
          auto props = alone(tie, spec, 2, splits);
          props.model = tie ? dropping(model) : model;
          InlineDevice enough{bytes_of(props)};
          InlineDevice too_small{bytes_of(props) - 1};
          InlineStream stream;
          EXPECT_TRUE(make_transformer_stage(enough, stream, props));
          const auto refused = make_transformer_stage(too_small, stream, props);
          ASSERT_FALSE(refused);
          EXPECT_EQ(refused.error().code, Errc::out_of_memory);
        }
      }
    }
  }
}

TEST_P(TransformerStageOn, HasBucketsThatHoldEveryGradientOnceAlignedAndTheTiedOneLast) {
  const auto stream = device_->make_stream("stage", 1);
  for (const bool tie : {true, false}) {
    for (const auto& spec :
         {whole, StageSpec{.layer_begin = 0, .layer_end = 2, .has_embedding = true},
          StageSpec{.layer_begin = 4, .layer_end = 6, .has_head = true}}) {
      const auto stage =
          make_transformer_stage(*device_, *stream, alone(tie, spec, 1, false)).value();
      std::size_t held = 0;
      std::vector<bool> seen(stage->parameters().size());
      for (std::uint32_t b = 0; b < stage->bucket_count(); ++b) {
        const auto bucket = stage->bucket(b);
        for (std::size_t i = 0; i < seen.size(); ++i) {
          const auto gradients = std::as_bytes(stage->parameters()[i].gradients);
          if (gradients.data() < bucket.data
              || gradients.data() >= bucket.data + bucket.size_bytes) {
            continue;
          }
          EXPECT_LE(gradients.data() + gradients.size(), bucket.data + bucket.size_bytes);
          EXPECT_EQ(reinterpret_cast<std::uintptr_t>(gradients.data()) % 64, 0U);
          EXPECT_FALSE(seen[i]);
          seen[i] = true;
          ++held;
        }
      }
      EXPECT_EQ(held, seen.size());
      const auto embedding = spec.has_embedding ? stage->parameters().front().gradients
                                                : stage->parameters().back().gradients;
      const auto last = stage->bucket(stage->bucket_count() - 1);
      if (tie) {
        EXPECT_EQ(last.data, std::as_writable_bytes(embedding).data());
        EXPECT_EQ(last.size_bytes, embedding.size_bytes());
      }
    }
  }
}

TEST_P(TransformerStageOn, AnnouncesEachBucketOnceInOrderWhenItsGradientsAreFinal) {
  for (const bool tie : {true, false}) {
    for (const bool splits : {true, false}) {
      const auto stream = device_->make_stream("stage", 1);
      const auto stage =
          make_transformer_stage(*device_, *stream, alone(tie, whole, 2, splits)).value();
      const auto content_of = [&](std::uint32_t index) {
        const auto bucket = stage->bucket(index);
        return copy_of(*device_, {reinterpret_cast<const float*>(bucket.data),
                                  bucket.size_bytes / sizeof(float)});
      };
      std::vector<std::vector<float>> announced;
      stage->on_bucket_ready([&](std::uint32_t index) {
        ASSERT_EQ(index, announced.size());
        announced.push_back(content_of(index));
      });
      const auto batch = make_batch(small(tie), 2, 2, data_seed, 0);
      stage->begin_step({.step = 0, .kind = StepKind::training, .batch = &batch});
      for (std::uint32_t m = 0; m < 2; ++m) {
        EXPECT_TRUE(announced.empty());
        run_pass(*stage, *stream, Pass::forward, m);
        run_pass(*stage, *stream, splits ? Pass::backward_input : Pass::backward, m);
        if (splits) run_pass(*stage, *stream, Pass::backward_weight, m);
      }
      ASSERT_EQ(announced.size(), stage->bucket_count());
      for (std::uint32_t b = 0; b < stage->bucket_count(); ++b) {
        EXPECT_EQ(announced[b], content_of(b))
            << "bucket " << b << " changed after it was announced";
      }
    }
  }
}

/// Who reads parameters that another holder updates waits for them; no pass has waited then.
TEST(TransformerStage, CountsNoWaitOfAReaderAsThatOfAPass) {
  const auto device = make_cpu_device();
  const auto group = transport::make_in_process_group(2);
  auto props = alone(true, whole, 1, false);
  props.train.optimizer_sharding = OptimizerSharding::zero1;
  std::vector<std::unique_ptr<Stream>> streams;
  std::vector<std::unique_ptr<TransformerStage>> stages;
  for (std::size_t i = 0; i < 2; ++i) {
    streams.push_back(device->make_stream("stage", 1));
    streams.push_back(device->make_stream("sums", 1));
    props.peers.holders = {.group = group[i].get(), .stream = streams.back().get()};
    stages.push_back(make_transformer_stage(*device, *streams[2 * i], props).value());
  }
  const OptimizerStep step{.update = 1, .learning_rate = 0.1F};
  const auto ignore = [](Errc, const DeviceSpan&) {};
  stages[0]->optimize(step, ignore);
  {
    const std::jthread late{[&] {
      std::this_thread::sleep_for(std::chrono::milliseconds{50});
      stages[1]->optimize(step, ignore);
    }};
    std::vector<float> values(stages[0]->parameters().front().values.size());
    stages[0]->read_parameter(0, values);
  }
  const auto batch = make_batch(small(true), 1, 2, data_seed, 0);
  stages[0]->begin_step({.step = 1, .kind = StepKind::evaluation, .batch = &batch});
  DeviceSpan seen;
  stages[0]->enqueue({.stage = {}, .pass = Pass::forward, .microbatch = {}},
                     [&seen](Errc, const DeviceSpan& span) { seen = span; });
  for (const auto& stream : streams) stream->synchronize();
  EXPECT_LE(seen.gathering_ns, seen.end_ns - seen.begin_ns);
}

TEST_P(TransformerStageOn, MeasuresTheSquaresOfEachOwnedGradient) {
  const auto props = props_of(true, {3, 3});
  StageChain chain{*device_, props};
  static_cast<void>(chain.train(batch_of(props, 0)));
  for (std::size_t s = 0; s < 2; ++s) {
    const auto squares = chain.stage(s).gradient_squares();
    std::size_t i = 0;
    for (const auto& parameter : chain.stage(s).parameters()) {
      if (!parameter.spec->owned) continue;
      double sum = 0.0;
      for (const auto g : copy_of(*device_, parameter.gradients)) sum += double{g} * double{g};
      ASSERT_LT(i, squares.size());
      EXPECT_NEAR(squares[i++], sum, 1e-6 * sum) << parameter.spec->name;
    }
    EXPECT_EQ(i, squares.size());
  }
}

/// Runs work at once and does not count what the work allocates.
class UnwatchedStream final : public Stream {
public:
  void enqueue(Work work) override {
    const Unwatched unwatched;
    work();
  }
  void record(Event& /*event*/) override {}
  void wait(Event& /*event*/) override {}
  void synchronize() override {}
};

TEST(TransformerStage, AllocatesNothingOnceItIsBuilt) {
  for (const bool splits : {false, true}) {
    InlineDevice device;
    UnwatchedStream stream;
    const auto stage =
        make_transformer_stage(device, stream, alone(true, whole, 2, splits)).value();
    int done_count = 0;
    stage->on_bucket_ready([&done_count](std::uint32_t) { ++done_count; });
    const auto batch = make_batch(small(true), 2, 2, data_seed, 0);
    const auto done = [&done_count](Errc, DeviceSpan) { ++done_count; };
    const auto pass = [&](Pass which, std::uint32_t m) {
      const Action action{.stage = {}, .pass = which, .microbatch = MicrobatchIndex{m}};
      stage->enqueue(action, done);
      stage->finish(action);
    };

    watch_allocations();
    stage->begin_step({.step = 0, .kind = StepKind::training, .batch = &batch});
    for (std::uint32_t m = 0; m < 2; ++m) {
      pass(Pass::forward, m);
      pass(splits ? Pass::backward_input : Pass::backward, m);
      if (splits) pass(Pass::backward_weight, m);
    }
    stage->measure_gradients(done);
    stage->optimize({.update = 1, .learning_rate = 1e-3F}, done);
    const auto allocations = watched_allocations();

    EXPECT_GT(done_count, 6);
    EXPECT_EQ(allocations.small_count, 0U);
    EXPECT_EQ(allocations.large_count, 0U);
  }
}

TEST(TransformerStage, AllocatesNothingOnTheCpuDeviceOnceAStepHasWarmedItUp) {
  const auto device = make_cpu_device();
  const auto stream = device->make_stream("stage", 1);
  auto props = alone(true, whole, 1, false);
  props.model = dropping(props.model);
  const auto stage = make_transformer_stage(*device, *stream, props).value();
  const auto batch = make_batch(small(true), 1, 2, data_seed, 0);
  const auto done = [](Errc, DeviceSpan) {};
  const auto step = [&](std::uint32_t number) {
    stage->begin_step({.step = number, .kind = StepKind::training, .batch = &batch});
    for (const auto pass : {Pass::forward, Pass::backward}) {
      stage->enqueue({.stage = {}, .pass = pass, .microbatch = MicrobatchIndex{0}}, done);
    }
    stage->measure_gradients(done);
    stage->optimize({.update = number, .learning_rate = 1e-3F}, done);
    stream->synchronize();
  };
  step(1);
  watch_allocations();
  for (std::uint32_t number = 2; number <= 5; ++number) step(number);
  const auto allocations = watched_allocations();
  EXPECT_EQ(allocations.small_count, 0U);
  EXPECT_EQ(allocations.large_count, 0U);
}

TEST(TransformerStageDeathTest, RefusesWeightPassesOutOfOrder) {
  InlineDevice device;
  InlineStream stream;
  const auto stage = make_transformer_stage(device, stream, alone(true, whole, 2, false)).value();
  const auto batch = make_batch(small(true), 2, 2, data_seed, 0);
  stage->begin_step({.step = 0, .kind = StepKind::training, .batch = &batch});
  run_pass(*stage, stream, Pass::forward, 0);
  run_pass(*stage, stream, Pass::forward, 1);
  EXPECT_DEATH(run_pass(*stage, stream, Pass::backward, 1), "microbatch");
}

TEST(InitialNormal, IsWhatItsDefinitionSaysInAnotherLanguage) {
  // Values of initial_normal in scripts/make_golden.py.
  EXPECT_FLOAT_EQ(initial_normal(1, "wte.weight", 0), -0.29073037928F);
  EXPECT_FLOAT_EQ(initial_normal(1, "wte.weight", 1), 0.99698715795F);
  EXPECT_FLOAT_EQ(initial_normal(1, "wte.weight", 1000002), -1.70967988116F);
  EXPECT_FLOAT_EQ(initial_normal(2, "h.11.mlp.c_proj.weight", 7), -0.21943110430F);
}

TEST(InitialNormal, HasTheMomentsOfTheNormalDistribution) {
  constexpr std::uint64_t count = 200'000;
  double sum = 0.0;
  double squares = 0.0;
  double fourths = 0.0;
  double neighbours = 0.0;
  for (std::uint64_t i = 0; i < count; ++i) {
    const double x = initial_normal(9, "h.0.attn.c_attn.weight", i);
    sum += x;
    squares += x * x;
    fourths += x * x * x * x;
    neighbours += x * initial_normal(9, "h.0.attn.c_attn.weight", i + 1);
  }
  // Five standard errors: 1, sqrt(2), sqrt(96) and 1 over sqrt(count).
  const double error = 5.0 / std::sqrt(static_cast<double>(count));
  EXPECT_NEAR(sum / count, 0.0, error);
  EXPECT_NEAR(squares / count, 1.0, std::sqrt(2.0) * error);
  EXPECT_NEAR(fourths / count, 3.0, std::sqrt(96.0) * error);
  EXPECT_NEAR(neighbours / count, 0.0, error);
}

TEST(InitialNormal, DependsOnSeedAndName) {
  EXPECT_NE(initial_normal(1, "wte.weight", 0), initial_normal(2, "wte.weight", 0));
  EXPECT_NE(initial_normal(1, "wte.weight", 0), initial_normal(1, "wpe.weight", 0));
}

}  // namespace
}  // namespace troupe::stages
