// stages/src/cpu/attention.hpp -- attention of one head.
//
// Forward: a panel of `tile_rows` queries meets all keys that its last query sees, so that its
// scores stay in the first-level cache and what is masked costs nothing. Backward: the
// probabilities and the gradients of the scores are computed anew for a block of queries (as in Dao
// et al. 2022), used from the second-level cache, and forgotten.
#pragma once

#include "masks.hpp"
#include "tiles.hpp"

namespace troupe::stages::TROUPE_ISA {

/// 1 / sqrt(head_size).
inline float score_scale(std::size_t head_size) {
  return 1.0F / __builtin_sqrtf(static_cast<float>(head_size));
}

/// Queries of a block of the backward pass: blocks of about equal size, in whole panels.
inline std::size_t queries_of_block(std::size_t sequence) {
  const std::size_t blocks = (sequence + 143) / 144;
  return round_up((sequence + blocks - 1) / blocks, tile_rows);
}

/// Floats between rows of scores; not a power of two, so that a column of them fits a cache.
inline std::size_t score_stride(std::size_t sequence) {
  return round_up(sequence, tile_columns) + 16;
}

inline std::size_t attention_scratch_floats(std::size_t sequence, std::size_t head_size) {
  const std::size_t keys = round_up(sequence, tile_columns) * head_size;
  const std::size_t values = sequence * round_up(head_size, tile_columns);
  const std::size_t queries = queries_of_block(sequence);
  return 2 * keys + values
         + 2 * queries * (round_up(head_size, tile_columns) + score_stride(sequence));
}

/// scores [rows, keys] = a [rows, head_size] times the packed transpose of k or v.
inline void multiply_keys(const float* a, std::size_t a_stride, std::size_t rows,
                          const float* slivers, std::size_t head_size, std::size_t keys,
                          float* scores, std::size_t stride) {
  for (std::size_t j = 0; j < keys; j += tile_columns) {
    multiply_dense[rows - 1]({.a = a,
                              .a_stride = a_stride,
                              .sliver = slivers + j * head_size,
                              .depth = head_size,
                              .c = scores + j,
                              .stride = stride});
  }
}

/// y [rows, head_size] (+)= a [rows, depth] times packed rows [depth, head_size], of which
/// `sliver_depth` lie in a sliver and the first is `first`.
struct RowsProduct {
  const float* a;
  std::size_t a_stride;
  std::size_t rows;
  const float* slivers;
  std::size_t sliver_depth;
  std::size_t first;
  std::size_t depth;
  float* y;
  std::size_t y_stride;
  std::size_t head_size;
  bool add;
};

inline void multiply_rows(const RowsProduct& of, const std::array<Multiply, tile_rows>& multiply) {
  for (std::size_t n = 0; n < of.head_size; n += tile_columns) {
    multiply[of.rows - 1]({.a = of.a,
                           .a_stride = of.a_stride,
                           .sliver = of.slivers + n * of.sliver_depth + of.first * tile_columns,
                           .depth = of.depth,
                           .c = of.y + n,
                           .addend = of.add ? of.y + n : nullptr,
                           .stride = of.y_stride,
                           .columns = std::min(tile_columns, of.head_size - n)});
  }
}

/// Calls body(offset, lanes) over whole vectors of a row of scores, which is padded: first for the
/// `count` scores that are seen, of which `lanes` are those in the vector, then with none for the
/// rest.
template <class Body>
[[gnu::always_inline]] inline void for_each_score(std::size_t count, std::size_t padded,
                                                  Body body) {
  std::size_t i = 0;
  for (; i + width <= count; i += width) body(i, Whole{});
  for (; i < padded; i += width) body(i, First{count > i ? count - i : 0});
}

/// Replaces the first `count` scores by e^(scale * score - largest) and the others up to `padded`
/// by 0.
/// @returns the sum; `*largest` is the largest of scale * score.
inline float exponentiate(float* scores, std::size_t count, std::size_t padded, float scale,
                          float* largest) {
  Vector highest = splat(scores[0]);
  for_each_score(count, count, [&](std::size_t i, auto lanes) {
    highest = larger(highest, select(load(scores + i), highest, lanes));
  });
  *largest = scale * largest_lane(highest);
  Vector sum{};
  for_each_score(count, padded, [&](std::size_t i, auto lanes) {
    const Vector value = keep(exp(load(scores + i) * scale - *largest), lanes);
    store(scores + i, value);
    sum += value;
  });
  return sum_of_lanes(sum);
}

/// Drops elements of what query `t` gives the keys that it sees.
inline void drop(const AttentionHead& head, std::size_t t, float* values) {
  for_each_factor(head.mask, t, head.seen_by(t), [&](std::size_t i, auto lanes, Vector factor) {
    store(values + i, load(values + i, lanes) * factor, lanes);
  });
}

inline void attention_forward(const AttentionHead& head, float* y, float* log_sum_exp,
                              float* scratch) {
  const std::size_t size = head.head_size;
  const std::size_t stride = score_stride(head.sequence);
  const float scale = score_scale(size);
  float* keys = scratch;
  float* values = keys + round_up(head.sequence, tile_columns) * size;
  float* scores = values + head.sequence * round_up(size, tile_columns);
  pack_transposed(head.k, head.qkv_stride, size, head.sequence, keys);
  pack(head.v, head.qkv_stride, head.sequence, size, values);
  for (std::size_t t = 0; t < head.sequence; t += tile_rows) {
    const std::size_t rows = std::min(tile_rows, head.sequence - t);
    const std::size_t seen = head.seen_by(t + rows - 1);
    multiply_keys(head.q + t * head.qkv_stride, head.qkv_stride, rows, keys, size, seen, scores,
                  stride);
    float inverse[tile_rows];
    for (std::size_t r = 0; r < rows; ++r) {
      float largest = 0.0F;
      const float sum =
          exponentiate(scores + r * stride, head.seen_by(t + r), seen, scale, &largest);
      log_sum_exp[t + r] = largest + __builtin_logf(sum);
      inverse[r] = 1.0F / sum;
      if (head.mask.threshold != 0) drop(head, t + r, scores + r * stride);
    }
    float* to = y + t * head.y_stride;
    multiply_rows(
        {scores, stride, rows, values, head.sequence, 0, seen, to, head.y_stride, size, false},
        multiply_dense);
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t i = 0; i < size; ++i) to[r * head.y_stride + i] *= inverse[r];
    }
  }
}

