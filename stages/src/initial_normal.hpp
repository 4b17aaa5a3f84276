// stages/src/initial_normal.hpp -- the counter-based generator of initial weights.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

namespace troupe::stages {

/// The normal numbers of one parameter: `initial_normal` without hashing the name each time.
class InitialNormal {
public:
  InitialNormal(std::uint64_t seed, std::string_view name) noexcept;

  /// Element `index`.
  [[nodiscard]] float operator()(std::uint64_t index) const noexcept;

  /// Writes `deviation` times each element, from element `first` on, an even number.
  void fill(std::span<float> values, float deviation, std::uint64_t first = 0) const noexcept;

private:
  /// Elements 2k and 2k + 1: one Box-Muller transform in double of two uniform numbers of 53 bits,
  /// the finalisers of key + 2k + 1 and key + 2k + 2 golden ratios.
  [[nodiscard]] std::array<float, 2> pair(std::uint64_t k) const noexcept;

  std::uint64_t key_;
};

}  // namespace troupe::stages
