#include "reference_kernels.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>
#include <vector>

namespace troupe::stages {

namespace {

const double gelu_slope = std::sqrt(2.0 / std::numbers::pi);

double dot(const float* a, const float* b, std::size_t count) {
  double sum = 0.0;
  for (std::size_t i = 0; i < count; ++i) sum += double{a[i]} * b[i];
  return sum;
}

/// Element of a weight, whatever its layout.
std::size_t weight_at(const LinearShape& shape, std::size_t in, std::size_t out) {
  return shape.layout == WeightLayout::in_out ? in * shape.out + out : out * shape.in + in;
}

void put(float& target, double value, Accumulate accumulate) {
  target = static_cast<float>(accumulate == Accumulate::add ? target + value : value);
}

bool is_among(const WordRange& words, std::int32_t token) {
  const auto word = static_cast<std::uint32_t>(token);
  return word >= words.begin && word < words.begin + words.count;
}

std::size_t place_among(const WordRange& words, std::int32_t token) {
  return static_cast<std::uint32_t>(token) - words.begin;
}

/// One head of one sequence: where its elements are in `qkv` and in `y`.
struct Head {
  const AttentionShape& shape;
  std::size_t batch;
  std::size_t index;

  [[nodiscard]] std::size_t kv() const { return index / (shape.heads / shape.kv_heads); }
  [[nodiscard]] std::size_t row(std::size_t t) const { return batch * shape.sequence + t; }
  [[nodiscard]] std::size_t in_qkv(std::size_t t, std::size_t heads_before) const {
    return row(t) * shape.qkv_width() + heads_before * shape.head_size;
  }
  [[nodiscard]] std::size_t y(std::size_t t) const {
    return row(t) * shape.width() + index * shape.head_size;
  }
  [[nodiscard]] std::size_t q(std::size_t t) const { return in_qkv(t, index); }
  [[nodiscard]] std::size_t k(std::size_t t) const { return in_qkv(t, shape.heads + kv()); }
  [[nodiscard]] std::size_t v(std::size_t t) const {
    return in_qkv(t, shape.heads + shape.kv_heads + kv());
  }
  /// How many keys, the first, query `t` sees.
  [[nodiscard]] std::size_t seen_by(std::size_t t, const std::int32_t* lengths) const {
    if (shape.is_causal) return t + 1;
    return lengths == nullptr ? shape.sequence : static_cast<std::size_t>(lengths[batch]);
  }
};

/// What dropout multiplies an element by.
double factor(const Dropout& dropout, std::size_t sample, std::size_t head, std::size_t row,
              std::size_t column) {
  if (dropout.rate <= 0.0) return 1.0;
  return is_kept(dropout, sample, head, row, column) ? 1.0 / (1.0 - dropout.rate) : 0.0;
}

void head_forward(const float* qkv, const std::int32_t* lengths, float* y, float* log_sum_exp,
                  const Head& head, std::size_t sequence, const Dropout& dropout) {
  const std::size_t size = head.shape.head_size;
  const double scale = 1.0 / std::sqrt(static_cast<double>(size));
  std::vector<double> scores(sequence);
  for (std::size_t t = 0; t < sequence; ++t) {
    const std::size_t seen = head.seen_by(t, lengths);
    for (std::size_t s = 0; s < seen; ++s) {
      scores[s] = scale * dot(&qkv[head.q(t)], &qkv[head.k(s)], size);
    }
    const double highest = *std::max_element(scores.begin(), scores.begin() + std::ptrdiff_t(seen));
    double sum = 0.0;
    for (std::size_t s = 0; s < seen; ++s) sum += std::exp(scores[s] - highest);
    log_sum_exp[t] = static_cast<float>(highest + std::log(sum));
    for (std::size_t s = 0; s < seen; ++s) {
      scores[s] =
          std::exp(scores[s] - highest) / sum * factor(dropout, head.batch, head.index, t, s);
    }
    for (std::size_t i = 0; i < size; ++i) {
      double value = 0.0;
      for (std::size_t s = 0; s < seen; ++s) value += scores[s] * qkv[head.v(s) + i];
      y[head.y(t) + i] = static_cast<float>(value);
    }
  }
}

void head_backward(const float* dy, const float* qkv, const std::int32_t* lengths, const float* y,
                   const float* log_sum_exp, float* d_qkv, const Head& head, std::size_t sequence,
                   const Dropout& dropout) {
  const std::size_t size = head.shape.head_size;
  const double scale = 1.0 / std::sqrt(static_cast<double>(size));
  std::vector<double> dq(sequence * size);
  std::vector<double> dk(sequence * size);
  std::vector<double> dv(sequence * size);
  for (std::size_t t = 0; t < sequence; ++t) {
    const double mean = dot(&dy[head.y(t)], &y[head.y(t)], size);
    for (std::size_t s = 0; s < head.seen_by(t, lengths); ++s) {
      const double score = scale * dot(&qkv[head.q(t)], &qkv[head.k(s)], size);
      const double p = std::exp(score - log_sum_exp[t]);
      const double kept = factor(dropout, head.batch, head.index, t, s);
      const double d_p = kept * dot(&dy[head.y(t)], &qkv[head.v(s)], size);
      const double d_score = p * (d_p - mean) * scale;
      for (std::size_t i = 0; i < size; ++i) {
        dq[t * size + i] += d_score * qkv[head.k(s) + i];
        dk[s * size + i] += d_score * qkv[head.q(t) + i];
        dv[s * size + i] += p * kept * dy[head.y(t) + i];
      }
    }
  }
  for (std::size_t t = 0; t < sequence; ++t) {
    for (std::size_t i = 0; i < size; ++i) {
      d_qkv[head.q(t) + i] = static_cast<float>(dq[t * size + i]);
      // The first head that shares the key and value begins their gradients.
      const bool adds = head.index % (head.shape.heads / head.shape.kv_heads) != 0;
      const auto accumulate = adds ? Accumulate::add : Accumulate::overwrite;
      put(d_qkv[head.k(t) + i], dk[t * size + i], accumulate);
      put(d_qkv[head.v(t) + i], dv[t * size + i], accumulate);
    }
  }
}

}  // namespace

std::array<std::uint32_t, 4> threefry(const std::array<std::uint32_t, 4>& counter,
                                      const std::array<std::uint32_t, 4>& key) {
  constexpr int rotations[8][2]{{10, 26}, {11, 21}, {13, 27}, {23, 5},
                                {6, 20},  {17, 11}, {25, 10}, {18, 20}};
  const std::array<std::uint32_t, 5> keys{key[0], key[1], key[2], key[3],
                                          0x1bd11bdaU ^ key[0] ^ key[1] ^ key[2] ^ key[3]};
  auto x = counter;
  for (std::size_t i = 0; i < 4; ++i) x[i] += keys[i];
  for (std::uint32_t round = 0; round < 20; ++round) {
    const auto& [first, second] = rotations[round % 8];
    auto& b = x[round % 2 == 0 ? 1 : 3];
    auto& d = x[round % 2 == 0 ? 3 : 1];
    x[0] += b;
    b = std::rotl(b, first) ^ x[0];
    x[2] += d;
    d = std::rotl(d, second) ^ x[2];
    if (round % 4 != 3) continue;
    const auto turn = round / 4 + 1;
    for (std::size_t i = 0; i < 4; ++i) x[i] += keys[(turn + i) % 5];
    x[3] += turn;
  }
  return x;
}

bool is_kept(const Dropout& dropout, std::size_t sample, std::size_t head, std::size_t row,
             std::size_t column) {
  const auto whole = [](std::uint64_t value) { return static_cast<std::uint32_t>(value); };
  const auto words = threefry({whole(column / 64 * 16 + column % 16), whole(row), dropout.site,
                               whole(dropout.first_head + head)},
                              {whole(dropout.seed), whole(dropout.seed >> 32U), dropout.step,
                               whole(dropout.first_sample + sample)});
  return words.at(column / 16 % 4) >= dropout.threshold();
}

void ReferenceKernels::embedding_forward(Stream& stream, const std::int32_t* tokens,
                                         const float* token_weight, const float* position_weight,
                                         float* y, std::uint32_t rows, std::uint32_t sequence,
                                         std::uint32_t hidden, const WordRange& words) {
  run(stream, [=] {
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t i = 0; i < hidden; ++i) {
        float& value = y[r * hidden + i];
        value = is_among(words, tokens[r])
                    ? token_weight[place_among(words, tokens[r]) * hidden + i]
                    : 0.0F;
        if (position_weight != nullptr) value += position_weight[(r % sequence) * hidden + i];
      }
    }
  });
}

