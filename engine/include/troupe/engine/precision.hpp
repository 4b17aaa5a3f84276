// troupe/engine/precision.hpp -- in which numbers a model computes.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace troupe {

/// What the products with weights multiply. Everything else, also what they add up, is fp32.
enum class Precision : std::uint8_t {
  fp32,
  bf16,  ///< Operands are rounded to bfloat16: the upper half of an fp32.
};

/// As they are written in files, by value.
inline constexpr std::array<std::string_view, 2> precision_names{"fp32", "bf16"};

}  // namespace troupe
