// The stages of a whole model in one thread, connected by plain copies: a training without actors,
// links or schedules.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "troupe/stages/device.hpp"
#include "troupe/stages/transformer_stage.hpp"

namespace troupe::stages {

/// When the weight gradients are computed.
enum class BackwardOrder : std::uint8_t {
  whole,         ///< Each microbatch F, then B; one slot.
  split,         ///< Each microbatch F, I, then W; one slot.
  weights_last,  ///< F of all, I of all from the last to the first, W of all; as many slots.
};

struct ChainProps {
  ModelSpec model;
  std::vector<std::uint32_t> layers_per_stage;
  std::uint32_t microbatch_count = 1;
  std::uint32_t microbatch_size = 1;
  BackwardOrder order = BackwardOrder::whole;
  Recompute recompute = Recompute::none;
  TrainConfig train;
  StagePeers peers{};
  CustomKernels custom_kernels{};
};

struct StepOutcome {
  double loss = 0.0;           ///< Mean over the targets.
  double gradient_norm = 0.0;  ///< Before clipping, without the loss scale.

  friend bool operator==(const StepOutcome&, const StepOutcome&) = default;
};

/// The batch of `step`: each sequence, in order, begins with Random{seed + step}.below(vocabulary);
/// each next token is (5 * token + 3 + below(4)) mod vocabulary. Predictable up to two bits.
///
/// A BERT then has of each sequence only the first sequence - below(sequence / 2) tokens, then
/// zeros, and of these the first below(length + 1) are of segment 0, the others of 1. It is to tell
/// the first and, if below(4) = 0, each next of them, behind a zero; or, if it classifies, the
/// first modulo the classes.
[[nodiscard]] Batch make_batch(const ModelSpec& model, std::uint32_t microbatch_count,
                               std::uint32_t microbatch_size, std::uint64_t seed,
                               std::uint32_t step);

/// Enqueues one pass and waits for it; aborts when it does not complete, or completes twice.
void run_pass(TransformerStage& stage, Stream& stream, Pass pass, std::uint32_t microbatch);

/// Values in the device's memory, read now: whatever writes them has run. Streams that run work at
/// once serve every device here.
[[nodiscard]] std::vector<float> copy_of(Device& device, std::span<const float> values);

class StageChain {
public:
  StageChain(Device& device, const ChainProps& props);

  /// One step on `batch`: every pass, the exchange of tied gradients, clipping, the optimizer.
  StepOutcome train(const Batch& batch);
  /// The mean loss, by forward passes alone.
  [[nodiscard]] double evaluate(const Batch& batch);

  /// Every owned parameter in model order.
  [[nodiscard]] std::vector<ParameterView> parameters();

  [[nodiscard]] std::size_t stage_count() const { return stages_.size(); }
  [[nodiscard]] TransformerStage& stage(std::size_t index) { return *stages_.at(index); }

private:
  /// Moves the content of a held buffer to a free one of a neighbour, as a link does.
  void carry(std::size_t from, Edge out, std::size_t to, Edge in, MicrobatchIndex microbatch);
  void begin_step(const Batch& batch, StepKind kind);
  void pass(std::size_t stage, Pass pass, std::uint32_t microbatch);
  void forward(std::uint32_t microbatch);
  void backward(Pass pass, std::uint32_t microbatch);
  void weights(std::uint32_t microbatch);
  void exchange_tied();
  [[nodiscard]] double mean_loss(const Batch& batch) const;
  [[nodiscard]] double gradient_norm();
  /// In half precision the loss is scaled as the configuration says, without end.
  [[nodiscard]] double loss_scale() const {
    return props_.train.precision == Precision::fp16 ? props_.train.loss_scale : 1.0;
  }

  Device& device_;
  ChainProps props_;
  std::vector<std::unique_ptr<Stream>> streams_;
  std::vector<std::unique_ptr<TransformerStage>> stages_;
  std::uint32_t step_ = 0;
};

}  // namespace troupe::stages
