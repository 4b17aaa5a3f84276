// stages/src/cpu/tiles.hpp -- the small products inside attention, in tiles that live in registers.
//
// b is cut into slivers of `tile_columns` columns, copied so that a sliver is read in one stride; a
// is read where it lies. The innermost loop adds a column of a times a row of b to a tile of c that
// never leaves the registers (the scheme of Goto and van de Geijn 2008). Each element of c is a sum
// over k in one fixed order, whatever the position of the tile.
#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "isa.hpp"
#include "vector.hpp"

namespace troupe::stages::TROUPE_ISA {

inline constexpr std::size_t tile_rows = TROUPE_VECTOR_BYTES == 64 ? 12 : 6;
inline constexpr std::size_t tile_vectors = 2;
inline constexpr std::size_t tile_columns = tile_vectors * width;

/// How far ahead rows are asked for that the processor does not foresee.
inline constexpr std::size_t rows_ahead = 16;

constexpr std::size_t round_up(std::size_t value, std::size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// c [rows, columns] = a [rows, depth] sliver [depth, tile_columns] + addend.
struct Tile {
  const float* a = nullptr;
  std::size_t a_stride = 0;
  const float* sliver = nullptr;
  std::size_t depth = 0;
  float* c = nullptr;
  const float* addend = nullptr;  ///< Null for none; laid out as c.
  std::size_t stride = 0;
  std::size_t columns = tile_columns;
};

template <std::size_t rows, bool has_addend>
inline void store_whole(const Tile& tile, const Vector (&sums)[rows][tile_vectors]) {
#pragma GCC unroll 2
  for (std::size_t j = 0; j < tile_vectors; ++j) {
#pragma GCC unroll 12
    for (std::size_t i = 0; i < rows; ++i) {
      const std::size_t at = i * tile.stride + j * width;
      store(tile.c + at, has_addend ? sums[i][j] + load(tile.addend + at) : sums[i][j]);
    }
  }
}

template <std::size_t rows>
inline void store_part(const Tile& tile, const Vector (&sums)[rows][tile_vectors]) {
  float values[rows][tile_columns];
  std::memcpy(values, sums, sizeof values);
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t j = 0; j < tile.columns; ++j) {
      const std::size_t at = i * tile.stride + j;
      tile.c[at] = tile.addend != nullptr ? values[i][j] + tile.addend[at] : values[i][j];
    }
  }
}

template <std::size_t rows, bool transposed>
void multiply(const Tile& of) {
  const Tile tile = of;  // A copy, which no store to c can change: it stays in registers.
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t j = 0; j < tile_vectors; ++j) {
      __builtin_prefetch(tile.c + i * tile.stride + j * width, 1);
    }
  }
  Vector sums[rows][tile_vectors] = {};
  const float* sliver = tile.sliver;
  // Three base pointers: the processor adds one register times 1, 2 or 4 to an address.
  const std::size_t stride = tile.a_stride;
  const std::array<const float*, 3> a{tile.a, tile.a + 4 * stride, tile.a + 8 * stride};
  for (std::size_t p = 0; p < tile.depth; ++p) {
    const Vector b0 = load(sliver);
    const Vector b1 = load(sliver + width);
#pragma GCC unroll 12
    for (std::size_t i = 0; i < rows; ++i) {
      const Vector value =
          splat(transposed ? tile.a[p * stride + i] : a[i / 4][i % 4 * stride + p]);
      sums[i][0] += value * b0;
      sums[i][1] += value * b1;
    }
    sliver += tile_columns;
  }
  if (tile.columns != tile_columns) {
    store_part<rows>(tile, sums);
  } else if (tile.addend != nullptr) {
    store_whole<rows, true>(tile, sums);
  } else {
    store_whole<rows, false>(tile, sums);
  }
}

using Multiply = void (*)(const Tile&);

template <bool transposed, std::size_t... rows>
constexpr std::array<Multiply, tile_rows> multiply_by_rows(std::index_sequence<rows...> /*all*/) {
  return {&multiply<rows + 1, transposed>...};
}
/// By rows - 1, for a with dense rows and for a transposed.
inline constexpr auto multiply_dense =
    multiply_by_rows<false>(std::make_index_sequence<tile_rows>{});
inline constexpr auto multiply_transposed =
    multiply_by_rows<true>(std::make_index_sequence<tile_rows>{});

/// Copies [depth, columns] into slivers [columns / tile_columns, depth, tile_columns], padded with
/// 0. Row after row of a few slivers at a time, so that memory is read in long stretches.
inline void pack(const float* from, std::size_t stride, std::size_t depth, std::size_t columns,
                 float* to) {
  constexpr std::size_t stretch = 8 * tile_columns;
  for (std::size_t begin = 0; begin < columns; begin += stretch) {
    for (std::size_t p = 0; p < depth; ++p) {
      for_each_vector(std::min(stretch, columns - begin), [&](std::size_t i, auto lanes) {
        const std::size_t j = begin + i;
        __builtin_prefetch(from + (p + rows_ahead) * stride + j);
        const Vector value = load(from + p * stride + j, lanes);
        store(to + (j / tile_columns * depth + p) * tile_columns + j % tile_columns, value);
      });
    }
  }
  const std::size_t used = columns % tile_columns;
  if (used == 0 || used > width) return;
  float* last = to + columns / tile_columns * depth * tile_columns + width;
  for (std::size_t p = 0; p < depth; ++p) store(last + p * tile_columns, Vector{});
}

/// The same of the transpose of `from` [columns, depth].
inline void pack_transposed(const float* from, std::size_t stride, std::size_t depth,
                            std::size_t columns, float* to) {
  for (std::size_t j = 0; j < round_up(columns, tile_columns); j += width) {
    float* sliver = to + j / tile_columns * depth * tile_columns + j % tile_columns;
    const std::size_t rows = columns > j ? std::min(width, columns - j) : 0;
    for_each_vector(depth, [&](std::size_t p, auto lanes) {
      Vector square[width] = {};
      for (std::size_t i = 0; i < rows; ++i) {
        __builtin_prefetch(from + (j + i + rows_ahead) * stride + p);
        square[i] = load(from + (j + i) * stride + p, lanes);
      }
      transpose(square);
      const std::size_t count = std::min(width, depth - p);
      for (std::size_t i = 0; i < count; ++i) store(sliver + (p + i) * tile_columns, square[i]);
    });
  }
}

}  // namespace troupe::stages::TROUPE_ISA
