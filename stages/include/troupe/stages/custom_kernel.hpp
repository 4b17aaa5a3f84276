// troupe/stages/custom_kernel.hpp -- what an operation that a program defines computes.
#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <map>
#include <span>
#include <string>

#include "troupe/engine/stage_graph.hpp"

namespace troupe::stages {

/// Rows of a custom operation, dense and one behind the other.
struct CustomRows {
  std::size_t rows = 0;
  std::size_t in = 0;   ///< Width of x, of the shard's columns if shards divide them.
  std::size_t out = 0;  ///< Width of y: `in` over `CustomOperation::part_count`.
  /// [out], in the order of `CustomOperation::parameters`.
  std::array<std::span<const float>, custom_parameters_max> parameters{};
};

/// Columns `[begin, end)` of the result.
struct CustomColumns {
  std::size_t begin = 0;
  std::size_t end = 0;
};

/// The kernel of a `CustomOperation` on devices whose memory the host can touch. A stage enqueues
/// it on its stream, whose threads share the rows out, or the columns: each function is called with
/// a part of them, from several threads at once, and must not throw. Sums go in order of rows, so
/// that the bits do not depend on the threads.
struct CustomKernel {
  /// x [rows, in] -> y [rows, out]
  std::function<void(const CustomRows&, std::span<const float> x, std::span<float> y)> forward;
  /// x [rows, in], dy [rows, out] -> dx [rows, in]
  std::function<void(const CustomRows&, std::span<const float> x, std::span<const float> dy,
                     std::span<float> dx)>
      backward_input;
  /// Adds to the gradients of the parameters, [out] each, what all rows of x and dy give for some
  /// columns. Only for operations with parameters.
  std::function<void(const CustomRows&, const CustomColumns&, std::span<const float> x,
                     std::span<const float> dy,
                     std::span<const std::span<float>, custom_parameters_max> gradients)>
      backward_weight{};
};

/// By `CustomOperation::name`.
using CustomKernels = std::map<std::string, CustomKernel, std::less<>>;

}  // namespace troupe::stages