void ReferenceKernels::embedding_backward(Stream& stream, const std::int32_t* tokens,
                                          const float* dy, float* d_token_weight,
                                          float* d_position_weight, std::uint32_t rows,
                                          std::uint32_t sequence, std::uint32_t hidden,
                                          const WordRange& words, Accumulate accumulate) {
  run(stream, [=] {
    if (accumulate == Accumulate::overwrite) {
      std::fill_n(d_token_weight, std::size_t{words.count} * hidden, 0.0F);
      if (d_position_weight != nullptr) {
        std::fill_n(d_position_weight, std::size_t{sequence} * hidden, 0.0F);
      }
    }
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t i = 0; i < hidden; ++i) {
        if (is_among(words, tokens[r])) {
          d_token_weight[place_among(words, tokens[r]) * hidden + i] += dy[r * hidden + i];
        }
        if (d_position_weight == nullptr) continue;
        d_position_weight[(r % sequence) * hidden + i] += dy[r * hidden + i];
      }
    }
  });
}

void ReferenceKernels::add_rows(Stream& stream, const std::int32_t* indices, const float* table,
                                float* y, std::uint32_t rows, std::uint32_t hidden) {
  run(stream, [=] {
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t i = 0; i < hidden; ++i) {
        y[r * hidden + i] += table[static_cast<std::size_t>(indices[r]) * hidden + i];
      }
    }
  });
}

