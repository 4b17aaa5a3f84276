// troupe/storage/masking.hpp -- which tokens of a sample a BERT is to tell, and what it sees there.
#pragma once

#include <cstdint>
#include <span>

namespace troupe::storage {

/// How many tokens of a sample are to be told: 15 %, and at least one. Always as many, so that the
/// targets of a step are known without looking at them.
[[nodiscard]] std::uint32_t masked_count_of(std::uint32_t sequence) noexcept;

/// What tells the masks of samples apart: those of a run have the seed, and each its number.
[[nodiscard]] std::uint64_t masking_key(std::uint64_t seed, std::uint64_t sample) noexcept;

/// Hides tokens of a sample as Devlin et al. 2019 do (section 3.1): of those that `key` draws,
/// eight in ten are replaced by `mask`, one in ten by any token below `mask`, and one in ten stays.
/// There `targets` are what the tokens were, elsewhere -1. Both spans have the length of the
/// sequence.
void mask_tokens(std::uint64_t key, std::int32_t mask, std::span<std::int32_t> tokens,
                 std::span<std::int32_t> targets);

}  // namespace troupe::storage
