// stages/src/cpu/elements.hpp -- what works element by element: activations, sums, optimizers.
#pragma once

#include "isa.hpp"
#include "masks.hpp"
#include "vector.hpp"

namespace troupe::stages::TROUPE_ISA {

inline constexpr float gelu_slope = 0.7978845608F;  ///< sqrt(2 / pi)
inline constexpr float gelu_cubic = 0.044715F;

/// 0.5 (1 + tanh u) = 1 / (1 + e^-2u), which loses no digits where tanh u is near -1.
struct GeluParts {
  Vector power;    ///< e^-2u with u = gelu_slope (x + gelu_cubic x^3)
  Vector sigmoid;  ///< 1 / (1 + power)
};

inline GeluParts gelu_parts(Vector x) {
  const Vector power = exp(x * (x * x * (-2.0F * gelu_slope * gelu_cubic) - 2.0F * gelu_slope));
  return {power, 1.0F / (power + 1.0F)};
}

inline Vector gelu(Vector x) {
  return x * gelu_parts(x).sigmoid;
}

/// With s the sigmoid of 2u: (x s)' = s + x s (1 - s) 2u', and 1 - s = power * s.
inline Vector gelu_derivative(Vector x) {
  const auto [power, sigmoid] = gelu_parts(x);
  const Vector slope = x * x * (6.0F * gelu_slope * gelu_cubic) + 2.0F * gelu_slope;
  return sigmoid + x * sigmoid * (power * sigmoid) * slope;
}

inline void gelu_forward(const float* x, float* y, std::size_t count) {
  for_each_vector(
      count, [&](std::size_t i, auto lanes) { store(y + i, gelu(load(x + i, lanes)), lanes); });
}

inline void gelu_backward(const float* x, const float* dy, float* dx, std::size_t count) {
  for_each_vector(count, [&](std::size_t i, auto lanes) {
    store(dx + i, load(dy + i, lanes) * gelu_derivative(load(x + i, lanes)), lanes);
  });
}

/// To bfloat16, ties to even, by carrying into the upper half; a NaN stays one.
inline Unsigned rounded_to_bf16(Vector x) {
  const auto bits = reinterpret_cast<Unsigned>(x);
  const Unsigned rounded = (bits + 0x7fffU + (bits >> 16U & 1U)) >> 16U;
  return x == x ? rounded : Unsigned{} + 0x7fc0U;
}

inline void to_bf16(const float* x, std::uint16_t* y, std::size_t count) {
  for_each_vector(count, [&](std::size_t i, auto lanes) {
    const auto half = __builtin_convertvector(rounded_to_bf16(load(x + i, lanes)), HalfBits);
    std::memcpy(y + i, &half, sizeof(std::uint16_t) * count_of(lanes));
  });
}

inline void round_to_bf16(const float* x, float* y, std::size_t count) {
  for_each_vector(count, [&](std::size_t i, auto lanes) {
    const Unsigned bits = rounded_to_bf16(load(x + i, lanes)) << 16U;
    store(y + i, reinterpret_cast<Vector>(bits), lanes);
  });
}

/// The nearest number of IEEE half precision, ties to even: 11 significant bits; below 2^-14
/// multiples of 2^-24, to which 0.5 rounds whatever it is added to; from 65520 on infinity. What is
/// no number stays so.
inline Vector rounded_to_fp16(Vector x) {
  const auto bits = reinterpret_cast<Unsigned>(x);
  const Unsigned size_bits = bits & 0x7fffffffU;
  const auto size = reinterpret_cast<Vector>(size_bits);
  const Unsigned carried = (size_bits + 0xfffU + (size_bits >> 13U & 1U)) & ~0x1fffU;
  Vector rounded = size < 0x1p-14F ? (size + 0.5F) - 0.5F : reinterpret_cast<Vector>(carried);
  rounded = rounded > 65504.0F ? splat(__builtin_inff()) : rounded;
  const Unsigned with_sign = reinterpret_cast<Unsigned>(rounded) | (bits ^ size_bits);
  return x == x ? reinterpret_cast<Vector>(with_sign) : x;
}

inline void round_to_fp16(const float* x, float* y, std::size_t count) {
  for_each_vector(count, [&](std::size_t i, auto lanes) {
    store(y + i, rounded_to_fp16(load(x + i, lanes)), lanes);
  });
}

struct NormalParts {
  Vector power;  ///< e^(-x^2 / 2)
  Vector below;  ///< The probability that a standard normal number is below x.
};

/// With t = 1 / (1 + 0.35 |x|), the probability below -|x| is power * t * p(t). The polynomial is
/// the one of degree 8 whose largest relative error for |x| <= 14 is least: 3.2e-8, found by
/// weighted least squares with Lawson's weights. So the tail keeps its digits.
inline NormalParts normal_parts(Vector x) {
  const Vector power = exp(x * x * -0.5F);
  const Vector t = 1.0F / (larger(x, -x) * 0.35F + 1.0F);
  Vector p = t * -0.0291459386F + 0.143971737F;
  p = p * t - 0.255714335F;
  p = p * t + 0.159174250F;
  p = p * t - 0.0231098968F;
  p = p * t + 0.105508030F;
  p = p * t + 0.119832861F;
  p = p * t + 0.139861871F;
  p = p * t + 0.139621404F;
  const Vector tail = power * t * p;
  return {power, x < 0.0F ? tail : 1.0F - tail};
}

inline void exact_gelu_forward(const float* x, float* y, std::size_t count) {
  for_each_vector(count, [&](std::size_t i, auto lanes) {
    const Vector value = load(x + i, lanes);
    store(y + i, value * normal_parts(value).below, lanes);
  });
}

/// (x P(x))' = P(x) + x p(x) with the density p(x) = e^(-x^2 / 2) / sqrt(2 pi).
inline void exact_gelu_backward(const float* x, const float* dy, float* dx, std::size_t count) {
  constexpr float height = 0.3989422804F;  // 1 / sqrt(2 pi)
  for_each_vector(count, [&](std::size_t i, auto lanes) {
    const Vector value = load(x + i, lanes);
    const auto [power, below] = normal_parts(value);
    store(dx + i, load(dy + i, lanes) * (below + value * power * height), lanes);
  });
}

/// A point (x, z) becomes (x cos - z sin, z cos + x sin), or with direction -1 turns back.
inline void rotate(float* head, const float* cosines, const float* sines, float direction,
                   std::size_t size) {
  float* other = head + size / 2;
  for_each_vector(size / 2, [&](std::size_t i, auto lanes) {
    const Vector x = load(head + i, lanes);
    const Vector z = load(other + i, lanes);
    const Vector cosine = load(cosines + i, lanes);
    const Vector sine = load(sines + i, lanes) * direction;
    store(head + i, x * cosine - z * sine, lanes);
    store(other + i, z * cosine + x * sine, lanes);
  });
}

/// A part is a range of rows, here and below.
inline void swiglu_forward(const float* x, float* y, std::size_t begin, std::size_t end,
                           std::size_t width_of_y) {
  for (std::size_t r = begin; r < end; ++r) {
    const float* gates = x + 2 * r * width_of_y;
    const float* values = gates + width_of_y;
    for_each_vector(width_of_y, [&](std::size_t i, auto lanes) {
      const Vector gate = load(gates + i, lanes);
      store(y + r * width_of_y + i, gate / (exp(-gate) + 1.0F) * load(values + i, lanes), lanes);
    });
  }
}

/// With s = 1 / (1 + e^-x): (x s)' = s + x s (1 - s), and 1 - s = e^-x s.
inline void swiglu_backward(const float* x, const float* dy, float* dx, std::size_t begin,
                            std::size_t end, std::size_t width_of_y) {
  for (std::size_t r = begin; r < end; ++r) {
    const std::size_t gates = 2 * r * width_of_y;
    const std::size_t values = gates + width_of_y;
    for_each_vector(width_of_y, [&](std::size_t i, auto lanes) {
      const Vector gate = load(x + gates + i, lanes);
      const Vector gradient = load(dy + r * width_of_y + i, lanes);
      const Vector power = exp(-gate);
      const Vector sigmoid = 1.0F / (power + 1.0F);
      const Vector slope = sigmoid + gate * sigmoid * (power * sigmoid);
      store(dx + gates + i, gradient * load(x + values + i, lanes) * slope, lanes);
      store(dx + values + i, gradient * gate * sigmoid, lanes);
    });
  }
}

inline void dropout(const float* x, const float* residual, float* y, std::size_t count,
                    const Mask& mask, std::uint32_t row) {
  for_each_factor(mask, row, count, [&](std::size_t i, auto lanes, Vector factor) {
    Vector value = load(x + i, lanes) * factor;
    if (residual != nullptr) value += load(residual + i, lanes);
    store(y + i, value, lanes);
  });
}

inline void add(const float* a, const float* b, float* y, std::size_t count) {
  for_each_vector(count, [&](std::size_t i, auto lanes) {
    store(y + i, load(a + i, lanes) + load(b + i, lanes), lanes);
  });
}

/// Each lane adds 64 squares in float before they join the sum in double.
inline double sum_of_squares(const float* x, std::size_t count) {
  constexpr std::size_t run = 64 * width;
  double total = 0.0;
  for (std::size_t begin = 0; begin < count; begin += run) {
    Vector squares{};
    for_each_vector(begin + run < count ? run : count - begin, [&](std::size_t i, auto lanes) {
      const Vector value = load(x + begin + i, lanes);
      squares += value * value;
    });
    float lanes_of[width];
    store(lanes_of, squares);
    for (const float lane : lanes_of) total += double{lane};
  }
  return total;
}

inline Vector square_root(Vector x) {
  for (std::size_t i = 0; i < width; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
}

inline void adam(float* w, const float* g, float* m, float* v, std::size_t count,
                 const AdamStep& step) {
  const float keep_weight =
      step.is_decoupled ? 1.0F - step.learning_rate * step.weight_decay : 1.0F;
  const float rate = step.learning_rate / step.bias1;
  const float root = 1.0F / __builtin_sqrtf(step.bias2);
  for_each_vector(count, [&](std::size_t i, auto lanes) {
    Vector gradient = load(g + i, lanes) * step.gradient_scale;
    if (!step.is_decoupled) gradient += load(w + i, lanes) * step.weight_decay;
    const Vector mean = load(m + i, lanes) * step.beta1 + gradient * (1.0F - step.beta1);
    const Vector square =
        load(v + i, lanes) * step.beta2 + gradient * gradient * (1.0F - step.beta2);
    const Vector change = mean * rate / (square_root(square) * root + step.epsilon);
    store(m + i, mean, lanes);
    store(v + i, square, lanes);
    store(w + i, load(w + i, lanes) * keep_weight - change, lanes);
  });
}

inline constexpr float adafactor_floor = 1e-30F;

/// Of g^2 + floor, g scaled first.
inline float adafactor_row_sum(const float* g, std::size_t count, float gradient_scale) {
  Vector sum{};
  for_each_vector(count, [&](std::size_t i, auto lanes) {
    const Vector gradient = load(g + i, lanes) * gradient_scale;
    sum += keep(gradient * gradient + adafactor_floor, lanes);
  });
  return sum_of_lanes(sum);
}

/// Adds a row's g^2 + floor to the sums of the columns.
inline void adafactor_add_row(const float* g, float* sums, std::size_t count,
                              float gradient_scale) {
  for_each_vector(count, [&](std::size_t i, auto lanes) {
    const Vector gradient = load(g + i, lanes) * gradient_scale;
    store(sums + i, load(sums + i, lanes) + gradient * gradient + adafactor_floor, lanes);
  });
}

/// g / sqrt(share * c), where share is the row's part of the sum of all rows.
template <class Lanes>
inline Vector adafactor_direction(const float* g, const float* columns, float share, float scale,
                                  Lanes lanes) {
  return load(g, lanes) * scale / square_root(load(columns, lanes) * share);
}

/// Sums of u^2 and of w^2 of a row.
inline void adafactor_row_norms(const float* w, const float* g, const float* columns, float share,
                                std::size_t count, float gradient_scale, double* norms) {
  Vector of_u{};
  Vector of_w{};
  for_each_vector(count, [&](std::size_t i, auto lanes) {
    const Vector u =
        keep(adafactor_direction(g + i, columns + i, share, gradient_scale, lanes), lanes);
    const Vector weight = load(w + i, lanes);
    of_u += u * u;
    of_w += weight * weight;
  });
  norms[0] = double{sum_of_lanes(of_u)};
  norms[1] = double{sum_of_lanes(of_w)};
}

inline void adafactor_update_row(float* w, const float* g, const float* columns, float share,
                                 std::size_t count, float gradient_scale, float rate,
                                 float keep_weight) {
  for_each_vector(count, [&](std::size_t i, auto lanes) {
    const Vector u = adafactor_direction(g + i, columns + i, share, gradient_scale, lanes);
    store(w + i, load(w + i, lanes) * keep_weight - u * rate, lanes);
  });
}

inline void blend(float* average, const float* value, float kept, std::size_t count) {
  for_each_vector(count, [&](std::size_t i, auto lanes) {
    store(average + i, load(average + i, lanes) * kept + load(value + i, lanes) * (1.0F - kept),
          lanes);
  });
}

inline void sgd(float* w, const float* g, float* velocity, std::size_t count, const SgdStep& step) {
  for_each_vector(count, [&](std::size_t i, auto lanes) {
    const Vector weight = load(w + i, lanes);
    const Vector gradient = load(g + i, lanes) * step.gradient_scale + weight * step.weight_decay;
    const Vector speed = load(velocity + i, lanes) * step.momentum + gradient;
    store(velocity + i, speed, lanes);
    store(w + i, weight - speed * step.learning_rate, lanes);
  });
}

}  // namespace troupe::stages::TROUPE_ISA
