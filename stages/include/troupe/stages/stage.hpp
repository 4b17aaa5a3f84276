// troupe/stages/stage.hpp -- the computation of one virtual stage on one device stream.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "troupe/engine/expected.hpp"
#include "troupe/engine/inline_function.hpp"
#include "troupe/engine/memory.hpp"
#include "troupe/engine/model_layout.hpp"
#include "troupe/engine/schedule.hpp"
#include "troupe/stages/device.hpp"
#include "troupe/stages/stage_buffers.hpp"
#include "troupe/transport/collective.hpp"

namespace troupe::stages {

/// When the device worked on something, in nanoseconds of the process's steady clock.
struct DeviceSpan {
  std::int64_t begin_ns = 0;
  std::int64_t end_ns = 0;
  std::int64_t waiting_ns = 0;    ///< Of these, for other shards.
  std::int64_t gathering_ns = 0;  ///< Of these, for gradients or weights of other holders.
};

/// Called once when the device has finished. It must only post a message. The code is
/// `device_failure` if the device failed.
using DeviceDone = InlineFunction<void(Errc, DeviceSpan)>;

/// The data of one step of one replica, in host memory; each stage uploads what it needs of it. How
/// much there is of what says `ModelSpec::batch_widths`.
struct Batch {
  std::uint32_t microbatch_count = 0;
  std::uint32_t microbatch_size = 0;  ///< Sequences.
  std::uint32_t sequence = 0;         ///< Tokens.
  std::vector<std::int32_t> tokens;   ///< [microbatch_count, microbatch_size, sequence]
  /// Same shape: the token that follows each. For a BERT the one to be told there, or -1 for none;
  /// if it classifies, [microbatch_count, microbatch_size], the class of each sequence.
  std::vector<std::int32_t> targets;
  std::vector<std::int32_t> segments{};  ///< For a BERT, same shape as the tokens: 0 or 1.
  /// For a BERT, [microbatch_count, microbatch_size]: tokens before the padding, at least one.
  std::vector<std::int32_t> lengths{};
  std::uint32_t target_count = 0;  ///< Of the step over all replicas; the loss is their mean.
};

/// What holds for one step.
struct StepInfo {
  std::uint32_t step = 0;  ///< Of the training, counted from 1; masks of dropout depend on it.
  StepKind kind = StepKind::training;
  const Batch* batch = nullptr;    ///< Outlives the step.
  MicrobatchRange microbatches{};  ///< Of the batch: those that pass through the stage; empty: all.
  /// The last step whose update the weights are to have; what the stage has, unless it may be ahead
  /// of its server.
  std::uint32_t weights_of = 0;
  std::uint32_t first_sample = 0;  ///< Of the batch: its number among those of all replicas.
  float loss_scale = 1.0F;  ///< Gradients, not losses, are multiplied by it: see `LossScaler`.

  /// Those of the batch that pass through the stage.
  [[nodiscard]] MicrobatchRange own_microbatches() const noexcept {
    return microbatches == MicrobatchRange{} ? MicrobatchRange{0, batch->microbatch_count}
                                             : microbatches;
  }
};

/// Hyperparameters of one optimizer step.
struct OptimizerStep {
  std::uint32_t update = 0;  ///< Counted from 1; bias correction uses it.
  float learning_rate = 0.0F;
  float gradient_scale = 1.0F;  ///< Every gradient is multiplied by this: clipping over loss scale.
};

/// Called from the device's thread when all gradients of a bucket are accumulated for this step.
using BucketReady = InlineFunction<void(std::uint32_t bucket)>;

/// One parameter in the device's memory space: the host may look into it only if that is the
/// host's.
struct ParameterView {
  const ParameterSpec* spec = nullptr;
  std::span<float> values;
  std::span<float> gradients;  ///< Empty for a stage that does not train.
};

/// The others of a group that a stage belongs to. The n-th operation of one member is the n-th of
/// all.
struct Peers {
  transport::Collective* group = nullptr;  ///< Null if there are none.
  Stream* stream = nullptr;                ///< Where the additions run.
};

/// Whom a stage works with; they outlive it.
struct StagePeers {
  Peers shards;  ///< The other shards of the stage; a member's rank is the index of the shard.
  /// Those that hold the same parameters, in other replicas and copies; the last is their server,
  /// where there are such.
  Peers holders;
};

/// One virtual stage; or the parameter server of one, which runs no passes. Owns its parameters,
/// its gradients, its optimizer state and its slots of saved activations; nothing is allocated
/// after construction.
///
/// Thread safety: none; one actor drives one stage, and members that enqueue return at once. Work
/// of one stage runs in the order it was enqueued.
class Stage {
public:
  virtual ~Stage() = default;
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;

