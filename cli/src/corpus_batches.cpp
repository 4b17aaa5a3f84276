#include "corpus_batches.hpp"

#include <algorithm>
#include <utility>

#include "troupe/storage/masking.hpp"

namespace troupe::cli {

namespace {

Expected<Done> check_bert(const ModelSpec& model) {
  if (model.family == Family::bert && model.vocabulary <= added_word) {
    const auto* const needed = model.classifies() ? " leaves no word to stand before each text"
                                                  : " leaves no word that hides the others";
    return Error{Errc::invalid_config,
                 "model.vocabulary: " + std::to_string(model.vocabulary) + needed
                     + ": with data.tokenizer = \"bytes\" a model.family = \"bert\" needs at least "
                     + std::to_string(added_word + 1)};
  }
  if (model.classifies() && model.sequence < 2) {
    return Error{Errc::invalid_config,
                 "model.sequence: 1 leaves no room for a text behind the word that stands before "
                 "it; take at least 2"};
  }
  return Done{};
}

}  // namespace

TextBatches::TextBatches(storage::Corpus corpus, const Config& config)
    : corpus_{std::move(corpus)},
      shape_{storage::batch_shape_of(config)},
      seed_{config.train.seed},
      masks_{config.model.family == Family::bert},
      training_{corpus_.training(), shape_, seed_} {
  if (corpus_.validation().token_count() > 0 && config.train.validation_interval > 0) {
    validation_.emplace(corpus_.validation(), shape_, config.train.validation_batches);
  }
}

void TextBatches::fill(StepKind kind, std::uint32_t step, std::uint32_t replica,
                       stages::Batch& batch) const {
  if (kind == StepKind::training) {
    training_.fill(step, replica, batch.tokens, batch.targets);
  } else {
    validation_->fill(step, replica, batch.tokens, batch.targets);
  }
  if (masks_) hide(kind, step, replica, batch);
}

/// The tokens are whole sequences of one segment, as a batch begins.
void TextBatches::hide(StepKind kind, std::uint32_t step, std::uint32_t replica,
                       stages::Batch& batch) const {
  const auto seed = kind == StepKind::training ? seed_ : ~seed_;
  const auto first = shape_.first_sample_of(step, replica);
  const std::size_t sequence = shape_.sequence;
  for (std::uint64_t row = 0; row < shape_.samples_per_replica(); ++row) {
    storage::mask_tokens(storage::masking_key(seed, first + row), added_word,
                         std::span{batch.tokens}.subspan(row * sequence, sequence),
                         std::span{batch.targets}.subspan(row * sequence, sequence));
  }
  batch.target_count = static_cast<std::uint32_t>(storage::masked_count_of(shape_.sequence)
                                                  * shape_.samples_per_step());
}

LabelledBatches::LabelledBatches(storage::LabelledCorpus corpus, const Config& config)
    : corpus_{std::move(corpus)},
      shape_{storage::batch_shape_of(config)},
      training_{corpus_.training(), shape_, config.train.seed, added_word} {
  if (!corpus_.validation().empty() && config.train.validation_interval > 0) {
    validation_.emplace(corpus_.validation(), shape_, added_word);
  }
}

/// Of one segment, as a batch begins.
void LabelledBatches::fill(StepKind kind, std::uint32_t step, std::uint32_t replica,
                           stages::Batch& batch) const {
  const storage::LabelledRows rows{batch.tokens, batch.lengths, batch.targets};
  if (kind == StepKind::training) {
    training_.fill(step, replica, rows);
    batch.target_count = static_cast<std::uint32_t>(shape_.samples_per_step());
  } else {
    validation_->fill(step, replica, rows);
    batch.target_count = static_cast<std::uint32_t>(validation_->texts_of(step).size());
  }
}

std::uint64_t LabelledBatches::cut_count() const {
  const auto count_in = [&](std::span<const storage::LabelledText> texts) {
    return std::ranges::count_if(texts, [&](const storage::LabelledText& text) {
      return text.text.token_count() > shape_.sequence - 1;
    });
  };
  return static_cast<std::uint64_t>(count_in(corpus_.training()) + count_in(corpus_.validation()));
}

Expected<std::shared_ptr<const CorpusBatches>> CorpusBatches::open(const Plan& plan) {
  const auto& config = plan.config;
  if (auto checked = check_bert(config.model); !checked) return checked.error();
  if (config.model.classifies()) {
    auto corpus = storage::LabelledCorpus::open(config);
    if (!corpus) return corpus.error();
    return std::shared_ptr<const CorpusBatches>{
        new CorpusBatches{LabelledBatches{std::move(*corpus), config}}};
  }
  auto corpus = storage::Corpus::open(config.data, config.model.sequence);
  if (!corpus) return corpus.error();
  return std::shared_ptr<const CorpusBatches>{
      new CorpusBatches{TextBatches{std::move(*corpus), config}}};
}

actors::BatchSource CorpusBatches::source(std::shared_ptr<const CorpusBatches> batches) {
  return [batches = std::move(batches)](StepKind kind, std::uint32_t step, std::uint32_t replica,
                                        stages::Batch& batch) {
    std::visit([&](const auto& of) { of.fill(kind, step, replica, batch); }, batches->batches_);
  };
}

bool CorpusBatches::validates() const {
  return std::visit([](const auto& of) { return of.validates(); }, batches_);
}

std::string CorpusBatches::fingerprint() const {
  return std::visit([](const auto& of) { return of.corpus().fingerprint(); }, batches_);
}

}  // namespace troupe::cli
