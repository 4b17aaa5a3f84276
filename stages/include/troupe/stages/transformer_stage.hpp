// troupe/stages/transformer_stage.hpp -- a virtual stage of a transformer, of any family.
#pragma once

#include <memory>
#include <span>
#include <utility>

#include "troupe/engine/config.hpp"
#include "troupe/engine/model_layout.hpp"
#include "troupe/engine/plan.hpp"
#include "troupe/stages/custom_kernel.hpp"
#include "troupe/stages/device.hpp"
#include "troupe/stages/stage.hpp"

namespace troupe::stages {

/// What a stage is built from.
struct StageProps {
  ModelSpec model;
  StageSpec spec;
  StageBounds bounds;
  std::uint32_t microbatch_count = 1;  ///< The most of any step.
  std::uint32_t microbatch_size = 1;
  TrainConfig train;  ///< Seed, optimizer and its constants.
  StagePeers peers{};
  CustomKernels custom_kernels{};  ///< Of the operations that the model's layer defines.

  /// Those of a stage of a planned run.
  [[nodiscard]] static StageProps of(const Plan& plan, const StagePlan& stage,
                                     const StagePeers& peers, CustomKernels kernels = {}) {
    return {.model = plan.config.model,
            .spec = stage.spec,
            .bounds = stage.bounds,
            .microbatch_count = plan.config.schedule.microbatches,
            .microbatch_size = plan.config.schedule.microbatch_size,
            .train = plan.config.train,
            .peers = peers,
            .custom_kernels = std::move(kernels)};
  }

  [[nodiscard]] Shard shard() const noexcept {
    if (peers.shards.group == nullptr) return {};
    return {.index = peers.shards.group->rank(),
            .count = peers.shards.group->size(),
            .divides_rows = train.sequence_parallel};
  }
  [[nodiscard]] Holder holder() const noexcept {
    if (peers.holders.group == nullptr) return {};
    return {.index = peers.holders.group->rank(),
            .count = peers.holders.group->size(),
            .has_server = train.synchronization == Synchronization::parameter_server};
  }
  [[nodiscard]] StageShape shape() const {
    return {.model = model,
            .spec = spec,
            .bounds = bounds,
            .microbatch_count = microbatch_count,
            .microbatch_size = microbatch_size,
            .optimizer = train.optimizer,
            .sharding = train.optimizer_sharding,
            .shard = shard(),
            .holder = holder(),
            .staleness = train.staleness};
  }
};

/// A stage that performs its `StageGraph`, with access to its gradients and logits.
class TransformerStage : public Stage {
public:
  /// Where the gradients of a bucket are computed; see `gradient_place_count`.
  [[nodiscard]] virtual BufferView bucket(std::uint32_t index) = 0;

  /// Copies `row` of the logits [rows, vocabulary], or [sequences, classes], of the last evaluation
  /// pass of a stage with the head and no other shards to `logits`. Blocks until the stream is
  /// empty. For text generation.
  virtual void read_logits(std::size_t row, std::span<float> logits) = 0;
};

/// Builds a stage whose work runs on `stream`; everything is allocated here, as an arena in the
/// device's memory and a small one in page-locked host memory, of exactly the bytes that
/// `memory_of` announces. Blocks while initial weights are uploaded. Parameters start from (seed,
/// name, element index) alone. Device, stream and kernels outlive the stage; the arena, which
/// neighbours may come to hold buffers of, lives as long as the device. Peers outlive the stage.
/// @returns `out_of_memory` if the device refuses, `invalid_config` if a kernel of the model's own
///          layer is missing.
[[nodiscard]] Expected<std::unique_ptr<TransformerStage>> make_transformer_stage(
    Device& device, Stream& stream, const StageProps& props);

/// Element `index` of the parameter `name` under `seed`, standard normal: a counter-based
/// generator, so that no order of initialisation matters.
[[nodiscard]] float initial_normal(std::uint64_t seed, std::string_view name, std::uint64_t index);

}  // namespace troupe::stages