inline float dot(const float* a, const float* b, std::size_t count) {
  Vector sum{};
  for_each_vector(
      count, [&](std::size_t i, auto lanes) { sum += load(a + i, lanes) * load(b + i, lanes); });
  return sum_of_lanes(sum);
}

/// From scores and the gradients of the probabilities to probabilities p and the gradients of the
/// scores, scale * p * (d_p - mean).
inline void differentiate(float* scores, float* d_scores, std::size_t count, std::size_t padded,
                          float scale, float log_sum_exp, float mean) {
  for_each_score(count, padded, [&](std::size_t i, auto lanes) {
    const Vector p = keep(exp(load(scores + i) * scale - log_sum_exp), lanes);
    store(d_scores + i, (load(d_scores + i) - mean) * p * scale);
    store(scores + i, p);
  });
}

/// The same of query `t` under dropout with factors m: what multiplied the values are p * m, and
/// the gradients of the scores are scale * p * (d_p * m - mean), where mean is the sum of
/// d_p * m * p.
inline void differentiate_dropped(const AttentionHead& head, std::size_t t, float* scores,
                                  float* d_scores, std::size_t padded, float scale,
                                  float log_sum_exp, float mean) {
  const std::size_t count = head.seen_by(t);
  for_each_factor(head.mask, t, count, [&](std::size_t i, auto lanes, Vector factor) {
    const Vector p = exp(load(scores + i, lanes) * scale - log_sum_exp);
    store(d_scores + i, (load(d_scores + i, lanes) * factor - mean) * p * scale, lanes);
    store(scores + i, p * factor, lanes);
  });
  std::fill_n(scores + count, padded - count, 0.0F);
  std::fill_n(d_scores + count, padded - count, 0.0F);
}

/// What the blocks of one head's backward pass share.
struct BackwardScratch {
  float* keys_transposed;
  float* values_transposed;
  float* keys;
  float* queries;  ///< Of the block, as are the next three.
  float* dy;
  float* scores;
  float* d_scores;
  std::size_t stride;  ///< Of the last two.
};

