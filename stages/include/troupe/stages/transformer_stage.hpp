// troupe/stages/transformer_stage.hpp -- a virtual stage of a transformer, of any family.
#pragma once

#include <memory>
#include <span>

#include "troupe/engine/config.hpp"
#include "troupe/engine/model_layout.hpp"
#include "troupe/stages/device.hpp"
#include "troupe/stages/stage.hpp"

namespace troupe::stages {

/// The other shards of the stages of a rank. The n-th operation of one shard is the n-th of all,
/// which is so because they run the same passes in the same order.
struct ShardPeers {
  transport::Collective* group = nullptr;  ///< Its rank is the index of the shard; null for none.
  Stream* stream = nullptr;                ///< Where the additions run.
};

/// What a stage is built from.
struct StageProps {
  ModelSpec model;
  StageSpec spec;
  StageBounds bounds;
  std::uint32_t microbatch_count = 1;  ///< The most of any step.
  std::uint32_t microbatch_size = 1;
  TrainConfig train;  ///< Seed, optimizer and its constants.
  ShardPeers peers{};

  [[nodiscard]] Shard shard() const noexcept {
    if (peers.group == nullptr) return {};
    return {.index = peers.group->rank(), .count = peers.group->size()};
  }
};

/// A stage that performs its `StageGraph`, with access to its logits.
class TransformerStage : public Stage {
public:
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
/// @returns `out_of_memory` if the device refuses.
[[nodiscard]] Expected<std::unique_ptr<TransformerStage>> make_transformer_stage(
    Device& device, Stream& stream, const StageProps& props);

/// Element `index` of the parameter `name` under `seed`, standard normal: a counter-based
/// generator, so that no order of initialisation matters.
[[nodiscard]] float initial_normal(std::uint64_t seed, std::string_view name, std::uint64_t index);

}  // namespace troupe::stages
