// troupe/engine/partition.hpp -- which layers each virtual stage holds.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "troupe/engine/expected.hpp"
#include "troupe/engine/model_spec.hpp"

namespace troupe {

/// The blocks of one virtual stage: layers `[layer_begin, layer_end)`, at least one, and on the
/// first stage the embedding, on the last the final norm and the head.
struct StageSpec {
  std::uint32_t layer_begin = 0;
  std::uint32_t layer_end = 0;
  bool has_embedding = false;
  bool has_head = false;

  [[nodiscard]] std::uint32_t layer_count() const noexcept { return layer_end - layer_begin; }
  friend bool operator==(const StageSpec&, const StageSpec&) = default;
};

/// By virtual stage.
using Partition = std::vector<StageSpec>;

/// Relative costs of the parts of a model, in any one unit.
struct PartCosts {
  double embedding = 0.0;
  double layer = 1.0;
  double head = 0.0;
};

/// Splits the layers so that the costliest stage is as cheap as possible; among such splits, if a
/// layer costs the same everywhere, as evenly as possible (least sum of squared costs), and then
/// with more layers on earlier stages.
/// @param costs By virtual stage, what each part of the model would cost there.
/// @returns `invalid_config` if there are fewer layers than stages.
[[nodiscard]] Expected<Partition> balance(const ModelSpec& model, std::span<const PartCosts> costs);

/// Builds the partition with the given layers per virtual stage.
/// @returns `invalid_config` unless there are `stage_count` counts, none zero, that add up.
[[nodiscard]] Expected<Partition> partition_of(const ModelSpec& model, std::uint32_t stage_count,
                                               std::span<const std::uint32_t> layers_per_stage);

}  // namespace troupe