inline BackwardScratch cut(float* scratch, const AttentionHead& head) {
  const std::size_t padded_size = round_up(head.head_size, tile_columns);
  const std::size_t keys = round_up(head.sequence, tile_columns) * head.head_size;
  const std::size_t queries = queries_of_block(head.sequence);
  BackwardScratch s{};
  s.stride = score_stride(head.sequence);
  s.keys_transposed = scratch;
  s.values_transposed = s.keys_transposed + keys;
  s.keys = s.values_transposed + keys;
  s.queries = s.keys + head.sequence * padded_size;
  s.dy = s.queries + queries * padded_size;
  s.scores = s.dy + queries * padded_size;
  s.d_scores = s.scores + queries * s.stride;
  return s;
}

/// Probabilities and score gradients of the queries [t, t + rows), and their dq.
inline void differentiate_panel(const AttentionHead& head, const AttentionGradients& gradients,
                                const BackwardScratch& s, std::size_t t, std::size_t rows,
                                float* scores, float* d_scores) {
  const std::size_t size = head.head_size;
  const std::size_t seen = head.seen_by(t + rows - 1);
  const float scale = score_scale(size);
  const float* dy = gradients.dy + t * head.y_stride;
  multiply_keys(head.q + t * head.qkv_stride, head.qkv_stride, rows, s.keys_transposed, size, seen,
                scores, s.stride);
  multiply_keys(dy, head.y_stride, rows, s.values_transposed, size, seen, d_scores, s.stride);
  for (std::size_t r = 0; r < rows; ++r) {
    const float mean = dot(dy + r * head.y_stride, gradients.y + (t + r) * head.y_stride, size);
    if (head.mask.threshold == 0) {
      differentiate(scores + r * s.stride, d_scores + r * s.stride, head.seen_by(t + r), seen,
                    scale, gradients.log_sum_exp[t + r], mean);
    } else {
      differentiate_dropped(head, t + r, scores + r * s.stride, d_scores + r * s.stride, seen,
                            scale, gradients.log_sum_exp[t + r], mean);
    }
  }
  multiply_rows({d_scores, s.stride, rows, s.keys, head.sequence, 0, seen,
                 gradients.dq + t * head.qkv_stride, head.qkv_stride, size, false},
                multiply_dense);
}

inline void attention_backward(const AttentionHead& head, const AttentionGradients& gradients,
                               float* scratch) {
  const std::size_t size = head.head_size;
  const std::size_t block = queries_of_block(head.sequence);
  const BackwardScratch s = cut(scratch, head);
  pack_transposed(head.k, head.qkv_stride, size, head.sequence, s.keys_transposed);
  pack_transposed(head.v, head.qkv_stride, size, head.sequence, s.values_transposed);
  pack(head.k, head.qkv_stride, head.sequence, size, s.keys);
  for (std::size_t q = 0; q < head.sequence; q += block) {
    const std::size_t queries = std::min(block, head.sequence - q);
    pack(head.q + q * head.qkv_stride, head.qkv_stride, queries, size, s.queries);
    pack(gradients.dy + q * head.y_stride, head.y_stride, queries, size, s.dy);
    for (std::size_t t = 0; t < queries; t += tile_rows) {
      differentiate_panel(head, gradients, s, q + t, std::min(tile_rows, queries - t),
                          s.scores + t * s.stride, s.d_scores + t * s.stride);
    }
    const std::size_t keys = head.seen_by(q + queries - 1);
    for (std::size_t k = 0; k < keys; k += tile_rows) {
      const std::size_t rows = std::min(tile_rows, keys - k);
      // Earlier queries do not see these keys.
      const std::size_t first = head.is_causal && k > q ? k - q : 0;
      const bool is_begun = head.is_causal ? k < q : q > 0;
      const std::size_t at = first * s.stride + k;
      const std::size_t to = k * head.qkv_stride;
      multiply_rows({s.scores + at, s.stride, rows, s.dy, queries, first, queries - first,
                     gradients.dv + to, head.qkv_stride, size, is_begun || gradients.adds},
                    multiply_transposed);
      multiply_rows({s.d_scores + at, s.stride, rows, s.queries, queries, first, queries - first,
                     gradients.dk + to, head.qkv_stride, size, is_begun || gradients.adds},
                    multiply_transposed);
    }
  }
  if (gradients.adds) return;
  for (std::size_t k = head.seen_by(head.sequence - 1); k < head.sequence; ++k) {
    std::fill_n(gradients.dv + k * head.qkv_stride, size, 0.0F);
    std::fill_n(gradients.dk + k * head.qkv_stride, size, 0.0F);
  }
}

}  // namespace troupe::stages::TROUPE_ISA
