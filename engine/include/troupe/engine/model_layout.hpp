// troupe/engine/model_layout.hpp -- every tensor of a stage by name and shape: what a stage
// allocates and what the memory budget announces are the same list.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "troupe/engine/model_spec.hpp"
#include "troupe/engine/partition.hpp"

namespace troupe {

/// How a parameter starts.
enum class Initial : std::uint8_t {
  zeros,
  ones,
  normal,  ///< Mean 0, standard deviation `ParameterSpec::deviation`.
};

/// One parameter tensor. Names and shapes are those of Hugging Face's GPT-2.
struct ParameterSpec {
  std::string name;
  std::vector<std::uint64_t> shape;
  Initial initial = Initial::zeros;
  float deviation = 0.0F;
  bool decays = false;  ///< Weight decay applies: matrices, not norms and biases.
  bool owned = true;    ///< False for the last stage's copy of a tied embedding.

  [[nodiscard]] std::uint64_t element_count() const noexcept;
};

/// The parameters of one stage in model order: the order of the serial model's forward pass.
[[nodiscard]] std::vector<ParameterSpec> parameters_of(const ModelSpec& model,
                                                       const StageSpec& stage);

/// The parameters of the whole model in model order, each once.
[[nodiscard]] std::vector<ParameterSpec> parameters_of(const ModelSpec& model);

/// How many of each buffer a stage needs; derived from its schedule.
struct StageBounds {
  std::uint32_t slots = 1;  ///< Sets of saved activations, held from F to the end of B or W.
  std::uint32_t activations_in =
      0;  ///< Buffers; one is held from its arrival to the end of B or W.
  std::uint32_t activations_out = 0;  ///< Buffers; one is held from F until it is sent.
  std::uint32_t gradients_in = 0;   ///< Buffers; one is held from its arrival to the end of B or W.
  std::uint32_t gradients_out = 0;  ///< Buffers; one is held from B or I until it is sent.
  bool splits_backward = false;     ///< Slots keep output gradients for a later weight pass.
  bool trains = true;               ///< False: evaluation only; no gradients, no optimizer.

  friend bool operator==(const StageBounds&, const StageBounds&) = default;
};

/// One tensor of a stage's arena.
struct TensorSpec {
  std::string holder;            ///< What it is for: a line of the memory budget.
  std::string name;              ///< Unique within the holder.
  std::uint64_t size_bytes = 0;  ///< What it holds, without padding.
  bool for_host = false;         ///< In page-locked host memory, where the device writes it.
};

/// Tensors begin at multiples of this many bytes: a cache line, the widest vector.
inline constexpr std::uint64_t tensor_alignment_bytes = 64;

/// `size_bytes`, rounded up to whole alignments.
[[nodiscard]] constexpr std::uint64_t padded(std::uint64_t size_bytes) noexcept {
  return (size_bytes + tensor_alignment_bytes - 1) / tensor_alignment_bytes
         * tensor_alignment_bytes;
}

/// Every tensor a stage allocates, in the order in which they lie in its arena; those for the host,
/// in an arena of their own, are the last. `microbatch_count` is the most of a step. With `rows` =
/// microbatch_size * sequence, a slot saves for each layer 16 `[rows, hidden]` and five small
/// tensors; for a split backward 4 `[rows, hidden]` more per layer and 7 once: the gradients of the
/// two widest tensors move into the memory of the activations that the layer above no longer needs.
[[nodiscard]] std::vector<TensorSpec> tensors_of(const ModelSpec& model, const StageSpec& stage,
                                                 const StageBounds& bounds,
                                                 std::uint32_t microbatch_count,
                                                 std::uint32_t microbatch_size,
                                                 std::uint32_t optimizer_words);

/// The layers whose activations a slot keeps apart: all, or one set that all share when the stage
/// does not train.
[[nodiscard]] std::uint32_t kept_layer_count(const StageSpec& stage, bool trains) noexcept;

/// The `[rows, hidden]` tensors between the parts of a stage that a slot keeps: the input of each
/// layer and of the head, save those that are edge buffers; one that all share when the stage does
/// not train.
[[nodiscard]] std::uint32_t kept_hidden_count(const StageSpec& stage, bool trains) noexcept;

/// A named number of bytes.
struct MemoryItem {
  std::string name;
  std::uint64_t bytes = 0;

  friend bool operator==(const MemoryItem&, const MemoryItem&) = default;
};

/// Everything a stage allocates, one named line per holder: parameters, gradients, optimizer state
/// (`optimizer_words` floats per parameter element: 2 for AdamW, 1 for SGD), tied gradients, slots,
/// edge buffers, workspace, the tokens of a step, and results for the host. Each line includes the
/// padding of every tensor in it; a line of no bytes is left out.
[[nodiscard]] std::vector<MemoryItem> memory_of(const ModelSpec& model, const StageSpec& stage,
                                                const StageBounds& bounds,
                                                std::uint32_t microbatch_count,
                                                std::uint32_t microbatch_size,
                                                std::uint32_t optimizer_words);

/// Floating-point operations of a pass of one microbatch on `stage`, a multiply-add counted as two;
/// causal attention counted in full: together 6 N + 12 L T C per token, N the elements of the
/// matrices that multiply (Narayanan et al. 2021, appendix; Chowdhery et al. 2022, appendix B).
struct PassFlops {
  double forward = 0.0;
  double backward_input = 0.0;
  double backward_weight = 0.0;
};
[[nodiscard]] PassFlops flops_of(const ModelSpec& model, const StageSpec& stage,
                                 std::uint32_t microbatch_size);

}  // namespace troupe
