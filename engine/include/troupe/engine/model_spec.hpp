// troupe/engine/model_spec.hpp -- which model is trained, as plain data.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string_view>

namespace troupe {

struct CustomLayer;

/// The architecture.
enum class Family : std::uint8_t {
  gpt2,    ///< Learned positions, layer norms before each part, tanh GELU.
  llama,   ///< Rotary positions, RMS norms before each part, grouped queries, SwiGLU, no biases.
  bert,    ///< Learned positions and segments, every token sees all, layer norms after each part,
           ///< exact GELU.
  custom,  ///< `ModelSpec::custom_layer`, which a program defines.
};

/// As they are written in files, by value.
inline constexpr std::array<std::string_view, 4> family_names{"gpt2", "llama", "bert", "custom"};

/// What a BERT learns. The other families learn to tell the next token.
enum class Task : std::uint8_t {
  masked,          ///< To tell some tokens of a sequence from the others.
  classification,  ///< To tell the class of a sequence.
};

/// As they are written in files, by value.
inline constexpr std::array<std::string_view, 2> task_names{"masked", "classification"};

/// Parts of a sequence that a BERT tells apart, for example question and answer.
inline constexpr std::uint32_t segment_count = 2;

/// Integers that a batch has for each sequence.
struct BatchWidths {
  std::uint32_t tokens = 0;
  std::uint32_t segments = 0;
  std::uint32_t lengths = 0;
  std::uint32_t targets = 0;

  [[nodiscard]] constexpr std::uint64_t sum() const noexcept {
    return std::uint64_t{tokens} + segments + lengths + targets;
  }
};

/// The shape of a model. All counts at least 1 where 0 is not said to mean something; `hidden` is a
/// multiple of `heads`, and `heads` of `kv_heads`.
struct ModelSpec {
  Family family = Family::gpt2;
  std::uint32_t layers = 6;
  std::uint32_t heads = 6;
  std::uint32_t hidden = 384;
  std::uint32_t sequence = 256;    ///< Tokens of context.
  std::uint32_t vocabulary = 256;  ///< Distinct tokens.
  bool tie_embeddings = true;      ///< The head multiplies by the token embedding.
  std::uint32_t kv_heads = 0;      ///< Keys and values are shared by groups of heads; 0: by none.
  std::uint32_t feed_forward = 0;  ///< Its width; 0: what the family takes, see below.
  double rotary_base = 10'000.0;   ///< Of the wavelengths of rotary positions.
  double norm_epsilon = 1e-5;      ///< Is added to variances.
  Task task = Task::masked;        ///< Of a BERT.
  std::uint32_t classes = 0;       ///< Of a classification; 0: there is none.
  /// The share of elements that training drops (Srivastava et al. 2014) of what is embedded, of
  /// what each part of a layer adds, and of what classes are told from.
  double dropout = 0.0;
  double attention_dropout = 0.0;  ///< The same of the probabilities of attention.
  /// Of `Family::custom`, see layer_builder.hpp; null for others. No file can hold one.
  std::shared_ptr<const CustomLayer> custom_layer{};

  [[nodiscard]] std::uint32_t head_size() const noexcept { return hidden / heads; }
  [[nodiscard]] std::uint32_t kv_head_count() const noexcept {
    return kv_heads == 0 ? heads : kv_heads;
  }
  /// GPT-2, BERT and custom: 4 hidden. Llama: 8/3 hidden, which gives its three matrices as many
  /// elements, rounded up to a multiple of 64.
  [[nodiscard]] std::uint32_t feed_forward_width() const noexcept {
    if (feed_forward != 0) return feed_forward;
    return family == Family::llama ? (8 * hidden + 3 * 64 - 1) / (3 * 64) * 64 : 4 * hidden;
  }
  [[nodiscard]] bool classifies() const noexcept {
    return family == Family::bert && task == Task::classification;
  }
  /// What a target is one of: words or classes.
  [[nodiscard]] std::uint32_t outcome_count() const noexcept {
    return classifies() ? classes : vocabulary;
  }
  [[nodiscard]] BatchWidths batch_widths() const noexcept {
    const bool is_bert = family == Family::bert;
    return {.tokens = sequence,
            .segments = is_bert ? sequence : 0,
            .lengths = is_bert ? 1U : 0U,
            .targets = classifies() ? 1 : sequence};
  }

  /// As it is when it does not train.
  [[nodiscard]] ModelSpec without_dropout() const noexcept {
    auto model = *this;
    model.dropout = 0.0;
    model.attention_dropout = 0.0;
    return model;
  }

  /// With what zeros stand for.
  [[nodiscard]] ModelSpec resolved() const noexcept {
    auto model = *this;
    model.kv_heads = kv_head_count();
    model.feed_forward = feed_forward_width();
    return model;
  }

  friend bool operator==(const ModelSpec&, const ModelSpec&) = default;
};

}  // namespace troupe
