// troupe/engine/index.hpp -- strong index types, so a stage can never be passed as a microbatch.
#pragma once

#include <compare>
#include <cstdint>

namespace troupe {

/// A zero-based position in one named sequence.
///
/// `Tag` only tells sequences apart; two indices with different tags never compare or convert.
/// An index is not a count: the number of items is always a plain `std::uint32_t` named
/// `*_count`, and `index.value() < count` is the only valid relation between the two.
template <class Tag>
class Index {
public:
  constexpr Index() = default;

  explicit constexpr Index(std::uint32_t value) noexcept : value_{value} {}

  [[nodiscard]] constexpr std::uint32_t value() const noexcept { return value_; }

  friend constexpr auto operator<=>(Index, Index) = default;

private:
  std::uint32_t value_ = 0;
};

/// Position of a virtual stage along the model; stage 0 reads tokens, the last computes the loss.
using StageIndex = Index<struct StageIndexTag>;

/// Position along the pipeline axis of the grid. A rank holds one or several virtual stages.
using RankIndex = Index<struct RankIndexTag>;

/// Position of a microbatch inside one optimizer step of one replica.
using MicrobatchIndex = Index<struct MicrobatchIndexTag>;

}  // namespace troupe
