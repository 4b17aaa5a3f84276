// troupe/engine/model_spec.hpp -- which model is trained, as plain data.
#pragma once

#include <cstdint>

namespace troupe {

/// The architecture.
enum class Family : std::uint8_t {
  gpt2,  ///< Learned positions, pre-norm blocks, tanh GELU, four times wider feed-forward.
};

/// The shape of a model. All counts at least 1; `hidden` is a multiple of `heads`.
struct ModelSpec {
  Family family = Family::gpt2;
  std::uint32_t layers = 6;
  std::uint32_t heads = 6;
  std::uint32_t hidden = 384;
  std::uint32_t sequence = 256;    ///< Tokens of context.
  std::uint32_t vocabulary = 256;  ///< Distinct tokens.
  bool tie_embeddings = true;      ///< The head multiplies by the token embedding.

  friend bool operator==(const ModelSpec&, const ModelSpec&) = default;
};

}  // namespace troupe
