// stages/src/cpu/vector.hpp -- one vector register of the instruction set that is compiled for, and
// the functions of a real variable on it.
//
// Included by the isa_*.cpp files alone, each of which defines TROUPE_ISA, the name of its
// namespace, and TROUPE_VECTOR_BYTES. Nothing here may be seen by code for another instruction set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

namespace troupe::stages::TROUPE_ISA {

inline constexpr std::size_t width = TROUPE_VECTOR_BYTES / sizeof(float);

using Vector [[gnu::vector_size(TROUPE_VECTOR_BYTES)]] = float;
using Bits [[gnu::vector_size(TROUPE_VECTOR_BYTES)]] = std::int32_t;
using VectorInMemory [[gnu::vector_size(TROUPE_VECTOR_BYTES), gnu::aligned(4), gnu::may_alias]] =
    float;

using HalfBits [[gnu::vector_size(TROUPE_VECTOR_BYTES / 2)]] = std::uint16_t;
using Unsigned [[gnu::vector_size(TROUPE_VECTOR_BYTES)]] = std::uint32_t;

/// How many lanes an access touches: all, or the first few at the end of an array.
struct Whole {};
struct First {
  std::size_t count;
};

inline constexpr std::size_t count_of(Whole /*lanes*/) {
  return width;
}
inline constexpr std::size_t count_of(First lanes) {
  return lanes.count;
}

inline Vector load(const float* from, Whole /*lanes*/ = {}) {
  return *reinterpret_cast<const VectorInMemory*>(from);
}
inline void store(float* to, Vector value, Whole /*lanes*/ = {}) {
  *reinterpret_cast<VectorInMemory*>(to) = value;
}
/// The other lanes are 0.
inline Vector load(const float* from, First lanes) {
  Vector value{};
  std::memcpy(&value, from, lanes.count * sizeof(float));
  return value;
}
inline void store(float* to, Vector value, First lanes) {
  std::memcpy(to, &value, lanes.count * sizeof(float));
}
/// 0, 1, 2, ...
inline Bits lane_numbers() {
  Bits numbers{};
  for (std::size_t i = 0; i < width; ++i) numbers[i] = static_cast<std::int32_t>(i);
  return numbers;
}

/// `value` in the lanes that count, `otherwise` in the others.
inline Vector select(Vector value, Vector /*otherwise*/, Whole /*lanes*/) {
  return value;
}
inline Vector select(Vector value, Vector otherwise, First lanes) {
  return lane_numbers() < static_cast<std::int32_t>(lanes.count) ? value : otherwise;
}
template <class Lanes>
inline Vector keep(Vector value, Lanes lanes) {
  return select(value, Vector{}, lanes);
}

/// Calls body(offset, lanes) over `count` elements.
template <class Body>
[[gnu::always_inline]] inline void for_each_vector(std::size_t count, Body body) {
  std::size_t i = 0;
  for (; i + width <= count; i += width) body(i, Whole{});
  if (i < count) body(i, First{count - i});
}

inline Vector splat(float value) {
  return value - Vector{};
}
inline Vector larger(Vector a, Vector b) {
  return a > b ? a : b;
}
inline Vector smaller(Vector a, Vector b) {
  return a < b ? a : b;
}

inline constexpr std::make_index_sequence<width> all_lanes;

/// Lanes that are `distance`, a power of two, apart change places.
template <std::size_t distance, std::size_t... lane>
inline Vector swap_lanes(Vector a, std::index_sequence<lane...> /*all*/) {
  return __builtin_shufflevector(a, a, static_cast<int>(lane ^ distance)...);
}

/// The lanes combined pairwise: always in the same order.
template <std::size_t distance = width / 2, class Combine>
inline float fold(Vector value, Combine combine) {
  if constexpr (distance == 0) {
    return value[0];
  } else {
    return fold<distance / 2>(combine(value, swap_lanes<distance>(value, all_lanes)), combine);
  }
}
inline float sum_of_lanes(Vector value) {
  return fold(value, [](Vector a, Vector b) { return a + b; });
}
inline float largest_lane(Vector value) {
  return fold(value, [](Vector a, Vector b) { return larger(a, b); });
}

/// e^x to 2 units in the last place; x is clamped to [-87, 88], where the result is a normal
/// number. x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor polynomial of degree 7; times 2^n
/// by adding n to the exponent.
inline Vector exp(Vector x) {
  constexpr float rounder = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer.
  x = x > 88.0F ? splat(88.0F) : x;
  x = x < -87.0F ? splat(-87.0F) : x;
  const Vector shifted = x * 1.44269504F + rounder;
  const Vector n = shifted - rounder;
  const Vector r = (x - n * 0.693359375F) - n * -2.12194440e-4F;
  Vector p = r * (1.0F / 5040.0F) + 1.0F / 720.0F;
  p = p * r + 1.0F / 120.0F;
  p = p * r + 1.0F / 24.0F;
  p = p * r + 1.0F / 6.0F;
  p = p * r + 0.5F;
  p = p * r + 1.0F;
  p = p * r + 1.0F;
  return reinterpret_cast<Vector>(reinterpret_cast<Bits>(p)
                                  + (reinterpret_cast<Bits>(shifted) << 23));
}

/// a[first], b[first], a[first + 1], b[first + 1], ...
template <std::size_t first, std::size_t... lane>
inline Vector interleave(Vector a, Vector b, std::index_sequence<lane...> /*all*/) {
  return __builtin_shufflevector(a, b, static_cast<int>(first + lane / 2 + lane % 2 * width)...);
}

/// Transposes a square of vectors in place: each pass interleaves the first half with the second.
inline void transpose(Vector (&square)[width]) {
#pragma GCC unroll 8
  for (std::size_t pass = 1; pass < width; pass *= 2) {
    Vector next[width];
#pragma GCC unroll 16
    for (std::size_t i = 0; i < width / 2; ++i) {
      next[2 * i] = interleave<0>(square[i], square[i + width / 2], all_lanes);
      next[2 * i + 1] = interleave<width / 2>(square[i], square[i + width / 2], all_lanes);
    }
#pragma GCC unroll 16
    for (std::size_t i = 0; i < width; ++i) square[i] = next[i];
  }
}

}  // namespace troupe::stages::TROUPE_ISA
