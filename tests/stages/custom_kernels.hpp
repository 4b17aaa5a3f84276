// tests/stages/custom_kernels.hpp -- the kernels of the layers of tests/engine/custom_layers.hpp.
#pragma once

#include <cmath>

#include "troupe/stages/custom_kernel.hpp"

namespace troupe::stages {

inline CustomKernel square_kernel() {
  return {
      .forward =
          [](const CustomRows& of, std::span<const float> x, std::span<float> y) {
            for (std::size_t i = 0; i < y.size(); ++i) {
              y[i] = of.parameters[0][i % of.out] * x[i] * x[i] + of.parameters[1][i % of.out];
            }
          },
      .backward_input =
          [](const CustomRows& of, std::span<const float> x, std::span<const float> dy,
             std::span<float> dx) {
            for (std::size_t i = 0; i < dx.size(); ++i) {
              dx[i] = 2.0F * of.parameters[0][i % of.out] * x[i] * dy[i];
            }
          },
      .backward_weight =
          [](const CustomRows& of, const CustomColumns& columns, std::span<const float> x,
             std::span<const float> dy,
             std::span<const std::span<float>, custom_parameters_max> gradients) {
            for (std::size_t r = 0; r < of.rows; ++r) {
              for (auto c = columns.begin; c < columns.end; ++c) {
                const auto i = r * of.out + c;
                gradients[0][c] += dy[i] * x[i] * x[i];
                gradients[1][c] += dy[i];
              }
            }
          },
  };
}

inline CustomKernel gate_kernel() {
  return {
      .forward =
          [](const CustomRows& of, std::span<const float> x, std::span<float> y) {
            for (std::size_t i = 0; i < y.size(); ++i) {
              const auto* row = &x[i / of.out * of.in];
              y[i] = row[i % of.out] * std::tanh(row[of.out + i % of.out]);
            }
          },
      .backward_input =
          [](const CustomRows& of, std::span<const float> x, std::span<const float> dy,
             std::span<float> dx) {
            for (std::size_t i = 0; i < dy.size(); ++i) {
              const auto a = i / of.out * of.in + i % of.out;
              const auto b = a + of.out;
              const auto bent = std::tanh(x[b]);
              dx[a] = dy[i] * bent;
              dx[b] = dy[i] * x[a] * (1.0F - bent * bent);
            }
          },
  };
}

/// Of `values`, one row.
inline float mean_of(std::span<const float> values) {
  double sum = 0.0;
  for (const auto value : values) sum += value;
  return static_cast<float>(sum / static_cast<double>(values.size()));
}

inline CustomKernel centre_kernel() {
  return {
      .forward =
          [](const CustomRows& of, std::span<const float> x, std::span<float> y) {
            for (std::size_t r = 0; r < of.rows; ++r) {
              const auto mean = mean_of(x.subspan(r * of.in, of.in));
              for (std::size_t c = 0; c < of.out; ++c) {
                y[r * of.out + c] = of.parameters[0][c] * (x[r * of.in + c] - mean);
              }
            }
          },
      .backward_input =
          [](const CustomRows& of, std::span<const float> /*x*/, std::span<const float> dy,
             std::span<float> dx) {
            for (std::size_t r = 0; r < of.rows; ++r) {
              const auto row = dx.subspan(r * of.in, of.in);
              for (std::size_t c = 0; c < of.in; ++c) {
                row[c] = of.parameters[0][c] * dy[r * of.out + c];
              }
              const auto mean = mean_of(row);
              for (auto& value : row) value -= mean;
            }
          },
      .backward_weight =
          [](const CustomRows& of, const CustomColumns& columns, std::span<const float> x,
             std::span<const float> dy,
             std::span<const std::span<float>, custom_parameters_max> gradients) {
            for (std::size_t r = 0; r < of.rows; ++r) {
              const auto row = x.subspan(r * of.in, of.in);
              const auto mean = mean_of(row);
              for (auto c = columns.begin; c < columns.end; ++c) {
                gradients[0][c] += dy[r * of.out + c] * (row[c] - mean);
              }
            }
          },
  };
}

inline CustomKernels custom_kernels() {
  return {{"square", square_kernel()}, {"gate", gate_kernel()}, {"centre", centre_kernel()}};
}

}  // namespace troupe::stages
