// engine/src/model_families.hpp -- the operations of each family's embedding, layer and head.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "troupe/engine/stage_graph.hpp"

namespace troupe {

/// The forward pass of a stage: what `graph_of` derives everything else from.
struct ForwardPass {
  std::vector<ParameterSpec> parameters;
  std::vector<Operation> operations;
  std::vector<CustomOperation> custom_operations;  ///< Each once.
  std::vector<Value> values;                       ///< Without places.
  ValueIndex input = no_value;   ///< Of the stage, from the one before; none with the embedding.
  ValueIndex output = no_value;  ///< For the stage after; none with the head.

  /// The operations of the embedding, of each layer, of the head: each ends before the next begins.
  /// Blocks of no operations are left out.
  struct Block {
    enum class Kind : std::uint8_t { embedding, layer, head };
    Kind kind{};
    std::uint32_t operations_begin = 0;
    std::uint32_t parameters_begin = 0;
  };
  std::vector<Block> blocks;
};

/// What `shard` has of `count` things in a row: as equal as can be, the first shard no less than
/// others.
struct Share {
  Share(std::uint64_t count, const Shard& shard)
      : begin{(count * shard.index + shard.count - 1) / shard.count},
        end{(count * (shard.index + 1) + shard.count - 1) / shard.count} {}

  [[nodiscard]] std::uint32_t size() const { return static_cast<std::uint32_t>(end - begin); }

  std::uint64_t begin;
  std::uint64_t end;
};

/// With `rows` = microbatch_size * sequence.
[[nodiscard]] ForwardPass forward_pass_of(const ModelSpec& model, const StageSpec& stage,
                                          std::uint32_t microbatch_size, const Shard& shard);

/// What is wrong with the model's own layer on `shard_count` shards, in a sentence that begins with
/// its name, if anything is.
[[nodiscard]] std::optional<std::string> complaint_about_layer(const ModelSpec& model,
                                                               std::uint32_t shard_count);

}  // namespace troupe