  /// The buffers that links fill and empty, `[microbatch_size, sequence, hidden]` floats each. The
  /// first stage has neither activations in nor gradients out, the last neither of the others.
  [[nodiscard]] virtual StageBuffers& buffers() = 0;

  /// Begins a step: resets losses; of a batch a server takes nothing. The first weight pass of a
  /// training step overwrites the gradients.
  virtual void begin_step(const StepInfo& info) = 0;

  /// Enqueues `action`. Before: activation_in (F) or gradient_in (B, I) is held for the microbatch,
  /// and a free activation_out (F) or gradient_out (B, I) buffer exists. The stage takes that
  /// buffer and holds it for the microbatch. `done` runs when the output is there. Weight passes
  /// (B, W) come in microbatch order. The slot is taken by F and free for the next F to be enqueued
  /// once B or W, or the F of an evaluation, is enqueued.
  virtual void enqueue(const Action& action, DeviceDone done) = 0;

  /// A stage that offloads begins to bring back what it keeps of the microbatch, beside the passes
  /// that are enqueued: the stage's next pass is one of this microbatch, not its first. Without
  /// the call that pass fetches for itself.
  virtual void fetch(MicrobatchIndex microbatch) = 0;

  /// Must be called by the driver once `done` of `action` has been seen: frees the input buffers
  /// that the action was the last to use. B and W free activation_in and gradient_in, the F of an
  /// evaluation frees activation_in.
  virtual void finish(const Action& action) = 0;

  /// The gradients in buckets, in the order in which the last backward pass finishes them. A bucket
  /// holds whole parameters. With tied embeddings, the tied parameter is a bucket of its own, the
  /// last, on the first and on the last stage.
  [[nodiscard]] virtual std::uint32_t bucket_count() const = 0;
  /// Sums up a complete bucket over all that hold the same parameters; all of them sum the same
  /// buckets in the same order. `done` runs when this stage has the sums that it needs for its
  /// optimizer; where a server has them alone, elsewhere when the bucket is given away. Only for a
  /// stage that has such peers.
  virtual void reduce_bucket(std::uint32_t index, transport::CollectiveDone done) = 0;
  /// Sets what is called, once per bucket and training step, when a bucket is complete.
  virtual void on_bucket_ready(BucketReady ready) = 0;

  /// The losses of the step so far, by microbatch of the batch: each the sum over the microbatch's
  /// targets, zero for those that do not pass through the stage. Filled on the last stage as
  /// forward passes finish; empty elsewhere.
  [[nodiscard]] virtual std::span<const double> losses() const = 0;

  /// The class that the model takes each sequence for, [microbatches of the batch, sequences]: what
  /// an evaluation of a model that classifies has told so far, on the last stage; 0 for
  /// microbatches that do not pass through it. Empty elsewhere, and in training steps.
  [[nodiscard]] virtual std::span<const std::int32_t> predictions() const = 0;

  /// When the tied bucket is ready, the stage also holds a copy of it on `Edge::tied_out`, which
  /// the driver sends to the other end. Enqueues `bucket = first stage's half + last stage's half`,
  /// where the peer's half is held on `Edge::tied_in`; both ends add in that order and get the same
  /// bits. The driver frees both buffers: `tied_out` when it has left, `tied_in` after `done`.
  virtual void add_tied(DeviceDone done) = 0;

  /// Enqueues the sum of squares of each parameter's gradient, loss scale included, into
  /// `gradient_squares()`; with sharded optimizer state, of the elements that this stage updates.
  virtual void measure_gradients(DeviceDone done) = 0;
  /// By owned parameter (a tied copy is owned by the first stage), in model order.
  [[nodiscard]] virtual std::span<const double> gradient_squares() const = 0;

  /// Enqueues one optimizer step on every parameter, or on its share of each; what others update
  /// arrives until it is used. A server gives its clients what it has updated.
  virtual void optimize(const OptimizerStep& step, DeviceDone done) = 0;
  /// Enqueues, on a client of a server, the taking of the weights that the current step makes,
  /// which arrive until they are used; on a server, the giving of those it has. Clients take once
  /// for each time that it gives.
  virtual void exchange_weights(DeviceDone done) = 0;

  /// In the order of `parameters_of(model, stage)`. Its memory may be used only while the stream is
  /// empty.
  [[nodiscard]] virtual std::span<const ParameterView> parameters() = 0;

  /// Copies the values of `parameters()[index]` to `values`, as many. Blocks until the stream is
  /// empty: for saving only.
  virtual void read_parameter(std::size_t index, std::span<float> values) = 0;
  /// Replaces the values of `parameters()[index]` by `values`, as many. Blocks until the stream is
  /// empty: for construction and loading only.
  virtual void write_parameter(std::size_t index, std::span<const float> values) = 0;

protected:
  Stage() = default;
};

}  // namespace troupe::stages
