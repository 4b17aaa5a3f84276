// troupe/engine/part.hpp -- how the members of a group share out an array.
#pragma once

#include <cstddef>
#include <cstdint>

#include "troupe/engine/check.hpp"

namespace troupe {

/// A stretch of an array, in bytes.
struct Part {
  std::size_t begin_bytes = 0;
  std::size_t size_bytes = 0;

  friend constexpr bool operator==(const Part&, const Part&) = default;
};

/// The part of an array of `array_bytes` that member `index` of `count` owns: equal shares, rounded
/// down to cache lines, the last one up to the end. Parts may be empty; they cover the array in
/// order and without gaps, and cut no 32-bit float if the array holds such.
[[nodiscard]] constexpr Part part_of(std::size_t array_bytes, std::uint32_t count,
                                     std::uint32_t index) {
  TROUPE_ASSERT(index < count);
  constexpr std::size_t line_bytes = 64;  // No line is written by two threads.
  const auto bound = [&](std::size_t i) {
    return i == count ? array_bytes : array_bytes * i / count / line_bytes * line_bytes;
  };
  return {bound(index), bound(index + 1) - bound(index)};
}

}  // namespace troupe
