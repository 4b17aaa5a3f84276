// troupe/engine/model_layout.hpp -- every tensor of a stage by name and shape: what a stage
// allocates and what the memory budget announces are the same list.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "troupe/engine/config.hpp"
#include "troupe/engine/model_spec.hpp"
#include "troupe/engine/optimizer_sharding.hpp"
#include "troupe/engine/partition.hpp"
#include "troupe/engine/stage_graph.hpp"

namespace troupe {

/// The parameters of one stage in model order: the order of the serial model's forward pass.
[[nodiscard]] std::vector<ParameterSpec> parameters_of(const ModelSpec& model,
                                                       const StageSpec& stage,
                                                       const Shard& shard = {});

/// The parameters of the whole model in model order, each once.
[[nodiscard]] std::vector<ParameterSpec> parameters_of(const ModelSpec& model);

/// The slots in the device's memory of a stage that offloads: one for the pass that runs, one for a
/// copy beside it.
inline constexpr std::uint32_t resident_slots = 2;

/// How many of each buffer a stage needs, and what they must hold; derived from its schedule.
struct StageBounds {
  std::uint32_t slots = 1;  ///< Sets of saved activations, held from F to the end of B or W.
  std::uint32_t activations_in =
      0;  ///< Buffers; one is held from its arrival to the end of B or W.
  std::uint32_t activations_out = 0;  ///< Buffers; one is held from F until it is sent.
  std::uint32_t gradients_in = 0;   ///< Buffers; one is held from its arrival to the end of B or W.
  std::uint32_t gradients_out = 0;  ///< Buffers; one is held from B or I until it is sent.
  bool splits_backward = false;     ///< Slots keep output gradients for a later weight pass.
  bool trains = true;               ///< False: evaluation only; no gradients, no optimizer.
  Recompute recompute = Recompute::none;  ///< What slots do not keep.
  bool offloads = false;  ///< Slots are in host memory, `resident_slots` of them on the device too.

  friend bool operator==(const StageBounds&, const StageBounds&) = default;
};

/// What the memory of a stage depends on.
struct StageShape {
  ModelSpec model;
  StageSpec spec;
  StageBounds bounds;
  std::uint32_t microbatch_count = 1;  ///< The most of any step.
  std::uint32_t microbatch_size = 1;
  OptimizerKind optimizer = OptimizerKind::adamw;
  OptimizerSharding sharding = OptimizerSharding::none;
  Shard shard{};
  Holder holder{};
  std::uint32_t staleness = 0;

  /// Of how many steps it keeps weights and gradients.
  [[nodiscard]] std::uint32_t copy_count() const noexcept {
    return bounds.trains && holder.has_server && !holder.is_server() ? staleness + 1 : 1;
  }
  /// A server runs none.
  [[nodiscard]] bool runs_passes() const noexcept { return !holder.is_server(); }
  /// Whether it keeps the optimizer's state of what it holds, or of a part; if it has a server,
  /// that one does.
  [[nodiscard]] bool updates() const noexcept {
    return bounds.trains && holder.has_server == holder.is_server();
  }
};

/// The name of a tensor's copy `copy`, the first of which has the tensor's own.
[[nodiscard]] inline std::string name_of_copy(std::uint32_t copy, const std::string& name) {
  return copy == 0 ? name : std::to_string(copy) + ' ' + name;
}

/// One tensor of a stage's arena.
struct TensorSpec {
  std::string use;               ///< What it is for: a line of the memory budget.
  std::string name;              ///< Unique within the use.
  std::uint64_t size_bytes = 0;  ///< What it holds, without padding.
  bool for_host = false;         ///< In page-locked host memory, where the device writes it.
};

/// Floats of each array that the optimizer keeps of a parameter of which it updates
/// `element_count` elements: two of that size for AdamW and Adam, one for SGD, and for Adafactor,
/// which updates all, one for rows and one for columns. A vector is one row.
[[nodiscard]] std::vector<std::uint64_t> optimizer_state_of(OptimizerKind optimizer,
                                                            const ParameterSpec& spec,
                                                            std::uint64_t element_count);

/// Every tensor a stage allocates, in the order in which they lie in its arena; those for the host,
/// in an arena of their own, are the last. `graph` is `graph_of(shape)`.
[[nodiscard]] std::vector<TensorSpec> tensors_of(const StageGraph& graph, const StageShape& shape);

/// The graph of a stage that needs these buffers.
[[nodiscard]] StageGraph graph_of(const StageShape& shape);

/// A named number of bytes.
struct MemoryItem {
  std::string name;
  std::uint64_t bytes = 0;
  bool for_host = false;  ///< In page-locked host memory.

  friend bool operator==(const MemoryItem&, const MemoryItem&) = default;
};

/// Everything a stage allocates, one named line per use: parameters, gradients, optimizer state,
/// tied gradients, slots, edge buffers, constants, workspace, the tokens of a step, and results for
/// the host. Each line includes the padding of every tensor in it; a line of no bytes is left out.
[[nodiscard]] std::vector<MemoryItem> memory_of(const StageShape& shape);

}  // namespace troupe
