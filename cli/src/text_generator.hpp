// cli/src/text_generator.hpp -- a model on one stage that continues a text, token by token.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "troupe/engine/expected.hpp"
#include "troupe/engine/model_spec.hpp"
#include "troupe/stages/device.hpp"
#include "troupe/stages/transformer_stage.hpp"

namespace troupe::cli {

/// How a token is chosen.
struct Sampling {
  double temperature = 0.8;  ///< 0: the likeliest.
  std::uint64_t seed = 1;
};

/// The tokens of the tokenizer "bytes"; a vocabulary may be padded to more.
inline constexpr std::uint32_t byte_count = 256;

/// Every token costs a forward pass over the whole context. Blocks.
class TextGenerator {
public:
  /// @returns `out_of_memory` if the device refuses.
  [[nodiscard]] static Expected<TextGenerator> make(stages::Device& device, const ModelSpec& model,
                                                    std::uint32_t thread_count);

  /// Its parameters are to be written before anything is generated.
  [[nodiscard]] stages::Stage& stage() { return *stage_; }

  /// Continues `prompt`, at least one byte, by `token_count` bytes and returns both. Looks back at
  /// most one sequence.
  [[nodiscard]] std::string continue_text(std::string_view prompt, std::uint32_t token_count,
                                          const Sampling& sampling);

private:
  TextGenerator() = default;
  [[nodiscard]] std::span<const float> next_logits(std::string_view context);

  ModelSpec model_;
  stages::Batch batch_;
  std::unique_ptr<stages::Stream> stream_;
  std::unique_ptr<stages::TransformerStage> stage_;
  std::vector<float> logits_;  ///< [vocabulary]
};

/// `text` with bytes that a terminal would not show as themselves replaced by "·".
[[nodiscard]] std::string printable(std::string_view text);

}  // namespace troupe::cli
