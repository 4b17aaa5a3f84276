#include "corpus_batches.hpp"

#include <span>
#include <string>
#include <utility>

#include "troupe/storage/masking.hpp"

namespace troupe::cli {

namespace {

/// The word that hides others: the first behind the bytes.
constexpr std::uint32_t mask = 256;

Expected<Done> check_bert(const ModelSpec& model) {
  if (model.classifies()) {
    return Error{
        Errc::invalid_config,
        "model.task: \"classification\" needs labelled sequences, which this command cannot "
        "read; take \"masked\", or embed actors::Trainer with batches of your own"};
  }
  if (model.family == Family::bert && model.vocabulary <= mask) {
    return Error{Errc::invalid_config,
                 "model.vocabulary: " + std::to_string(model.vocabulary)
                     + " leaves no word that hides the others: with data.tokenizer = \"bytes\" a "
                       "model.family = \"bert\" needs at least "
                     + std::to_string(mask + 1)};
  }
  return Done{};
}

}  // namespace

Expected<std::shared_ptr<const CorpusBatches>> CorpusBatches::open(const Plan& plan) {
  if (auto checked = check_bert(plan.config.model); !checked) return checked.error();
  auto corpus = storage::Corpus::open(plan.config.data, plan.config.model.sequence);
  if (!corpus) return corpus.error();
  return std::shared_ptr<const CorpusBatches>{new CorpusBatches{std::move(*corpus), plan.config}};
}

CorpusBatches::CorpusBatches(storage::Corpus corpus, const Config& config)
    : corpus_{std::move(corpus)},
      shape_{storage::batch_shape_of(config)},
      seed_{config.train.seed},
      masks_{config.model.family == Family::bert},
      training_{corpus_.training(), storage::batch_shape_of(config), config.train.seed} {
  if (corpus_.validation().token_count() > 0 && config.train.validation_interval > 0) {
    validation_.emplace(corpus_.validation(), storage::batch_shape_of(config),
                        config.train.validation_batches);
  }
}

actors::BatchSource CorpusBatches::source(std::shared_ptr<const CorpusBatches> batches) {
  return [batches = std::move(batches)](StepKind kind, std::uint32_t step, std::uint32_t replica,
                                        stages::Batch& batch) {
    if (kind == StepKind::training) {
      batches->training_.fill(step, replica, batch.tokens, batch.targets);
    } else {
      batches->validation_->fill(step, replica, batch.tokens, batch.targets);
    }
    if (batches->masks_) batches->hide(kind, step, replica, batch);
  };
}

/// The tokens are whole sequences of one segment, as a batch begins.
void CorpusBatches::hide(StepKind kind, std::uint32_t step, std::uint32_t replica,
                         stages::Batch& batch) const {
  const auto seed = kind == StepKind::training ? seed_ : ~seed_;
  const auto first =
      (step - 1) * shape_.samples_per_step() + replica * shape_.samples_per_replica();
  const std::size_t sequence = shape_.sequence;
  for (std::uint64_t row = 0; row < shape_.samples_per_replica(); ++row) {
    storage::mask_tokens(storage::masking_key(seed, first + row), mask,
                         std::span{batch.tokens}.subspan(row * sequence, sequence),
                         std::span{batch.targets}.subspan(row * sequence, sequence));
  }
  batch.target_count = static_cast<std::uint32_t>(storage::masked_count_of(shape_.sequence)
                                                  * shape_.samples_per_step());
}

}  // namespace troupe::cli
