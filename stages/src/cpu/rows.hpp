// stages/src/cpu/rows.hpp -- what works by rows or columns: norms, sums, the loss.
#pragma once

#include <algorithm>

#include "isa.hpp"
#include "vector.hpp"

namespace troupe::stages::TROUPE_ISA {

inline void layer_norm_forward(const float* x, const float* gamma, const float* beta, float* y,
                               float* mean, float* rstd, std::size_t begin, std::size_t end,
                               std::size_t hidden, float epsilon) {
  const float share = 1.0F / static_cast<float>(hidden);
  for (std::size_t r = begin; r < end; ++r) {
    const float* row = x + r * hidden;
    Vector sum{};
    for_each_vector(hidden, [&](std::size_t i, auto lanes) { sum += load(row + i, lanes); });
    const float average = sum_of_lanes(sum) * share;
    Vector squares{};
    for_each_vector(hidden, [&](std::size_t i, auto lanes) {
      const Vector centred = keep(load(row + i, lanes) - average, lanes);
      squares += centred * centred;
    });
    const float inverse = 1.0F / __builtin_sqrtf(sum_of_lanes(squares) * share + epsilon);
    for_each_vector(hidden, [&](std::size_t i, auto lanes) {
      const Vector normal = (load(row + i, lanes) - average) * inverse;
      store(y + r * hidden + i, normal * load(gamma + i, lanes) + load(beta + i, lanes), lanes);
    });
    mean[r] = average;
    rstd[r] = inverse;
  }
}

/// With n the normalised row and g = dy * gamma: dx = residual + rstd * (g - mean(g) - n * mean(g
/// n)).
inline void layer_norm_backward_input(const float* dy, const float* x, const float* gamma,
                                      const float* mean, const float* rstd, const float* residual,
                                      float* dx, std::size_t begin, std::size_t end,
                                      std::size_t hidden) {
  const float share = 1.0F / static_cast<float>(hidden);
  for (std::size_t r = begin; r < end; ++r) {
    const std::size_t row = r * hidden;
    const auto gradient = [&](std::size_t i, auto lanes) {
      return load(dy + row + i, lanes) * load(gamma + i, lanes);
    };
    const auto normal = [&](std::size_t i, auto lanes) {
      return (load(x + row + i, lanes) - mean[r]) * rstd[r];
    };
    Vector sum{};
    Vector product{};
    for_each_vector(hidden, [&](std::size_t i, auto lanes) {
      const Vector g = gradient(i, lanes);
      sum += g;
      product += g * normal(i, lanes);
    });
    const float average = sum_of_lanes(sum) * share;
    const float slope = sum_of_lanes(product) * share;
    for_each_vector(hidden, [&](std::size_t i, auto lanes) {
      Vector value = (gradient(i, lanes) - average - normal(i, lanes) * slope) * rstd[r];
      if (residual != nullptr) value += load(residual + row + i, lanes);
      store(dx + row + i, value, lanes);
    });
  }
}

/// Calls body(column, lanes, Chunk<n>) for chunks of columns whose n sums fit the registers.
template <std::size_t count>
struct Chunk {};

template <class Body>
inline void for_each_chunk(std::size_t begin, std::size_t end, Body body) {
  constexpr std::size_t chunk = 4;
  std::size_t i = begin;
  for (; i + chunk * width <= end; i += chunk * width) body(i, Whole{}, Chunk<chunk>{});
  for_each_vector(end - i, [&](std::size_t at, auto lanes) { body(i + at, lanes, Chunk<1>{}); });
}

template <class Lanes>
inline void put(float* to, Vector value, bool add, Lanes lanes) {
  store(to, add ? load(to, lanes) + value : value, lanes);
}

inline void layer_norm_backward_weight(const float* dy, const float* x, const float* mean,
                                       const float* rstd, float* d_gamma, float* d_beta,
                                       std::size_t begin, std::size_t end, std::size_t rows,
                                       std::size_t hidden, bool add) {
  for_each_chunk(begin, end, [&]<std::size_t n>(std::size_t column, auto lanes, Chunk<n>) {
    Vector gamma_sums[n] = {};
    Vector beta_sums[n] = {};
    for (std::size_t r = 0; r < rows; ++r) {
      const std::size_t at = r * hidden + column;
      for (std::size_t j = 0; j < n; ++j) {
        const Vector gradient = load(dy + at + j * width, lanes);
        gamma_sums[j] += gradient * ((load(x + at + j * width, lanes) - mean[r]) * rstd[r]);
        beta_sums[j] += gradient;
      }
    }
    for (std::size_t j = 0; j < n; ++j) {
      put(d_gamma + column + j * width, gamma_sums[j], add, lanes);
      put(d_beta + column + j * width, beta_sums[j], add, lanes);
    }
  });
}

inline void rms_norm_forward(const float* x, const float* gamma, float* y, float* rstd,
                             std::size_t begin, std::size_t end, std::size_t hidden,
                             float epsilon) {
  const float share = 1.0F / static_cast<float>(hidden);
  for (std::size_t r = begin; r < end; ++r) {
    const float* row = x + r * hidden;
    Vector squares{};
    for_each_vector(hidden, [&](std::size_t i, auto lanes) {
      const Vector value = load(row + i, lanes);
      squares += value * value;
    });
    const float inverse = 1.0F / __builtin_sqrtf(sum_of_lanes(squares) * share + epsilon);
    for_each_vector(hidden, [&](std::size_t i, auto lanes) {
      store(y + r * hidden + i, load(row + i, lanes) * inverse * load(gamma + i, lanes), lanes);
    });
    rstd[r] = inverse;
  }
}

/// With n the normalised row and g = dy * gamma: dx = residual + rstd * (g - n * mean(g n)).
inline void rms_norm_backward_input(const float* dy, const float* x, const float* gamma,
                                    const float* rstd, const float* residual, float* dx,
                                    std::size_t begin, std::size_t end, std::size_t hidden) {
  const float share = 1.0F / static_cast<float>(hidden);
  for (std::size_t r = begin; r < end; ++r) {
    const std::size_t row = r * hidden;
    Vector product{};
    for_each_vector(hidden, [&](std::size_t i, auto lanes) {
      product += load(dy + row + i, lanes) * load(gamma + i, lanes) * load(x + row + i, lanes);
    });
    const float slope = sum_of_lanes(product) * share * rstd[r] * rstd[r];
    for_each_vector(hidden, [&](std::size_t i, auto lanes) {
      Vector value =
          (load(dy + row + i, lanes) * load(gamma + i, lanes) - load(x + row + i, lanes) * slope)
          * rstd[r];
      if (residual != nullptr) value += load(residual + row + i, lanes);
      store(dx + row + i, value, lanes);
    });
  }
}

inline void rms_norm_backward_weight(const float* dy, const float* x, const float* rstd,
                                     float* d_gamma, std::size_t begin, std::size_t end,
                                     std::size_t rows, std::size_t hidden, bool add) {
  for_each_chunk(begin, end, [&]<std::size_t n>(std::size_t column, auto lanes, Chunk<n>) {
    Vector sums[n] = {};
    for (std::size_t r = 0; r < rows; ++r) {
      const std::size_t at = r * hidden + column;
      for (std::size_t j = 0; j < n; ++j) {
        sums[j] += load(dy + at + j * width, lanes) * (load(x + at + j * width, lanes) * rstd[r]);
      }
    }
    for (std::size_t j = 0; j < n; ++j) put(d_gamma + column + j * width, sums[j], add, lanes);
  });
}

inline void column_sums(const float* x, float* sums, std::size_t begin, std::size_t end,
                        std::size_t rows, std::size_t stride, bool add) {
  for_each_chunk(begin, end, [&]<std::size_t n>(std::size_t column, auto lanes, Chunk<n>) {
    Vector totals[n] = {};
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t j = 0; j < n; ++j) {
        totals[j] += load(x + r * stride + column + j * width, lanes);
      }
    }
    for (std::size_t j = 0; j < n; ++j) put(sums + column + j * width, totals[j], add, lanes);
  });
}