void ReferenceKernels::layer_norm_forward(Stream& stream, const float* x, const float* gamma,
                                          const float* beta, float* y, float* mean, float* rstd,
                                          std::uint32_t rows, std::uint32_t hidden, float epsilon) {
  run(stream, [=] {
    for (std::size_t r = 0; r < rows; ++r) {
      const float* row = x + r * hidden;
      double sum = 0.0;
      for (std::size_t i = 0; i < hidden; ++i) sum += row[i];
      const double average = sum / hidden;
      double squares = 0.0;
      for (std::size_t i = 0; i < hidden; ++i) squares += (row[i] - average) * (row[i] - average);
      const double inverse = 1.0 / std::sqrt(squares / hidden + double{epsilon});
      for (std::size_t i = 0; i < hidden; ++i) {
        y[r * hidden + i] = static_cast<float>((row[i] - average) * inverse * gamma[i] + beta[i]);
      }
      mean[r] = static_cast<float>(average);
      rstd[r] = static_cast<float>(inverse);
    }
  });
}

void ReferenceKernels::layer_norm_backward_input(Stream& stream, const float* dy, const float* x,
                                                 const float* gamma, const float* mean,
                                                 const float* rstd, const float* residual,
                                                 float* dx, std::uint32_t rows,
                                                 std::uint32_t hidden) {
  run(stream, [=] {
    for (std::size_t r = 0; r < rows; ++r) {
      const std::size_t row = r * hidden;
      const auto normal = [&](std::size_t i) { return (double{x[row + i]} - mean[r]) * rstd[r]; };
      const auto d_normal = [&](std::size_t i) { return double{dy[row + i]} * gamma[i]; };
      double sum = 0.0;
      double product = 0.0;
      for (std::size_t i = 0; i < hidden; ++i) {
        sum += d_normal(i);
        product += d_normal(i) * normal(i);
      }
      for (std::size_t i = 0; i < hidden; ++i) {
        const double gradient =
            rstd[r] * (d_normal(i) - sum / hidden - normal(i) * product / hidden);
        const double bypass = residual == nullptr ? 0.0 : double{residual[row + i]};
        dx[row + i] = static_cast<float>(bypass + gradient);
      }
    }
  });
}

void ReferenceKernels::layer_norm_backward_weight(Stream& stream, const float* dy, const float* x,
                                                  const float* mean, const float* rstd,
                                                  float* d_gamma, float* d_beta, std::uint32_t rows,
                                                  std::uint32_t hidden, Accumulate accumulate) {
  run(stream, [=] {
    for (std::size_t i = 0; i < hidden; ++i) {
      double gamma_sum = 0.0;
      double beta_sum = 0.0;
      for (std::size_t r = 0; r < rows; ++r) {
        const double gradient = dy[r * hidden + i];
        gamma_sum += gradient * (double{x[r * hidden + i]} - mean[r]) * rstd[r];
        beta_sum += gradient;
      }
      put(d_gamma[i], gamma_sum, accumulate);
      put(d_beta[i], beta_sum, accumulate);
    }
  });
}

void ReferenceKernels::rms_norm_forward(Stream& stream, const float* x, const float* gamma,
                                        float* y, float* rstd, std::uint32_t rows,
                                        std::uint32_t hidden, float epsilon) {
  run(stream, [=] {
    for (std::size_t r = 0; r < rows; ++r) {
      const float* row = x + r * hidden;
      const double inverse = 1.0 / std::sqrt(dot(row, row, hidden) / hidden + double{epsilon});
      for (std::size_t i = 0; i < hidden; ++i) {
        y[r * hidden + i] = static_cast<float>(row[i] * inverse * gamma[i]);
      }
      rstd[r] = static_cast<float>(inverse);
    }
  });
}

