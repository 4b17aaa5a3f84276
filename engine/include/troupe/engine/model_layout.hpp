// troupe/engine/model_layout.hpp -- every tensor of a stage by name and shape: what a stage allocates
// and what the memory budget announces are the same list.
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
  bool decays = false;   ///< Weight decay applies: matrices, not norms and biases.
  bool owned = true;     ///< False for the last stage's copy of a tied embedding.

  [[nodiscard]] std::uint64_t element_count() const noexcept;
};

/// The parameters of one stage in model order: the order of the serial model's forward pass.
[[nodiscard]] std::vector<ParameterSpec> parameters_of(const ModelSpec& model,
                                                       const StageSpec& stage);

/// The parameters of the whole model in model order, each once.
[[nodiscard]] std::vector<ParameterSpec> parameters_of(const ModelSpec& model);

/// A named number of bytes.
struct MemoryItem {
  std::string name;
  std::uint64_t bytes = 0;
};

/// How many of each buffer a stage needs; derived from its schedule.
struct StageBounds {
  std::uint32_t slots = 1;             ///< Sets of saved activations.
  std::uint32_t activations_in = 0;    ///< Buffers.
  std::uint32_t activations_out = 0;   ///< Buffers.
  std::uint32_t gradients_in = 0;      ///< Buffers.
  std::uint32_t gradients_out = 0;     ///< Buffers.
  bool splits_backward = false;        ///< Slots keep output gradients for a later weight pass.
  bool trains = true;                  ///< False: evaluation only; no gradients, no optimizer.

  friend bool operator==(const StageBounds&, const StageBounds&) = default;
};

/// Everything a stage allocates, one named line per holder: parameters, gradients, tied copies,
/// optimizer state (`optimizer_words` floats per parameter element: 2 for AdamW, 1 for SGD), slots,
/// edge buffers, workspace. Each line includes the padding to 64 bytes of every tensor in it.
[[nodiscard]] std::vector<MemoryItem> memory_of(const ModelSpec& model, const StageSpec& stage,
                                                const StageBounds& bounds,
                                                std::uint32_t microbatch_size,
                                                std::uint32_t optimizer_words);

/// Floating-point operations of a pass of one microbatch on `stage`, a multiply-add counted as two;
/// causal attention counted in full (the published 6N plus 12 L T C convention).
struct PassFlops {
  double forward = 0.0;
  double backward_input = 0.0;
  double backward_weight = 0.0;
};
[[nodiscard]] PassFlops flops_of(const ModelSpec& model, const StageSpec& stage,
                                 std::uint32_t microbatch_size);

}  // namespace troupe
