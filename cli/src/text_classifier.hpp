// cli/src/text_classifier.hpp -- a model on one stage that tells the classes of texts.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "troupe/engine/expected.hpp"
#include "troupe/engine/model_spec.hpp"
#include "troupe/stages/device.hpp"
#include "troupe/stages/transformer_stage.hpp"
#include "troupe/storage/labelled_sampler.hpp"

namespace troupe::cli {

/// Sees texts as a training does: behind a word of its own, as far as the context reaches.
class TextClassifier {
public:
  /// @param model One that classifies.
  /// @param batch_size How many texts are told together, at least one.
  /// @returns `out_of_memory` if the device refuses.
  [[nodiscard]] static Expected<TextClassifier> make(stages::Device& device, const ModelSpec& model,
                                                     std::uint32_t batch_size,
                                                     std::uint32_t thread_count);

  /// Its parameters are to be written before anything is classified.
  [[nodiscard]] stages::Stage& stage() { return *stage_; }

  /// Returns how probable each class of each text is, [texts, classes], 1 in the sum of a text.
  /// Blocks.
  /// @param texts One to a batch of them, none empty.
  [[nodiscard]] std::vector<double> probabilities(std::span<const std::string_view> texts);

private:
  TextClassifier() = default;

  std::uint32_t class_count_ = 0;
  storage::BatchShape shape_;
  stages::Batch batch_;
  std::unique_ptr<stages::Stream> stream_;
  std::unique_ptr<stages::TransformerStage> stage_;
};

}  // namespace troupe::cli
