// troupe/engine/precision.hpp -- in which numbers a model computes, and gradients travel.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace troupe {

/// What the products with weights multiply. Everything else, also what they add up, is fp32.
enum class Precision : std::uint8_t {
  fp32,
  bf16,  ///< Operands are rounded to bfloat16: the upper half of an fp32.
  fp16,  ///< To IEEE half precision, which ends at 65504: the loss is scaled, see `LossScaler`.
};

/// As they are written in files, by value.
inline constexpr std::array<std::string_view, 3> precision_names{"fp32", "bf16", "fp16"};

/// In what members of a group send each other addends, and their sums. They add up in fp32.
enum class WireFormat : std::uint8_t { fp32, bf16 };

inline constexpr std::array<std::string_view, 2> wire_format_names{"fp32", "bf16"};

/// Of a number on its way.
[[nodiscard]] constexpr std::size_t bytes_per_number(WireFormat format) noexcept {
  return format == WireFormat::bf16 ? 2 : 4;
}

}  // namespace troupe