void ReferenceKernels::rms_norm_backward_input(Stream& stream, const float* dy, const float* x,
                                               const float* gamma, const float* rstd,
                                               const float* residual, float* dx, std::uint32_t rows,
                                               std::uint32_t hidden) {
  run(stream, [=] {
    for (std::size_t r = 0; r < rows; ++r) {
      const std::size_t row = r * hidden;
      const auto normal = [&](std::size_t i) { return double{x[row + i]} * rstd[r]; };
      const auto d_normal = [&](std::size_t i) { return double{dy[row + i]} * gamma[i]; };
      double product = 0.0;
      for (std::size_t i = 0; i < hidden; ++i) product += d_normal(i) * normal(i);
      for (std::size_t i = 0; i < hidden; ++i) {
        const double bypass = residual == nullptr ? 0.0 : double{residual[row + i]};
        dx[row + i] =
            static_cast<float>(bypass + rstd[r] * (d_normal(i) - normal(i) * product / hidden));
      }
    }
  });
}

void ReferenceKernels::rms_norm_backward_weight(Stream& stream, const float* dy, const float* x,
                                                const float* rstd, float* d_gamma,
                                                std::uint32_t rows, std::uint32_t hidden,
                                                Accumulate accumulate) {
  run(stream, [=] {
    for (std::size_t i = 0; i < hidden; ++i) {
      double sum = 0.0;
      for (std::size_t r = 0; r < rows; ++r) {
        sum += double{dy[r * hidden + i]} * x[r * hidden + i] * rstd[r];
      }
      put(d_gamma[i], sum, accumulate);
    }
  });
}

/// Rounded, if that is the precision, to the eight significant bits of bfloat16, or to the eleven
/// of half precision, fewer below 2^-14, and none from 2^16 on; ties to even.
static std::vector<double> operand(const float* values, std::size_t count, Precision precision) {
  std::vector<double> rounded(values, values + count);
  if (precision == Precision::fp32) return rounded;
  for (auto& value : rounded) {
    if (!std::isfinite(value)) continue;
    int exponent = 0;
    static_cast<void>(std::frexp(value, &exponent));
    const int last = precision == Precision::bf16 ? exponent - 8 : std::max(exponent - 11, -24);
    value = std::ldexp(std::nearbyint(std::ldexp(value, -last)), last);
    if (precision == Precision::fp16 && std::abs(value) > 65504.0) {
      value = std::copysign(std::numeric_limits<double>::infinity(), value);
    }
  }
  return rounded;
}

static std::vector<double> inputs_of(const float* x, const LinearShape& shape) {
  return operand(x, std::size_t{shape.rows} * shape.in, shape.precision);
}
static std::vector<double> outputs_of(const float* dy, const LinearShape& shape) {
  return operand(dy, std::size_t{shape.rows} * shape.out, shape.precision);
}
static std::vector<double> weights_of(const float* w, const LinearShape& shape) {
  return operand(w, std::size_t{shape.in} * shape.out, shape.precision);
}

void ReferenceKernels::linear_forward(Stream& stream, const float* x, const float* w,
                                      const float* bias, const float* residual, float* y,
                                      const LinearShape& shape) {
  run(stream, [=] {
    const auto xs = inputs_of(x, shape);
    const auto ws = weights_of(w, shape);
    for (std::size_t r = 0; r < shape.rows; ++r) {
      for (std::size_t o = 0; o < shape.out; ++o) {
        double sum = bias == nullptr ? 0.0 : double{bias[o]};
        for (std::size_t i = 0; i < shape.in; ++i) {
          sum += xs[r * shape.in + i] * ws[weight_at(shape, i, o)];
        }
        if (residual != nullptr) sum += residual[r * shape.out + o];
        y[r * shape.out + o] = static_cast<float>(sum);
      }
    }
  });
}

void ReferenceKernels::linear_backward_input(Stream& stream, const float* dy, const float* w,
                                             const float* residual, float* dx,
                                             const LinearShape& shape) {
  run(stream, [=] {
    const auto dys = outputs_of(dy, shape);
    const auto ws = weights_of(w, shape);
    for (std::size_t r = 0; r < shape.rows; ++r) {
      for (std::size_t i = 0; i < shape.in; ++i) {
        double sum = residual == nullptr ? 0.0 : double{residual[r * shape.in + i]};
        for (std::size_t o = 0; o < shape.out; ++o) {
          sum += dys[r * shape.out + o] * ws[weight_at(shape, i, o)];
        }
        dx[r * shape.in + i] = static_cast<float>(sum);
      }
    }
  });
}

void ReferenceKernels::linear_backward_weight(Stream& stream, const float* x, const float* dy,
                                              float* dw, float* d_bias, const LinearShape& shape,
                                              Accumulate accumulate) {
  run(stream, [=] {
    const auto xs = inputs_of(x, shape);
    const auto dys = outputs_of(dy, shape);
    for (std::size_t o = 0; o < shape.out; ++o) {
      for (std::size_t i = 0; i < shape.in; ++i) {
        double sum = 0.0;
        for (std::size_t r = 0; r < shape.rows; ++r) {
          sum += xs[r * shape.in + i] * dys[r * shape.out + o];
        }
        put(dw[weight_at(shape, i, o)], sum, accumulate);
      }
      if (d_bias == nullptr) continue;
      double sum = 0.0;
      for (std::size_t r = 0; r < shape.rows; ++r) sum += dy[r * shape.out + o];
      put(d_bias[o], sum, accumulate);
    }
  });
}

