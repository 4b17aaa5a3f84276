// stages/src/cpu/masks.hpp -- what dropout keeps, a vector of counters at a time.
#pragma once

#include <array>

#include "isa.hpp"
#include "vector.hpp"

namespace troupe::stages::TROUPE_ISA {

/// As many sets of four words as a vector has lanes.
struct Words {
  Unsigned of[4];
};

inline void mix(Unsigned& a, Unsigned& b, std::uint32_t bits) {
  a += b;
  b = (b << bits | b >> (32 - bits)) ^ a;
}

/// Threefry4x32-20 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). Of 32 bits
/// it needs but sums, shifts and xor, which every instruction set has for vectors.
inline Words threefry(Words x, const std::array<std::uint32_t, 4>& key) {
  constexpr std::uint32_t rotations[8][2] = {{10, 26}, {11, 21}, {13, 27}, {23, 5},
                                             {6, 20},  {17, 11}, {25, 10}, {18, 20}};
  const std::uint32_t parity = 0x1bd11bdaU ^ key[0] ^ key[1] ^ key[2] ^ key[3];
  const std::uint32_t schedule[5] = {key[0], key[1], key[2], key[3], parity};
#pragma GCC unroll 4
  for (std::size_t i = 0; i < 4; ++i) x.of[i] += schedule[i];
#pragma GCC unroll 5
  for (std::size_t fours = 1; fours <= 5; ++fours) {
#pragma GCC unroll 4
    for (std::size_t round = 0; round < 4; ++round) {
      const auto& [first, second] = rotations[4 * (fours - 1) % 8 + round];
      mix(x.of[0], x.of[round % 2 == 0 ? 1 : 3], first);
      mix(x.of[2], x.of[round % 2 == 0 ? 3 : 1], second);
    }
#pragma GCC unroll 4
    for (std::size_t i = 0; i < 4; ++i) x.of[i] += schedule[(fours + i) % 5];
    x.of[3] += static_cast<std::uint32_t>(fours);
  }
  return x;
}

/// Calls body(column, lanes, factor) over the first `count` columns of a row of a mask: factors are
/// `scale` for what is kept and 0 for what is dropped.
template <class Body>
[[gnu::always_inline]] inline void for_each_factor(const Mask& mask, std::size_t row,
                                                   std::size_t count, Body body) {
  constexpr std::size_t counters = 16;  // Of a block of columns: four words from each.
  for (std::size_t begin = 0; begin < count; begin += 4 * counters) {
    for (std::size_t first = 0; first < counters; first += width) {
      const auto numbers = reinterpret_cast<Unsigned>(lane_numbers());
      const auto words = threefry({{numbers + static_cast<std::uint32_t>(begin / 4 + first),
                                    Unsigned{} + static_cast<std::uint32_t>(row),
                                    Unsigned{} + mask.site, Unsigned{} + mask.head}},
                                  mask.key);
#pragma GCC unroll 4
      for (std::size_t word = 0; word < 4; ++word) {
        const std::size_t column = begin + word * counters + first;
        if (column >= count) break;
        const Vector factor = words.of[word] >= mask.threshold ? splat(mask.scale) : Vector{};
        if (column + width <= count) {
          body(column, Whole{}, factor);
        } else {
          body(column, First{count - column}, factor);
        }
      }
    }
  }
}

}  // namespace troupe::stages::TROUPE_ISA
