// cli/src/corpus_batches.hpp -- the batches of a run, drawn from its corpus.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>

#include "troupe/actors/batch_source.hpp"
#include "troupe/engine/expected.hpp"
#include "troupe/engine/plan.hpp"
#include "troupe/storage/corpus.hpp"
#include "troupe/storage/labelled_sampler.hpp"
#include "troupe/storage/sampler.hpp"

namespace troupe::cli {

/// The first word behind the bytes: it hides others, or stands before a text that is to be
/// classified.
inline constexpr std::uint32_t added_word = 256;

/// Stretches of a text, whose next tokens, or whose masked ones, are to be told.
class TextBatches {
public:
  TextBatches(storage::Corpus corpus, const Config& config);

  void fill(StepKind kind, std::uint32_t step, std::uint32_t replica, stages::Batch& batch) const;
  [[nodiscard]] bool validates() const noexcept { return validation_.has_value(); }
  [[nodiscard]] const storage::Corpus& corpus() const noexcept { return corpus_; }

private:
  void hide(StepKind kind, std::uint32_t step, std::uint32_t replica, stages::Batch& batch) const;

  storage::Corpus corpus_;
  storage::BatchShape shape_;
  std::uint64_t seed_;
  bool masks_;
  storage::TrainingSampler training_;
  std::optional<storage::ValidationSampler> validation_;
};

/// Texts whose classes are to be told.
class LabelledBatches {
public:
  LabelledBatches(storage::LabelledCorpus corpus, const Config& config);

  void fill(StepKind kind, std::uint32_t step, std::uint32_t replica, stages::Batch& batch) const;
  [[nodiscard]] bool validates() const noexcept { return validation_.has_value(); }
  [[nodiscard]] const storage::LabelledCorpus& corpus() const noexcept { return corpus_; }

  /// Batches that have all that is held out, each text once. For a run that validates, as below.
  [[nodiscard]] std::uint32_t validation_batch_count() const { return validation_->batch_count(); }
  /// The texts of a batch of them, counted from 1, in the order of the step's sequences.
  [[nodiscard]] std::span<const storage::LabelledText> validation_texts(std::uint32_t batch) const {
    return validation_->texts_of(batch);
  }
  /// Of the texts, those that a sequence has no room for as a whole.
  [[nodiscard]] std::uint64_t cut_count() const;

private:
  storage::LabelledCorpus corpus_;
  storage::BatchShape shape_;
  storage::LabelledTrainingSampler training_;
  std::optional<storage::LabelledValidationSampler> validation_;
};

/// The same in every process of a run. Thread-safe once it is made.
class CorpusBatches {
public:
  /// @returns `invalid_config` if the text cannot serve the model, or what `storage::Corpus::open`
  ///          or `storage::LabelledCorpus::open` returns.
  [[nodiscard]] static Expected<std::shared_ptr<const CorpusBatches>> open(const Plan& plan);

  /// Makes batches from `batches` as long as the source lives.
  [[nodiscard]] static actors::BatchSource source(std::shared_ptr<const CorpusBatches> batches);

  /// Whether there is something to validate with, and it is wanted.
  [[nodiscard]] bool validates() const;
  /// Of the corpus; see `storage::TokenFile::fingerprint`.
  [[nodiscard]] std::string fingerprint() const;

  /// Null where the texts are labelled.
  [[nodiscard]] const TextBatches* text() const { return std::get_if<TextBatches>(&batches_); }
  /// Null where they are not.
  [[nodiscard]] const LabelledBatches* labelled() const {
    return std::get_if<LabelledBatches>(&batches_);
  }

private:
  using Batches = std::variant<TextBatches, LabelledBatches>;
  explicit CorpusBatches(Batches batches) : batches_{std::move(batches)} {}

  Batches batches_;
};

}  // namespace troupe::cli