void ReferenceKernels::gelu_forward(Stream& stream, const float* x, float* y, std::size_t count) {
  run(stream, [=] {
    for (std::size_t i = 0; i < count; ++i) {
      const double v = x[i];
      const double t = std::tanh(gelu_slope * (v + 0.044715 * v * v * v));
      y[i] = static_cast<float>(0.5 * v * (1.0 + t));
    }
  });
}

void ReferenceKernels::gelu_backward(Stream& stream, const float* x, const float* dy, float* dx,
                                     std::size_t count) {
  run(stream, [=] {
    for (std::size_t i = 0; i < count; ++i) {
      const double v = x[i];
      const double t = std::tanh(gelu_slope * (v + 0.044715 * v * v * v));
      const double slope = gelu_slope * (1.0 + 3.0 * 0.044715 * v * v);
      dx[i] = static_cast<float>(dy[i] * (0.5 * (1.0 + t) + 0.5 * v * (1.0 - t * t) * slope));
    }
  });
}

void ReferenceKernels::exact_gelu_forward(Stream& stream, const float* x, float* y,
                                          std::size_t count) {
  run(stream, [=] {
    for (std::size_t i = 0; i < count; ++i) {
      y[i] = static_cast<float>(x[i] * 0.5 * std::erfc(-x[i] / std::numbers::sqrt2));
    }
  });
}

void ReferenceKernels::exact_gelu_backward(Stream& stream, const float* x, const float* dy,
                                           float* dx, std::size_t count) {
  run(stream, [=] {
    for (std::size_t i = 0; i < count; ++i) {
      const double v = x[i];
      const double density =
          std::exp(-0.5 * v * v) * std::numbers::inv_sqrtpi / std::numbers::sqrt2;
      dx[i] = static_cast<float>(dy[i] * (0.5 * std::erfc(-v / std::numbers::sqrt2) + v * density));
    }
  });
}

void ReferenceKernels::tanh_forward(Stream& stream, const float* x, float* y, std::size_t count) {
  run(stream, [=] {
    for (std::size_t i = 0; i < count; ++i) y[i] = static_cast<float>(std::tanh(double{x[i]}));
  });
}

void ReferenceKernels::tanh_backward(Stream& stream, const float* y, const float* dy, float* dx,
                                     std::size_t count) {
  run(stream, [=] {
    for (std::size_t i = 0; i < count; ++i) {
      dx[i] = static_cast<float>(dy[i] * (1.0 - double{y[i]} * y[i]));
    }
  });
}

void ReferenceKernels::first_rows(Stream& stream, const float* x, float* y, std::uint32_t batch,
                                  std::uint32_t sequence, std::uint32_t hidden) {
  run(stream, [=] {
    for (std::size_t b = 0; b < batch; ++b) {
      for (std::size_t i = 0; i < hidden; ++i) y[b * hidden + i] = x[b * sequence * hidden + i];
    }
  });
}

void ReferenceKernels::first_rows_backward(Stream& stream, const float* dy, float* dx,
                                           std::uint32_t batch, std::uint32_t sequence,
                                           std::uint32_t hidden) {
  run(stream, [=] {
    for (std::size_t r = 0; r < std::size_t{batch} * sequence; ++r) {
      for (std::size_t i = 0; i < hidden; ++i) {
        dx[r * hidden + i] = r % sequence == 0 ? dy[r / sequence * hidden + i] : 0.0F;
      }
    }
  });
}

void ReferenceKernels::swiglu_forward(Stream& stream, const float* x, float* y, std::uint32_t rows,
                                      std::uint32_t width) {
  run(stream, [=] {
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t i = 0; i < width; ++i) {
        const double gate = x[2 * r * width + i];
        y[r * width + i] =
            static_cast<float>(gate / (1.0 + std::exp(-gate)) * x[(2 * r + 1) * width + i]);
      }
    }
  });
}

void ReferenceKernels::swiglu_backward(Stream& stream, const float* x, const float* dy, float* dx,
                                       std::uint32_t rows, std::uint32_t width) {
  run(stream, [=] {
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t i = 0; i < width; ++i) {
        const double gate = x[2 * r * width + i];
        const double value = x[(2 * r + 1) * width + i];
        const double sigmoid = 1.0 / (1.0 + std::exp(-gate));
        const double gradient = dy[r * width + i];
        dx[2 * r * width + i] =
            static_cast<float>(gradient * value * sigmoid * (1.0 + gate * (1.0 - sigmoid)));
        dx[(2 * r + 1) * width + i] = static_cast<float>(gradient * gate * sigmoid);
      }
    }
  });
}

