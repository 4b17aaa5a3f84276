// troupe/storage/labelled_sampler.hpp -- which text of a labelled corpus each sample of each step
// is, and how a sample is made of it.
//
// A sample is a first token of its own, of which the class is told, then the text as far as it
// fits, then zeros. Which text sample g of a step is depends on (seed, step, g) alone, as in
// sampler.hpp.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "troupe/storage/labelled_corpus.hpp"
#include "troupe/storage/sampler.hpp"

namespace troupe::storage {

/// Where the samples of one replica in one step go.
struct LabelledRows {
  std::span<std::int32_t> tokens;   ///< [microbatches, microbatch_size, sequence]
  std::span<std::int32_t> lengths;  ///< [microbatches, microbatch_size]: tokens before the zeros.
  std::span<std::int32_t> labels;   ///< [microbatches, microbatch_size]; -1 where there is no text.
};

/// Draws the training samples without replacement, epoch after epoch, each in an order of its own.
///
/// Thread-safe; never allocates.
class LabelledTrainingSampler {
public:
  /// @param texts At least one; they outlive the sampler.
  LabelledTrainingSampler(std::span<const LabelledText> texts, const BatchShape& shape,
                          std::uint64_t seed, std::int32_t first_token);

  /// Which text the `sample`-th of the run is, counted from 0 over all steps and replicas.
  [[nodiscard]] std::uint64_t index_of(std::uint64_t sample) const;

  /// Writes the samples of `replica` in `step`, counted from 1.
  void fill(std::uint32_t step, std::uint32_t replica, const LabelledRows& rows) const;

private:
  std::span<const LabelledText> texts_;
  BatchShape shape_;
  std::uint64_t seed_;
  std::int32_t first_token_;
};

/// The held-out texts in their order, each once: `batch_count` batches of the size of a step, of
/// which the last ends with samples without text.
///
/// Thread-safe.
class LabelledValidationSampler {
public:
  /// @param texts At least one; they outlive the sampler.
  LabelledValidationSampler(std::span<const LabelledText> texts, const BatchShape& shape,
                            std::int32_t first_token);

  [[nodiscard]] std::uint32_t batch_count() const noexcept;

  /// The texts of `batch`, counted from 1: at most as many as it has samples over all replicas, and
  /// they are the first of these.
  [[nodiscard]] std::span<const LabelledText> texts_of(std::uint32_t batch) const;

  /// Writes the samples of `replica` in `batch`.
  void fill(std::uint32_t batch, std::uint32_t replica, const LabelledRows& rows) const;

private:
  std::span<const LabelledText> texts_;
  BatchShape shape_;
  std::int32_t first_token_;
};

}  // namespace troupe::storage
