// storage/src/safetensors_format.hpp -- what writing and reading safetensors share.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string_view>

#include "troupe/storage/safetensors.hpp"

namespace troupe::storage {

inline constexpr std::size_t length_size_bytes = 8;
inline constexpr std::uint64_t header_size_max_bytes = 100'000'000;
inline constexpr std::string_view metadata_key = "__metadata__";

struct DTypeSpec {
  std::string_view name;
  std::uint32_t bits;
};

/// By `DType`.
inline constexpr std::array<DTypeSpec, 22> dtype_specs{{
    {"BOOL", 8},    {"U8", 8},      {"I8", 8},          {"U16", 16},        {"I16", 16},
    {"U32", 32},    {"I32", 32},    {"U64", 64},        {"I64", 64},        {"F16", 16},
    {"BF16", 16},   {"F32", 32},    {"F64", 64},        {"C64", 64},        {"F8_E5M2", 8},
    {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"F4", 4},
    {"F6_E2M3", 6}, {"F6_E3M2", 6},
}};

/// The bytes of a tensor, or nothing if they are not a whole number or do not fit 64 bits.
[[nodiscard]] inline std::optional<std::uint64_t> size_bytes_of(
    DType dtype, std::span<const std::uint64_t> shape) {
  std::uint64_t bits = bits_of(dtype);
  for (const auto dim : shape) {
    if (dim == 0) return 0;
  }
  for (const auto dim : shape) {
    if (bits > std::numeric_limits<std::uint64_t>::max() / dim) return std::nullopt;
    bits *= dim;
  }
  if (bits % 8 != 0) return std::nullopt;
  return bits / 8;
}

}  // namespace troupe::storage