void ReferenceKernels::rotate(Stream& stream, float* qkv, const float* turns, bool back,
                              const AttentionShape& shape) {
  run(stream, [=] {
    const std::size_t half = shape.head_size / 2;
    for (std::size_t r = 0; r < std::size_t{shape.batch} * shape.sequence; ++r) {
      const float* turn = turns + r % shape.sequence * shape.head_size;
      for (std::size_t head = 0; head < shape.heads + shape.kv_heads; ++head) {
        float* at = qkv + r * shape.qkv_width() + head * shape.head_size;
        for (std::size_t i = 0; i < half; ++i) {
          const double x = at[i];
          const double z = at[i + half];
          const double cosine = turn[i];
          const double sine = back ? -turn[i + half] : turn[i + half];
          at[i] = static_cast<float>(x * cosine - z * sine);
          at[i + half] = static_cast<float>(z * cosine + x * sine);
        }
      }
    }
  });
}

void ReferenceKernels::dropout(Stream& stream, const float* x, const float* residual, float* y,
                               std::uint32_t rows, std::uint32_t sequence, std::uint32_t width,
                               const Dropout& dropout) {
  run(stream, [=] {
    for (std::size_t r = 0; r < rows; ++r) {
      const auto row = dropout.first_row + r;
      for (std::size_t i = 0; i < width; ++i) {
        const auto at = r * width + i;
        const double kept = factor(dropout, row / sequence, 0, row % sequence, i);
        y[at] = static_cast<float>(kept * x[at] + (residual == nullptr ? 0.0F : residual[at]));
      }
    }
  });
}

void ReferenceKernels::attention_forward(Stream& stream, const float* qkv,
                                         const std::int32_t* lengths, float* y, float* log_sum_exp,
                                         const AttentionShape& shape, const Dropout& dropout) {
  run(stream, [=] {
    for (std::size_t b = 0; b < shape.batch; ++b) {
      for (std::size_t h = 0; h < shape.heads; ++h) {
        head_forward(qkv, lengths, y, log_sum_exp + (b * shape.heads + h) * shape.sequence,
                     Head{shape, b, h}, shape.sequence, dropout);
      }
    }
  });
}

void ReferenceKernels::attention_backward(Stream& stream, const float* dy, const float* qkv,
                                          const std::int32_t* lengths, const float* y,
                                          const float* log_sum_exp, float* d_qkv,
                                          const AttentionShape& shape, const Dropout& dropout) {
  run(stream, [=] {
    for (std::size_t b = 0; b < shape.batch; ++b) {
      for (std::size_t h = 0; h < shape.heads; ++h) {
        head_backward(dy, qkv, lengths, y, log_sum_exp + (b * shape.heads + h) * shape.sequence,
                      d_qkv, Head{shape, b, h}, shape.sequence, dropout);
      }
    }
  });
}

void ReferenceKernels::cross_entropy(Stream& stream, float* logits, const std::int32_t* targets,
                                     double* loss, float gradient_scale, std::uint32_t rows,
                                     std::uint32_t vocabulary) {
  run(stream, [=] {
    double total = 0.0;
    for (std::size_t r = 0; r < rows; ++r) {
      float* row = logits + r * vocabulary;
      if (targets[r] < 0) {
        if (gradient_scale != 0.0F) std::fill_n(row, vocabulary, 0.0F);
        continue;
      }
      const auto target = static_cast<std::size_t>(targets[r]);
      const double highest = *std::max_element(row, row + vocabulary);
      double sum = 0.0;
      for (std::size_t i = 0; i < vocabulary; ++i) sum += std::exp(row[i] - highest);
      total += highest + std::log(sum) - row[target];
      if (gradient_scale == 0.0F) continue;
      for (std::size_t i = 0; i < vocabulary; ++i) {
        const double p = std::exp(row[i] - highest) / sum;
        row[i] = static_cast<float>((p - (i == target ? 1.0 : 0.0)) * gradient_scale);
      }
    }
    *loss = total;
  });
}

void ReferenceKernels::arg_max(Stream& stream, const float* x, std::int32_t* indices,
                               std::uint32_t rows, std::uint32_t columns) {
  run(stream, [=] {
    for (std::size_t r = 0; r < rows; ++r) {
      std::size_t best = 0;
      for (std::size_t i = 1; i < columns; ++i) {
        if (x[r * columns + i] > x[r * columns + best]) best = i;
      }
      indices[r] = static_cast<std::int32_t>(best);
    }
  });
}