inline float largest_of(const float* x, std::size_t count) {
  Vector highest = splat(x[0]);
  for_each_vector(count, [&](std::size_t i, auto lanes) {
    highest = larger(highest, select(load(x + i, lanes), highest, lanes));
  });
  return largest_lane(highest);
}

inline void cross_entropy(float* logits, const std::int32_t* targets, double* losses,
                          float gradient_scale, std::size_t begin, std::size_t end,
                          std::size_t vocabulary) {
  for (std::size_t r = begin; r < end; ++r) {
    float* row = logits + r * vocabulary;
    if (targets[r] < 0) {
      losses[r] = 0.0;
      if (gradient_scale != 0.0F) std::fill_n(row, vocabulary, 0.0F);
      continue;
    }
    float* target = row + targets[r];
    const float highest = largest_of(row, vocabulary);
    const float distance = highest - *target;
    const bool backward = gradient_scale != 0.0F;
    Vector sums{};
    for_each_vector(vocabulary, [&](std::size_t i, auto lanes) {
      const Vector value = keep(exp(load(row + i, lanes) - highest), lanes);
      if (backward) store(row + i, value, lanes);
      sums += value;
    });
    const float sum = sum_of_lanes(sums);
    losses[r] = double{distance} + __builtin_log(double{sum});
    if (!backward) continue;
    const float factor = gradient_scale / sum;
    for_each_vector(vocabulary, [&](std::size_t i, auto lanes) {
      store(row + i, load(row + i, lanes) * factor, lanes);
    });
    *target -= gradient_scale;
  }
}

inline void word_statistics(const float* logits, const std::int32_t* targets, float* statistics,
                            std::size_t begin, std::size_t end, const WordRange& words) {
  for (std::size_t r = begin; r < end; ++r) {
    const float* row = logits + r * words.count;
    const float highest = largest_of(row, words.count);
    Vector sums{};
    for_each_vector(words.count, [&](std::size_t i, auto lanes) {
      sums += keep(exp(load(row + i, lanes) - highest), lanes);
    });
    const auto target = static_cast<std::uint32_t>(targets[r]) - words.begin;
    statistics[3 * r] = highest;
    statistics[3 * r + 1] = sum_of_lanes(sums);
    statistics[3 * r + 2] = target < words.count ? row[target] : -__builtin_inff();
  }
}

inline void scaled_exponentials(float* logits, float shift, float scale, std::size_t count) {
  for_each_vector(count, [&](std::size_t i, auto lanes) {
    store(logits + i, exp(load(logits + i, lanes) - shift) * scale, lanes);
  });
}

}  // namespace troupe::stages::TROUPE_ISA
