#include "stage_chain.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>

#include "troupe/engine/check.hpp"
#include "troupe/engine/partition.hpp"
#include "troupe/engine/random.hpp"

#include "inline_device.hpp"

namespace troupe::stages {
namespace {

/// Runs what `enqueue` enqueues with the completion it is given, and waits for it.
template <class Enqueue>
void complete(Stream& stream, Enqueue enqueue) {
  std::atomic<int> completions{0};
  enqueue(DeviceDone{[&completions](Errc code, DeviceSpan span) {
    TROUPE_ASSERT(code == Errc::none && span.begin_ns <= span.end_ns);
    ++completions;
  }});
  stream.synchronize();
  TROUPE_ASSERT(completions == 1);
}

StageBounds bounds_of(const ChainProps& props, const StageSpec& spec) {
  const bool waits = props.order == BackwardOrder::weights_last;
  const auto held = waits ? props.microbatch_count : 1;
  return {.slots = held,
          .activations_in = spec.has_embedding ? 0 : held,
          .activations_out = spec.has_head ? 0U : 1U,
          .gradients_in = spec.has_head ? 0 : held,
          .gradients_out = spec.has_embedding ? 0U : 1U,
          .splits_backward = props.order != BackwardOrder::whole,
          .recompute = props.recompute};
}

}  // namespace

namespace {

/// Appends what a BERT has of a sequence, whose tokens are the last of `batch`.
void append_bert(const ModelSpec& model, Random& random, Batch& batch) {
  const auto tokens = std::span{batch.tokens}.last(model.sequence);
  const auto length = model.sequence - random.below(model.sequence / 2);
  const auto first_segment = random.below(length + 1);
  batch.lengths.push_back(static_cast<std::int32_t>(length));
  if (model.classifies()) {
    const auto first = static_cast<std::uint32_t>(tokens[0]);
    batch.targets.push_back(static_cast<std::int32_t>(first % model.classes));
  }
  for (std::uint32_t i = 0; i < model.sequence; ++i) {
    batch.segments.push_back(first_segment <= i && i < length ? 1 : 0);
    const bool is_told = !model.classifies() && i < length && (i == 0 || random.below(4) == 0);
    if (!model.classifies()) batch.targets.push_back(is_told ? tokens[i] : -1);
    if (is_told || i >= length) tokens[i] = 0;
  }
}

}  // namespace

Batch make_batch(const ModelSpec& model, std::uint32_t microbatch_count,
                 std::uint32_t microbatch_size, std::uint64_t seed, std::uint32_t step) {
  Batch batch{.microbatch_count = microbatch_count,
              .microbatch_size = microbatch_size,
              .sequence = model.sequence,
              .tokens = {},
              .targets = {}};
  const bool is_bert = model.family == Family::bert;
  Random random{seed + step};
  for (std::uint32_t row = 0; row < microbatch_count * microbatch_size; ++row) {
    auto token = random.below(model.vocabulary);
    for (std::uint32_t i = 0; i < model.sequence; ++i) {
      batch.tokens.push_back(static_cast<std::int32_t>(token));
      token = (5 * token + 3 + random.below(4)) % model.vocabulary;
      if (!is_bert) batch.targets.push_back(static_cast<std::int32_t>(token));
    }
    if (is_bert) append_bert(model, random, batch);
  }
  const auto target_count = std::ranges::count_if(batch.targets, [](auto t) { return t >= 0; });
  batch.target_count = static_cast<std::uint32_t>(target_count);
  return batch;
}

void run_pass(TransformerStage& stage, Stream& stream, Pass pass, std::uint32_t microbatch) {
  const Action action{.stage = {}, .pass = pass, .microbatch = MicrobatchIndex{microbatch}};
  complete(stream, [&](DeviceDone done) { stage.enqueue(action, std::move(done)); });
  stage.finish(action);
}

std::vector<float> copy_of(Device& device, std::span<const float> values) {
  std::vector<float> copy(values.size());
  InlineStream stream;
  device.kernels().download(stream, values.data(), copy.data(), values.size_bytes());
  return copy;
}

StageChain::StageChain(Device& device, const ChainProps& props) : device_{device}, props_{props} {
  const auto partition =
      partition_of(props.model, static_cast<std::uint32_t>(props.layers_per_stage.size()),
                   props.layers_per_stage);
  for (const auto& spec : partition.value()) {
    streams_.push_back(device.make_stream("stage", 1));
    auto stage = make_transformer_stage(device, *streams_.back(),
                                        {.model = props.model,
                                         .spec = spec,
                                         .bounds = bounds_of(props, spec),
                                         .microbatch_count = props.microbatch_count,
                                         .microbatch_size = props.microbatch_size,
                                         .train = props.train,
                                         .peers = props.peers,
                                         .custom_kernels = props.custom_kernels});
    stages_.push_back(std::move(stage).value());
  }
}

StepOutcome StageChain::train(const Batch& batch) {
  begin_step(batch, StepKind::training);
  const auto count = batch.microbatch_count;
  if (props_.order == BackwardOrder::weights_last) {
    for (std::uint32_t m = 0; m < count; ++m) forward(m);
    for (auto m = count; m-- > 0;) backward(Pass::backward_input, m);
    for (std::uint32_t m = 0; m < count; ++m) weights(m);
  } else {
    const bool splits = props_.order == BackwardOrder::split;
    for (std::uint32_t m = 0; m < count; ++m) {
      forward(m);
      backward(splits ? Pass::backward_input : Pass::backward, m);
      if (splits) weights(m);
    }
  }
  exchange_tied();

  const StepOutcome outcome{.loss = mean_loss(batch),
                            .gradient_norm = gradient_norm() / loss_scale()};
  const auto clip = props_.train.clip_norm;
  const auto scale = clip > 0.0 ? std::min(1.0, clip / (outcome.gradient_norm + 1e-6)) : 1.0;
  ++step_;
  for (std::size_t i = 0; i < stages_.size(); ++i) {
    complete(*streams_[i], [&](DeviceDone done) {
      stages_[i]->optimize(
          {.update = step_,
           .learning_rate = static_cast<float>(learning_rate_at(props_.train, step_)),
           .gradient_scale = static_cast<float>(scale / loss_scale())},
          std::move(done));
    });
  }
  return outcome;
}

double StageChain::evaluate(const Batch& batch) {
  begin_step(batch, StepKind::evaluation);
  for (std::uint32_t m = 0; m < batch.microbatch_count; ++m) forward(m);
  return mean_loss(batch);
}

std::vector<ParameterView> StageChain::parameters() {
  std::vector<ParameterView> list;
  for (const auto& stage : stages_) {
    for (const auto& parameter : stage->parameters()) {
      if (parameter.spec->owned) list.push_back(parameter);
    }
  }
  return list;
}

void StageChain::carry(std::size_t from, Edge out, std::size_t to, Edge in,
                       MicrobatchIndex microbatch) {
  auto& from_buffers = stages_[from]->buffers();
  auto& to_buffers = stages_[to]->buffers();
  auto source = from_buffers.release(out, microbatch);
  auto target = to_buffers.take_free(in);
  TROUPE_ASSERT(source.size_bytes() == target.size_bytes());
  device_.kernels().copy(*streams_[to], reinterpret_cast<const float*>(source.data()),
                         reinterpret_cast<float*>(target.data()),
                         source.size_bytes() / sizeof(float));
  streams_[to]->synchronize();
  to_buffers.hold(in, microbatch, std::move(target));
  from_buffers.give_free(out, std::move(source));
}

void StageChain::begin_step(const Batch& batch, StepKind kind) {
  for (const auto& stage : stages_) {
    stage->begin_step({.step = step_ + 1,
                       .kind = kind,
                       .batch = &batch,
                       .loss_scale = static_cast<float>(loss_scale())});
  }
}

void StageChain::pass(std::size_t stage, Pass pass, std::uint32_t microbatch) {
  run_pass(*stages_[stage], *streams_[stage], pass, microbatch);
}

void StageChain::forward(std::uint32_t microbatch) {
  for (std::size_t i = 0; i < stages_.size(); ++i) {
    pass(i, Pass::forward, microbatch);
    if (i + 1 == stages_.size()) break;
    carry(i, Edge::activation_out, i + 1, Edge::activation_in, MicrobatchIndex{microbatch});
  }
}

void StageChain::backward(Pass which, std::uint32_t microbatch) {
  for (auto i = stages_.size(); i-- > 0;) {
    pass(i, which, microbatch);
    if (i == 0) break;
    carry(i, Edge::gradient_out, i - 1, Edge::gradient_in, MicrobatchIndex{microbatch});
  }
}

void StageChain::weights(std::uint32_t microbatch) {
  for (std::size_t i = 0; i < stages_.size(); ++i) pass(i, Pass::backward_weight, microbatch);
}

void StageChain::exchange_tied() {
  if (!props_.model.tie_embeddings || stages_.size() == 1) return;
  const MicrobatchIndex once{0};
  const auto last = stages_.size() - 1;
  carry(0, Edge::tied_out, last, Edge::tied_in, once);
  carry(last, Edge::tied_out, 0, Edge::tied_in, once);
  for (const auto i : {std::size_t{0}, last}) {
    complete(*streams_[i], [&](DeviceDone done) { stages_[i]->add_tied(std::move(done)); });
    auto& buffers = stages_[i]->buffers();
    buffers.give_free(Edge::tied_in, buffers.release(Edge::tied_in, once));
  }
}

double StageChain::mean_loss(const Batch& batch) const {
  const auto losses = stages_.back()->losses();
  return std::accumulate(losses.begin(), losses.end(), 0.0)
         / static_cast<double>(batch.target_count);
}

double StageChain::gradient_norm() {
  double squares = 0.0;
  for (std::size_t i = 0; i < stages_.size(); ++i) {
    complete(*streams_[i],
             [&](DeviceDone done) { stages_[i]->measure_gradients(std::move(done)); });
    for (const auto square : stages_[i]->gradient_squares()) squares += square;
  }
  return std::sqrt(squares);
}

}  // namespace troupe::stages
