// cli/src/corpus_batches.hpp -- the batches of a run, drawn from its corpus.
#pragma once

#include <memory>
#include <optional>

#include "troupe/actors/batch_source.hpp"
#include "troupe/engine/expected.hpp"
#include "troupe/engine/plan.hpp"
#include "troupe/storage/corpus.hpp"
#include "troupe/storage/sampler.hpp"

namespace troupe::cli {

/// The same in every process of a run. Thread-safe once it is made.
class CorpusBatches {
public:
  /// @returns `invalid_config` if the text cannot serve the model, or what `storage::Corpus::open`
  /// returns.
  [[nodiscard]] static Expected<std::shared_ptr<const CorpusBatches>> open(const Plan& plan);

  /// Makes batches from `batches` as long as the source lives.
  [[nodiscard]] static actors::BatchSource source(std::shared_ptr<const CorpusBatches> batches);

  /// Whether there is something to validate with, and it is wanted.
  [[nodiscard]] bool validates() const noexcept { return validation_.has_value(); }
  [[nodiscard]] const storage::Corpus& corpus() const noexcept { return corpus_; }

private:
  CorpusBatches(storage::Corpus corpus, const Config& config);

  void hide(StepKind kind, std::uint32_t step, std::uint32_t replica, stages::Batch& batch) const;

  storage::Corpus corpus_;
  storage::BatchShape shape_;
  std::uint64_t seed_;
  bool masks_;
  storage::TrainingSampler training_;
  std::optional<storage::ValidationSampler> validation_;
};

}  // namespace troupe::cli
