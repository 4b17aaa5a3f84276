#include "corpus_batches.hpp"

#include <utility>

namespace troupe::cli {

Expected<std::shared_ptr<const CorpusBatches>> CorpusBatches::open(const Plan& plan) {
  if (plan.config.model.family == Family::bert) {
    return Error{Errc::invalid_config,
                 "model.family: \"bert\" cannot be trained from text by this command yet; take "
                 "\"gpt2\" or \"llama\", or give actors::Trainer batches of your own"};
  }
  auto corpus = storage::Corpus::open(plan.config.data, plan.config.model.sequence);
  if (!corpus) return corpus.error();
  return std::shared_ptr<const CorpusBatches>{new CorpusBatches{std::move(*corpus), plan.config}};
}

CorpusBatches::CorpusBatches(storage::Corpus corpus, const Config& config)
    : corpus_{std::move(corpus)},
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
  };
}

}  // namespace troupe::cli