void ReferenceKernels::word_statistics(Stream& stream, const float* logits,
                                       const std::int32_t* targets, float* statistics,
                                       std::uint32_t rows, const WordRange& words) {
  run(stream, [=] {
    for (std::size_t r = 0; r < rows; ++r) {
      const float* row = logits + r * words.count;
      const float highest = *std::max_element(row, row + words.count);
      double sum = 0.0;
      for (std::size_t i = 0; i < words.count; ++i) sum += std::exp(double{row[i]} - highest);
      statistics[3 * r] = highest;
      statistics[3 * r + 1] = static_cast<float>(sum);
      statistics[3 * r + 2] = is_among(words, targets[r]) ? row[place_among(words, targets[r])]
                                                          : -std::numeric_limits<float>::infinity();
    }
  });
}

void ReferenceKernels::cross_entropy_of_shards(Stream& stream, float* logits,
                                               const std::int32_t* targets, const float* statistics,
                                               std::size_t statistics_stride,
                                               std::uint32_t shard_count, double* loss,
                                               float gradient_scale, std::uint32_t rows,
                                               const WordRange& words) {
  run(stream, [=] {
    double total = 0.0;
    for (std::size_t r = 0; r < rows; ++r) {
      float* row = logits + r * words.count;
      if (targets[r] < 0) {
        if (gradient_scale != 0.0F) std::fill_n(row, words.count, 0.0F);
        continue;
      }
      const auto of_shard = [&](std::size_t s) {
        return statistics + s * statistics_stride + 3 * r;
      };
      double highest = of_shard(0)[0];
      double target = of_shard(0)[2];
      for (std::size_t s = 1; s < shard_count; ++s) {
        highest = std::max(highest, double{of_shard(s)[0]});
        target = std::max(target, double{of_shard(s)[2]});
      }
      double sum = 0.0;
      for (std::size_t s = 0; s < shard_count; ++s) {
        sum += of_shard(s)[1] * std::exp(of_shard(s)[0] - highest);
      }
      total += highest + std::log(sum) - target;
      if (gradient_scale == 0.0F) continue;
      for (std::size_t i = 0; i < words.count; ++i) {
        const bool is_target = is_among(words, targets[r]) && place_among(words, targets[r]) == i;
        const double p = std::exp(row[i] - highest) / sum;
        row[i] = static_cast<float>((p - (is_target ? 1.0 : 0.0)) * gradient_scale);
      }
    }
    *loss = total;
  });
}

void ReferenceKernels::custom_forward(Stream& stream, const CustomKernel& kernel,
                                      const CustomRows& rows, const float* x, float* y) {
  run(stream, [&kernel, rows, x, y] {
    kernel.forward(rows, {x, rows.rows * rows.in}, {y, rows.rows * rows.out});
  });
}

void ReferenceKernels::custom_backward_input(Stream& stream, const CustomKernel& kernel,
                                             const CustomRows& rows, const float* x,
                                             const float* dy, float* dx) {
  run(stream, [&kernel, rows, x, dy, dx] {
    kernel.backward_input(rows, {x, rows.rows * rows.in}, {dy, rows.rows * rows.out},
                          {dx, rows.rows * rows.in});
  });
}

void ReferenceKernels::custom_backward_weight(
    Stream& stream, const CustomKernel& kernel, const CustomRows& rows, const float* x,
    const float* dy, const std::array<std::span<float>, custom_parameters_max>& gradients,
    Accumulate accumulate) {
  run(stream, [=, &kernel] {
    for (const auto& gradient : gradients) {
      if (accumulate == Accumulate::overwrite) std::ranges::fill(gradient, 0.0F);
    }
    kernel.backward_weight(rows, {.begin = 0, .end = rows.out}, {x, rows.rows * rows.in},
                           {dy, rows.rows * rows.out}, gradients);
  });
}

void ReferenceKernels::upload(Stream& stream, const void* host, void* device,
                              std::size_t size_bytes) {
  run(stream, [=] { std::memcpy(device, host, size_bytes); });
}

void ReferenceKernels::download(Stream& stream, const void* device, void* host,
                                std::size_t size_bytes) {
  run(stream, [=] { std::memcpy(host, device, size_bytes); });
}

void ReferenceKernels::copy(Stream& stream, const float* x, float* y, std::size_t count) {
  run(stream, [=] { std::copy_n(x, count, y); });
}

void ReferenceKernels::add(Stream& stream, const float* a, const float* b, float* y,
                           std::size_t count) {
  run(stream, [=] {
    for (std::size_t i = 0; i < count; ++i) y[i] = a[i] + b[i];
  });
}

void ReferenceKernels::sum_of_squares(Stream& stream, const float* x, double* sum,
                                      std::size_t count) {
  run(stream, [=] { *sum = dot(x, x, count); });
}

