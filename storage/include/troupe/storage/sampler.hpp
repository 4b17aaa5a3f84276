// troupe/storage/sampler.hpp -- which stretch of the corpus each sample of each step is.
//
// A sample is `sequence` tokens and, for each, the token that follows it. The samples of a step are
// numbered g = (replica M + microbatch) B + row over M microbatches of B rows per replica. What
// sample g of a step is depends on (seed, step, g) alone: with the same number of samples per step,
// every grid and every cut into microbatches trains on the same samples.
#pragma once

#include <cstdint>
#include <span>

#include "troupe/engine/config.hpp"
#include "troupe/storage/token_file.hpp"

namespace troupe::storage {

/// How the samples of one step are laid out.
struct BatchShape {
  std::uint32_t replicas = 1;
  std::uint32_t microbatches = 1;     ///< Per replica.
  std::uint32_t microbatch_size = 1;  ///< Rows.
  std::uint32_t sequence = 1;         ///< Tokens.

  [[nodiscard]] std::uint64_t samples_per_replica() const noexcept {
    return std::uint64_t{microbatches} * microbatch_size;
  }
  [[nodiscard]] std::uint64_t samples_per_step() const noexcept {
    return samples_per_replica() * replicas;
  }
  /// The first sample of `replica` in `step`, counted from 1: its number over all steps.
  [[nodiscard]] std::uint64_t first_sample_of(std::uint32_t step, std::uint32_t replica) const;
};

/// The batch shape of a configuration.
[[nodiscard]] BatchShape batch_shape_of(const Config& config) noexcept;

/// A number that tells the pair from others, all but surely: a key of what depends on both.
[[nodiscard]] std::uint64_t mixed(std::uint64_t a, std::uint64_t b) noexcept;

/// A permutation of `[0, count)` drawn by `key`: returns where `index` goes. A Feistel network of
/// four rounds over the next even power of two, walked until it lands below `count` (Black and
/// Rogaway, "Ciphers with arbitrary finite domains", 2002, section 3 and 4): no table, four steps
/// at most on average.
[[nodiscard]] std::uint64_t permuted(std::uint64_t index, std::uint64_t count, std::uint64_t key);

/// Draws the training samples without replacement, epoch after epoch.
///
/// An epoch lays windows of `sequence` tokens side by side over the corpus, from an offset below
/// `sequence` that the epoch draws, and visits each once in an order that the epoch draws. The
/// number of windows is the same in every epoch; up to two windows' worth of tokens at the ends are
/// left out, others each epoch. A corpus too short for that has one window, at a drawn offset.
///
/// Thread-safe; never allocates.
class TrainingSampler {
public:
  /// `tokens` holds at least `shape.sequence + 1`.
  TrainingSampler(TokenView tokens, const BatchShape& shape, std::uint64_t seed);

  [[nodiscard]] std::uint64_t windows_per_epoch() const noexcept { return window_count_; }

  /// Where the `index`-th sample of the run begins, counted from 0 over all steps and replicas.
  [[nodiscard]] std::uint64_t start_of(std::uint64_t index) const;

  /// Writes the samples of `replica` in `step`, counted from 1. Both spans have the shape
  /// [microbatches, microbatch_size, sequence].
  void fill(std::uint32_t step, std::uint32_t replica, std::span<std::int32_t> tokens,
            std::span<std::int32_t> targets) const;

private:
  TokenView tokens_;
  BatchShape shape_;
  std::uint64_t seed_;
  std::uint64_t window_count_;
  std::uint64_t offset_count_;
};

/// The same samples at every validation: `batch_count` steps' worth, spread evenly over the
/// held-out tokens from the first to the last. They overlap only where there are too few tokens.
///
/// Thread-safe; never allocates.
class ValidationSampler {
public:
  /// `tokens` holds at least `shape.sequence + 1`; at most 2^32 samples in all.
  ValidationSampler(TokenView tokens, const BatchShape& shape, std::uint32_t batch_count);

  /// Where the `index`-th sample begins, counted from 0 over all batches and replicas.
  [[nodiscard]] std::uint64_t start_of(std::uint64_t index) const;

  /// Writes the samples of `replica` in `batch`, counted from 1, as `TrainingSampler::fill` does.
  void fill(std::uint32_t batch, std::uint32_t replica, std::span<std::int32_t> tokens,
            std::span<std::int32_t> targets) const;

private:
  TokenView tokens_;
  BatchShape shape_;
  std::uint64_t sample_count_;
};

}  // namespace troupe::storage
