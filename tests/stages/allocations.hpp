// tests/stages/allocations.hpp -- what a program allocates while it is watched.
//
// A test links allocations.cpp, which brings the program's own allocation functions, so that every
// allocation in C++ is seen, in every thread. What oneDNN takes while it executes a product, and
// returns before it is done, is counted apart.
#pragma once

#include <cstddef>

namespace troupe {

struct Allocations {
  static constexpr std::size_t page_bytes = 4096;

  std::size_t small_count = 0;    ///< Below a page.
  std::size_t large_count = 0;    ///< A page and more, oneDNN's included.
  std::size_t product_count = 0;  ///< Below a page, within a product of oneDNN.
};

/// Counts from now, and from 0.
void watch_allocations();

/// Stops counting.
[[nodiscard]] Allocations watched_allocations();

/// While one lives, its thread's allocations are not counted.
class Unwatched {
public:
  Unwatched();
  ~Unwatched();
  Unwatched(const Unwatched&) = delete;
  Unwatched& operator=(const Unwatched&) = delete;
};

}  // namespace troupe