void ReferenceKernels::adam(Stream& stream, float* w, const float* g, float* m, float* v,
                            std::size_t count, const AdamStep& step) {
  run(stream, [=] {
    for (std::size_t i = 0; i < count; ++i) {
      const double decay = step.weight_decay;
      const double gradient =
          double{g[i]} * step.gradient_scale + (step.is_decoupled ? 0.0 : decay * w[i]);
      const double decayed =
          w[i] * (step.is_decoupled ? 1.0 - double{step.learning_rate} * decay : 1.0);
      m[i] = static_cast<float>(step.beta1 * double{m[i]} + (1.0 - step.beta1) * gradient);
      v[i] =
          static_cast<float>(step.beta2 * double{v[i]} + (1.0 - step.beta2) * gradient * gradient);
      const double root = std::sqrt(double{v[i]} / step.bias2) + step.epsilon;
      w[i] = static_cast<float>(decayed - step.learning_rate / step.bias1 * m[i] / root);
    }
  });
}

void ReferenceKernels::adafactor_sums(Stream& stream, const float* g, float* row_sums,
                                      float* column_sums, const MatrixShape& shape,
                                      float gradient_scale) {
  run(stream, [=] {
    std::vector<double> rows(shape.rows);
    std::vector<double> columns(shape.columns);
    for (std::size_t r = 0; r < shape.rows; ++r) {
      for (std::size_t c = 0; c < shape.columns; ++c) {
        const double square =
            std::pow(double{g[r * shape.columns + c]} * gradient_scale, 2) + 1e-30;
        rows[r] += square;
        columns[c] += square;
      }
    }
    for (std::size_t r = 0; r < shape.rows; ++r) row_sums[r] = static_cast<float>(rows[r]);
    for (std::size_t c = 0; c < shape.columns; ++c) column_sums[c] = static_cast<float>(columns[c]);
  });
}

void ReferenceKernels::blend(Stream& stream, float* average, const float* value, float keep,
                             std::size_t count) {
  run(stream, [=] {
    for (std::size_t i = 0; i < count; ++i) {
      average[i] = static_cast<float>(double{keep} * average[i] + (1.0 - double{keep}) * value[i]);
    }
  });
}

namespace {

/// u, the direction of an element.
double direction_of(const float* g, const AdafactorMoments& moments, const MatrixShape& shape,
                    const AdafactorStep& step, std::size_t row, std::size_t column) {
  double total = 0.0;
  for (std::size_t i = 0; i < moments.whole_count; ++i) total += moments.whole[i];
  return double{g[row * shape.columns + column]} * step.gradient_scale
         / std::sqrt(double{moments.rows[row]} * moments.columns[column] / total);
}

}  // namespace

void ReferenceKernels::adafactor_norms(Stream& stream, const float* w, const float* g,
                                       const AdafactorMoments& moments, float* norms,
                                       const MatrixShape& shape, const AdafactorStep& step) {
  run(stream, [=] {
    double of_u = 0.0;
    double of_w = 0.0;
    for (std::size_t r = 0; r < shape.rows; ++r) {
      for (std::size_t c = 0; c < shape.columns; ++c) {
        of_u += std::pow(direction_of(g, moments, shape, step, r, c), 2);
        of_w += std::pow(double{w[r * shape.columns + c]}, 2);
      }
    }
    norms[0] = static_cast<float>(of_u);
    norms[1] = static_cast<float>(of_w);
  });
}

void ReferenceKernels::adafactor_update(Stream& stream, float* w, const float* g,
                                        const AdafactorMoments& moments, const float* norms,
                                        const MatrixShape& shape, const AdafactorStep& step) {
  run(stream, [=] {
    const auto count = static_cast<double>(moments.element_count);
    const double rate = step.learning_rate * std::max(1e-3, std::sqrt(norms[1] / count))
                        / std::max(1.0, std::sqrt(norms[0] / count));
    for (std::size_t r = 0; r < shape.rows; ++r) {
      for (std::size_t c = 0; c < shape.columns; ++c) {
        float& weight = w[r * shape.columns + c];
        const double decayed = weight * (1.0 - double{step.learning_rate} * step.weight_decay);
        weight = static_cast<float>(decayed - rate * direction_of(g, moments, shape, step, r, c));
      }
    }
  });
}

void ReferenceKernels::sgd(Stream& stream, float* w, const float* g, float* velocity,
                           std::size_t count, const SgdStep& step) {
  run(stream, [=] {
    for (std::size_t i = 0; i < count; ++i) {
      const double gradient = double{g[i]} * step.gradient_scale + double{step.weight_decay} * w[i];
      velocity[i] = static_cast<float>(step.momentum * double{velocity[i]} + gradient);
      w[i] = static_cast<float>(w[i] - double{step.learning_rate} * velocity[i]);
    }
  });
}

}  // namespace troupe::stages
