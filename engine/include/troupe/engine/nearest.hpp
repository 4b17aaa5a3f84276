// troupe/engine/nearest.hpp -- what a misspelt word was probably meant to be.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace troupe {

/// Counts the single-letter insertions, deletions, replacements and swaps of neighbours that turn
/// `a` into `b` (optimal string alignment). Only the first 64 bytes of each word are looked at, so
/// a hostile word costs no more than a long one.
[[nodiscard]] std::uint32_t edit_distance(std::string_view a, std::string_view b);

/// The candidate nearest to `word`, the first among equals. There is at least one candidate.
[[nodiscard]] std::string_view nearest(std::string_view word,
                                       std::span<const std::string_view> candidates);

}  // namespace troupe
