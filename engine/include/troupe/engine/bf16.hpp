// troupe/engine/bf16.hpp -- bfloat16: the upper half of an fp32.
#pragma once

#include <bit>
#include <cstdint>

namespace troupe {

/// The nearest bfloat16, ties to the even one, by carrying into the upper half: what is too large
/// becomes infinite. What is no number becomes the quiet NaN 0x7fc0.
[[nodiscard]] constexpr std::uint16_t to_bf16(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto rounded = static_cast<std::uint16_t>((bits + 0x7fffU + (bits >> 16U & 1U)) >> 16U);
  return value == value ? rounded : std::uint16_t{0x7fc0};
}

[[nodiscard]] constexpr float from_bf16(std::uint16_t bits) noexcept {
  return std::bit_cast<float>(std::uint32_t{bits} << 16U);
}

}  // namespace troupe
