// Every kernel of the CPU device against plain loops, for each instruction set of this machine.
#include "troupe/stages/kernels.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <ostream>
#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/engine/random.hpp"

#include "../scope.hpp"
#include "custom_kernels.hpp"
#include "inline_device.hpp"
#include "isa.hpp"

namespace troupe::stages {

/// For test names and messages.
static void PrintTo(const Isa* isa, std::ostream* out) {
  *out << isa->name;
}

namespace {

using Floats = std::vector<float>;

constexpr std::uint32_t row_counts[]{1, 3, 17};
constexpr std::uint32_t hidden_sizes[]{4, 20, 384};
constexpr Accumulate accumulates[]{Accumulate::overwrite, Accumulate::add};

/// Instruction set and threads of the stream.
class VectorKernels : public testing::TestWithParam<std::tuple<const Isa*, std::uint32_t>> {
protected:
  static constexpr std::uint64_t seed = 20240601;

  void SetUp() override { RecordProperty("seed", std::to_string(seed)); }

  /// Uniform in [-1, 1): a swapped or missed element shows.
  Floats random(std::size_t count) {
    Floats values(count);
    for (float& value : values) {
      value = static_cast<float>(random_.below(1U << 20U)) / static_cast<float>(1U << 19U) - 1.0F;
    }
    return values;
  }

  std::vector<std::int32_t> random_tokens(std::size_t count, std::uint32_t vocabulary) {
    std::vector<std::int32_t> tokens(count);
    for (auto& token : tokens) token = static_cast<std::int32_t>(random_.below(vocabulary));
    return tokens;
  }

  /// Of each sequence, the keys that all see; of the first all.
  std::vector<std::int32_t> random_lengths(const AttentionShape& shape) {
    auto lengths = random_tokens(shape.batch, shape.sequence);
    for (auto& length : lengths) ++length;
    lengths.front() = static_cast<std::int32_t>(shape.sequence);
    return lengths;
  }

  /// Runs call(kernels, stream, outputs...) with the oracle, then twice on each of two streams with
  /// the kernels under test, each time from the same `outputs`; expects the same values, and always
  /// the same bits.
  template <class Call, class... Output>
  void expect_same(double tolerance, const Call& call, const Output&... outputs) {
    std::tuple<Output...> expected{outputs...};
    std::apply([&](auto&... copies) { call(oracle_.kernels(), *oracle_stream_, copies...); },
               expected);
    std::tuple<Output...> first{outputs...};
    run_on(*stream_, call, first);
    compare(tolerance, first, expected, std::index_sequence_for<Output...>{});
    for (Stream* stream : {stream_.get(), other_stream_.get()}) {
      std::tuple<Output...> again{outputs...};
      run_on(*stream, call, again);
      EXPECT_TRUE(again == first) << "other bits on a repeated call";
    }
  }

  InlineDevice oracle_;
  std::unique_ptr<Stream> oracle_stream_ = oracle_.make_stream("oracle", 1);
  std::unique_ptr<Device> device_ = make_cpu_device(*std::get<0>(GetParam()));
  std::unique_ptr<Stream> stream_ = device_->make_stream("under test", std::get<1>(GetParam()));
  std::unique_ptr<Stream> other_stream_ = device_->make_stream("another", std::get<1>(GetParam()));

private:
  template <class Call, class Outputs>
  void run_on(Stream& stream, const Call& call, Outputs& outputs) {
    std::apply([&](auto&... copies) { call(device_->kernels(), stream, copies...); }, outputs);
    stream.synchronize();
  }

  template <class Outputs, std::size_t... index>
  static void compare(double tolerance, const Outputs& actual, const Outputs& expected,
                      std::index_sequence<index...> /*all*/) {
    (expect_near(tolerance, index, std::get<index>(actual), std::get<index>(expected)), ...);
  }

  /// Relative to the largest value of the tensor, and to 0.1.
  template <class Values>
  static void expect_near(double tolerance, std::size_t output, const Values& actual,
                          const Values& expected) {
    ASSERT_EQ(actual.size(), expected.size());
    double largest = 0.1;
    for (const double value : expected) largest = std::max(largest, std::abs(value));
    for (std::size_t i = 0; i < actual.size(); ++i) {
      const double found = actual[i];
      if (std::abs(found - expected[i]) <= tolerance * largest) continue;  // NaN is not.
      FAIL() << "output " << output << ", element " << i << " of " << actual.size() << " is "
             << found << ", expected " << expected[i] << " +- " << tolerance * largest;
    }
  }

  Random random_{seed};
};

TEST_P(VectorKernels, EmbedTokensAndPositions) {
  for (const auto hidden : hidden_sizes) {
    constexpr std::uint32_t vocabulary = 50;
    constexpr std::uint32_t sequence = 5;
    constexpr std::uint32_t rows = 3 * sequence;
    const auto tokens = random_tokens(rows, vocabulary);
    const auto position_weight = random(std::size_t{sequence} * hidden);
    const auto dy = random(std::size_t{rows} * hidden);
    for (const auto words : {WordRange{0, vocabulary}, WordRange{0, 20}, WordRange{20, 30}}) {
      const auto token_weight = random(std::size_t{words.count} * hidden);
      for (const bool has_positions : {true, false}) {
        expect_same(
            1e-7,
            [&](auto& kernels, Stream& stream, Floats& y) {
              kernels.embedding_forward(stream, tokens.data(), token_weight.data(),
                                        has_positions ? position_weight.data() : nullptr, y.data(),
                                        rows, sequence, hidden, words);
            },
            Floats(std::size_t{rows} * hidden, 3.0F));
        for (const auto accumulate : accumulates) {
          expect_same(
              1e-6,
              [&](auto& kernels, Stream& stream, Floats& d_token, Floats& d_position) {
                kernels.embedding_backward(stream, tokens.data(), dy.data(), d_token.data(),
                                           has_positions ? d_position.data() : nullptr, rows,
                                           sequence, hidden, words, accumulate);
              },
              token_weight, position_weight);
        }
      }
    }
  }
}

TEST_P(VectorKernels, AddTheRowsOfATable) {
  for (const auto rows : row_counts) {
    for (const auto hidden : hidden_sizes) {
      const auto table = random(std::size_t{5} * hidden);
      const auto indices = random_tokens(rows, 5);
      expect_same(
          0.0,
          [&](auto& kernels, Stream& stream, Floats& y) {
            kernels.add_rows(stream, indices.data(), table.data(), y.data(), rows, hidden);
          },
          random(std::size_t{rows} * hidden));
    }
  }
}

TEST_P(VectorKernels, NormalizeLayers) {
  for (const auto rows : row_counts) {
    for (const auto hidden : hidden_sizes) {
      const auto x = random(std::size_t{rows} * hidden);
      const auto gamma = random(hidden);
      const auto beta = random(hidden);
      expect_same(
          2e-6,
          [&](auto& kernels, Stream& stream, Floats& y, Floats& mean, Floats& rstd) {
            kernels.layer_norm_forward(stream, x.data(), gamma.data(), beta.data(), y.data(),
                                       mean.data(), rstd.data(), rows, hidden, 1e-5F);
          },
          Floats(x.size()), Floats(rows), Floats(rows));
    }
  }
}

TEST_P(VectorKernels, NormalizeByTheRootOfTheMeanSquare) {
  for (const auto rows : row_counts) {
    for (const auto hidden : hidden_sizes) {
      const auto x = random(std::size_t{rows} * hidden);
      const auto gamma = random(hidden);
      expect_same(
          2e-6,
          [&](auto& kernels, Stream& stream, Floats& y, Floats& rstd) {
            kernels.rms_norm_forward(stream, x.data(), gamma.data(), y.data(), rstd.data(), rows,
                                     hidden, 1e-5F);
          },
          Floats(x.size()), Floats(rows));
      const auto dy = random(x.size());
      const auto rstd = random(rows);
      const auto residual = random(x.size());
      for (const bool has_residual : {false, true}) {
        expect_same(
            5e-6,
            [&](auto& kernels, Stream& stream, Floats& dx) {
              kernels.rms_norm_backward_input(stream, dy.data(), x.data(), gamma.data(),
                                              rstd.data(), has_residual ? dx.data() : nullptr,
                                              dx.data(), rows, hidden);
            },
            residual);
      }
      for (const auto accumulate : accumulates) {
        expect_same(
            5e-6,
            [&](auto& kernels, Stream& stream, Floats& d_gamma) {
              kernels.rms_norm_backward_weight(stream, dy.data(), x.data(), rstd.data(),
                                               d_gamma.data(), rows, hidden, accumulate);
            },
            random(hidden));
      }
    }
  }
}

TEST_P(VectorKernels, NormalizeARowFarFromZero) {
  auto x = random(100);
  for (float& value : x) value = 1000.0F + value;
  const Floats gamma(100, 1.0F);
  const Floats beta(100, 0.0F);
  expect_same(
      1e-3,
      [&](auto& kernels, Stream& stream, Floats& y, Floats& mean, Floats& rstd) {
        kernels.layer_norm_forward(stream, x.data(), gamma.data(), beta.data(), y.data(),
                                   mean.data(), rstd.data(), 1, 100, 1e-5F);
      },
      Floats(100), Floats(1), Floats(1));
}

TEST_P(VectorKernels, DifferentiateTheNorm) {
  for (const auto rows : row_counts) {
    for (const auto hidden : hidden_sizes) {
      const auto x = random(std::size_t{rows} * hidden);
      const auto dy = random(x.size());
      const auto gamma = random(hidden);
      const auto mean = random(rows);
      const auto rstd = random(rows);
      const auto residual = random(x.size());
      for (const bool has_residual : {false, true}) {
        for (const bool in_place : {false, true}) {
          expect_same(
              5e-6,
              [&](auto& kernels, Stream& stream, Floats& dx) {
                const float* bypass = in_place ? dx.data() : residual.data();
                kernels.layer_norm_backward_input(
                    stream, dy.data(), x.data(), gamma.data(), mean.data(), rstd.data(),
                    has_residual ? bypass : nullptr, dx.data(), rows, hidden);
              },
              residual);
        }
      }
      for (const auto accumulate : accumulates) {
        expect_same(
            5e-6,
            [&](auto& kernels, Stream& stream, Floats& d_gamma, Floats& d_beta) {
              kernels.layer_norm_backward_weight(stream, dy.data(), x.data(), mean.data(),
                                                 rstd.data(), d_gamma.data(), d_beta.data(), rows,
                                                 hidden, accumulate);
            },
            random(hidden), random(hidden));
      }
    }
  }
}

/// Shapes at, below and above the sizes of tiles and blocks.
std::vector<LinearShape> linear_shapes() {
  std::vector<LinearShape> shapes;
  for (const auto layout : {WeightLayout::in_out, WeightLayout::out_in}) {
    for (const auto rows : {1U, 3U, 17U, 205U}) {
      for (const auto in : {4U, 20U, 130U}) {
        for (const auto out : {2U, 50U, 96U}) shapes.push_back({rows, in, out, layout});
      }
    }
    shapes.push_back({17, scope(1000U, 300U), scope(1600U, 500U), layout});
    shapes.push_back({400, 200, 33, layout});
  }
  for (auto shape : std::vector{shapes}) {
    if (shape.rows != 17) continue;
    for (const auto precision : {Precision::bf16, Precision::fp16}) {
      shape.precision = precision;
      shapes.push_back(shape);
    }
  }
  return shapes;
}

TEST_P(VectorKernels, MultiplyByWeights) {
  for (const auto& shape : linear_shapes()) {
    const auto x = random(std::size_t{shape.rows} * shape.in);
    const auto w = random(std::size_t{shape.in} * shape.out);
    const auto bias = random(shape.out);
    const auto residual = random(std::size_t{shape.rows} * shape.out);
    for (const bool has_bias : {false, true}) {
      for (const bool has_residual : {false, true}) {
        expect_same(
            3e-6,
            [&](auto& kernels, Stream& stream, Floats& y) {
              kernels.linear_forward(stream, x.data(), w.data(), has_bias ? bias.data() : nullptr,
                                     has_residual ? residual.data() : nullptr, y.data(), shape);
            },
            Floats(residual.size(), 7.0F));
      }
    }
  }
}

TEST_P(VectorKernels, CarryWhatIsNoNumberThroughProductsOfBf16) {
  const LinearShape shape{1, 3, 2, WeightLayout::out_in, Precision::bf16};
  constexpr auto infinity = std::numeric_limits<float>::infinity();
  // The one of most bits: rounding must not carry it into the sign.
  const auto nan = std::bit_cast<float>(0x7fffffffU);
  const Floats w{1.0F, 2.0F, 3.0F, 4.0F, 5.0F, 6.0F};
  const auto product = [&](const Floats& x) {
    Floats y(2);
    device_->kernels().linear_forward(*stream_, x.data(), w.data(), nullptr, nullptr, y.data(),
                                      shape);
    stream_->synchronize();
    return y;
  };
  EXPECT_TRUE(std::isnan(product({1.0F, nan, 1.0F})[0]));
  EXPECT_EQ(product({1.0F, infinity, 1.0F})[1], infinity);
  // Halfway between two: to the even one. 1 + 2^-8 and 1 + 3 * 2^-8.
  EXPECT_EQ(product({1.00390625F, 0.0F, 0.0F})[0], 1.0F);
  EXPECT_EQ(product({1.01171875F, 0.0F, 0.0F})[0], 1.015625F);
}

/// The numbers of half precision from 0 to the infinite one, which has the place of 65536.
std::vector<double> halves() {
  std::vector<double> numbers;
  for (int bits = 0; bits <= 0x7c00; ++bits) {
    const int exponent = bits >> 10;
    const int fraction = bits & 0x3ff;
    numbers.push_back(exponent == 0 ? std::ldexp(fraction, -24)
                                    : std::ldexp(1024 + fraction, exponent - 25));
  }
  return numbers;
}

/// A product of width one shows what becomes of an operand, whichever it is.
TEST_P(VectorKernels, RoundOperandsToEachNumberOfHalfPrecision) {
  constexpr auto infinity = std::numeric_limits<float>::infinity();
  const auto numbers = halves();
  Floats x;
  Floats expected;
  const auto add = [&](double value, double rounded) {
    for (const float sign : {1.0F, -1.0F}) {
      x.push_back(sign * static_cast<float>(value));
      expected.push_back(sign * (rounded < 65536.0 ? static_cast<float>(rounded) : infinity));
    }
  };
  for (std::size_t i = 0; i + 1 < numbers.size(); ++i) {
    const auto middle = static_cast<float>((numbers[i] + numbers[i + 1]) / 2);
    add(numbers[i], numbers[i]);
    add(std::nextafter(middle, 0.0F), numbers[i]);
    add(middle, numbers[i + i % 2]);  // A tie: the even one.
    add(std::nextafter(middle, infinity), numbers[i + 1]);
  }
  add(std::numeric_limits<float>::denorm_min(), 0.0);
  add(std::numeric_limits<float>::max(), 65536.0);
  add(infinity, 65536.0);
  const auto count = static_cast<std::uint32_t>(x.size());
  const Floats one{1.0F};
  Floats y(count);
  auto& kernels = device_->kernels();
  kernels.linear_forward(*stream_, x.data(), one.data(), nullptr, nullptr, y.data(),
                         {count, 1, 1, WeightLayout::out_in, Precision::fp16});
  stream_->synchronize();
  EXPECT_EQ(y, expected);
  kernels.linear_forward(*stream_, one.data(), x.data(), nullptr, nullptr, y.data(),
                         {1, 1, count, WeightLayout::out_in, Precision::fp16});
  stream_->synchronize();
  EXPECT_EQ(y, expected);
  for (const auto bits : {0x7f800001U, 0x7fffffffU, 0xffc00000U}) {
    const auto nan = std::bit_cast<float>(bits);
    kernels.linear_forward(*stream_, &nan, one.data(), nullptr, nullptr, y.data(),
                           {1, 1, 1, WeightLayout::out_in, Precision::fp16});
    stream_->synchronize();
    EXPECT_TRUE(std::isnan(y[0])) << bits;
  }
}

TEST_P(VectorKernels, DifferentiateAProductForItsInput) {
  for (const auto& shape : linear_shapes()) {
    const auto dy = random(std::size_t{shape.rows} * shape.out);
    const auto w = random(std::size_t{shape.in} * shape.out);
    const auto residual = random(std::size_t{shape.rows} * shape.in);
    for (const bool has_residual : {false, true}) {
      expect_same(
          3e-6,
          [&](auto& kernels, Stream& stream, Floats& dx) {
            kernels.linear_backward_input(stream, dy.data(), w.data(),
                                          has_residual ? residual.data() : nullptr, dx.data(),
                                          shape);
          },
          Floats(residual.size(), 7.0F));
    }
  }
}

TEST_P(VectorKernels, DifferentiateAProductForItsWeight) {
  for (const auto& shape : linear_shapes()) {
    const auto x = random(std::size_t{shape.rows} * shape.in);
    const auto dy = random(std::size_t{shape.rows} * shape.out);
    for (const auto accumulate : accumulates) {
      for (const bool has_bias : {false, true}) {
        expect_same(
            3e-6,
            [&](auto& kernels, Stream& stream, Floats& dw, Floats& d_bias) {
              kernels.linear_backward_weight(stream, x.data(), dy.data(), dw.data(),
                                             has_bias ? d_bias.data() : nullptr, shape, accumulate);
            },
            random(std::size_t{shape.in} * shape.out), random(shape.out));
      }
    }
  }
}

/// All magnitudes from 1e-6 to far beyond where e^x ends.
Floats activations() {
  Floats values{0.0F, -0.0F, 200.0F, -200.0F};
  for (float magnitude = 1e-6F; magnitude < 100.0F; magnitude *= 1.01F) {
    values.push_back(magnitude);
    values.push_back(-magnitude);
  }
  return values;
}

/// An activation function of the kernels.
struct Activation {
  const char* name;
  void (Kernels::*forward)(Stream&, const float*, float*, std::size_t);
  void (Kernels::*backward)(Stream&, const float*, const float*, float*, std::size_t);
  double tolerance;  ///< Relative.
};
/// Where the exact one is next to nothing, e^(-x^2 / 2) has the roundings of x^2 / 2, up to 32.
constexpr Activation activation_functions[]{
    {"GELU", &Kernels::gelu_forward, &Kernels::gelu_backward, 2e-6},
    {"exact GELU", &Kernels::exact_gelu_forward, &Kernels::exact_gelu_backward, 4e-6}};

/// Each element by its own size; what is left of the oracle's double where tanh is -1 bounds it
/// below.
TEST_P(VectorKernels, ActivateWithFullRelativePrecision) {
  const auto x = activations();
  const Floats one(x.size(), 1.0F);
  for (const auto& [name, forward, backward, tolerance] : activation_functions) {
    Floats y(x.size());
    Floats dx(x.size());
    (device_->kernels().*forward)(*stream_, x.data(), y.data(), x.size());
    (device_->kernels().*backward)(*stream_, x.data(), one.data(), dx.data(), x.size());
    stream_->synchronize();
    Floats expected_y(x.size());
    Floats expected_dx(x.size());
    (oracle_.kernels().*forward)(*oracle_stream_, x.data(), expected_y.data(), x.size());
    (oracle_.kernels().*backward)(*oracle_stream_, x.data(), one.data(), expected_dx.data(),
                                  x.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
      EXPECT_NEAR(y[i], expected_y[i], tolerance * std::abs(expected_y[i]) + 1e-14)
          << name << " of " << x[i];
      // The derivative is a sum that crosses zero: relative to its terms, which are at most 1.
      EXPECT_NEAR(dx[i], expected_dx[i], 1e-6) << name << "' of " << x[i];
    }
  }
}

TEST_P(VectorKernels, ActivateArrays) {
  const auto x = activations();
  for (const auto& [name, forward, backward, tolerance] : activation_functions) {
    for (const std::size_t count : {std::size_t{1}, std::size_t{15}, std::size_t{33}, x.size()}) {
      expect_same(
          1e-6,
          [&, call = forward](auto& kernels, Stream& stream, Floats& y) {
            (kernels.*call)(stream, x.data(), y.data(), count);
          },
          Floats(x.size(), 3.0F));
      const auto dy = random(x.size());
      for (const bool in_place : {false, true}) {
        expect_same(
            1e-6,
            [&, call = backward](auto& kernels, Stream& stream, Floats& dx) {
              (kernels.*call)(stream, x.data(), in_place ? dx.data() : dy.data(), dx.data(), count);
            },
            dy);
      }
    }
  }
}

TEST_P(VectorKernels, TakeTheHyperbolicTangent) {
  const auto x = activations();
  expect_same(
      3e-7,
      [&](auto& kernels, Stream& stream, Floats& y) {
        kernels.tanh_forward(stream, x.data(), y.data(), x.size());
      },
      Floats(x.size()));
  const auto y = random(20'000);
  const auto dy = random(y.size());
  for (const bool in_place : {false, true}) {
    expect_same(
        1e-6,
        [&](auto& kernels, Stream& stream, Floats& dx) {
          kernels.tanh_backward(stream, y.data(), in_place ? dx.data() : dy.data(), dx.data(),
                                y.size());
        },
        dy);
  }
}

/// Threads share out the rows, or the columns, and leave no trace.
TEST_P(VectorKernels, CallWhatAProgramDefines) {
  constexpr std::size_t row_count = 37;
  const auto gain = random(50);
  const auto bias = random(50);
  for (const auto& [name, kernel] : custom_kernels()) {
    const std::size_t out = 50;
    const auto in = name == "gate" ? 2 * out : out;
    const CustomRows rows{.rows = row_count, .in = in, .out = out, .parameters = {gain, bias}};
    const auto x = random(row_count * in);
    const auto dy = random(row_count * out);
    expect_same(
        0.0,
        [&](auto& kernels, Stream& stream, Floats& y, Floats& dx) {
          kernels.custom_forward(stream, kernel, rows, x.data(), y.data());
          kernels.custom_backward_input(stream, kernel, rows, x.data(), dy.data(), dx.data());
        },
        Floats(row_count * out), Floats(x.size()));
    if (!kernel.backward_weight) continue;
    for (const auto accumulate : {Accumulate::overwrite, Accumulate::add}) {
      expect_same(
          0.0,
          [&](auto& kernels, Stream& stream, Floats& d_gain, Floats& d_bias) {
            kernels.custom_backward_weight(stream, kernel, rows, x.data(), dy.data(),
                                           {d_gain, d_bias}, accumulate);
          },
          random(out), random(out));
    }
  }
}

TEST_P(VectorKernels, TakeTheFirstRowOfEachSequence) {
  constexpr std::uint32_t batch = 3;
  for (const std::uint32_t sequence : {1U, 5U}) {
    for (const auto hidden : hidden_sizes) {
      const auto x = random(std::size_t{batch} * sequence * hidden);
      const auto dy = random(std::size_t{batch} * hidden);
      expect_same(
          0.0,
          [&](auto& kernels, Stream& stream, Floats& y) {
            kernels.first_rows(stream, x.data(), y.data(), batch, sequence, hidden);
          },
          Floats(dy.size()));
      expect_same(
          0.0,
          [&](auto& kernels, Stream& stream, Floats& dx) {
            kernels.first_rows_backward(stream, dy.data(), dx.data(), batch, sequence, hidden);
          },
          Floats(x.size(), 7.0F));
    }
  }
}

const Dropout dropouts[]{{},
                         {.rate = 0.25,
                          .seed = 0x123456789abcdefULL,
                          .step = 3,
                          .site = 17,
                          .first_sample = 5,
                          .first_row = 4,
                          .first_head = 2}};

/// Half of them causal.
std::vector<AttentionShape> attention_shapes() {
  std::vector<AttentionShape> shapes;
  for (const auto sequence : {1U, 2U, 5U, 64U, 100U}) {
    for (const auto head_size : {1U, 4U, 20U, 64U})
      shapes.push_back({2, sequence, 3, 3, head_size});
  }
  shapes.push_back({1, 300, 1, 1, 40});
  // Groups of heads with one key and value.
  shapes.push_back({2, 5, 6, 2, 4});
  shapes.push_back({1, 300, 4, 1, 20});
  for (std::size_t i = 0, count = shapes.size(); i < count; ++i) {
    shapes.push_back(shapes[i]);
    shapes.back().is_causal = false;
  }
  return shapes;
}

TEST_P(VectorKernels, AttendToThePastOrToAllUpToALength) {
  for (const auto& shape : attention_shapes()) {
    const auto lengths = random_lengths(shape);
    const auto* const of_sequences = shape.is_causal ? nullptr : lengths.data();
    const std::size_t rows = std::size_t{shape.batch} * shape.sequence;
    auto qkv = random(rows * shape.qkv_width());
    for (float& value : qkv) value *= 3.0F;
    const Floats y(rows * shape.width());
    const Floats log_sum_exp(rows * shape.heads);
    for (const auto& dropout : dropouts) {
      expect_same(
          3e-6,
          [&](auto& kernels, Stream& stream, Floats& to, Floats& saved) {
            kernels.attention_forward(stream, qkv.data(), of_sequences, to.data(), saved.data(),
                                      shape, dropout);
          },
          y, log_sum_exp);
    }
  }
}

TEST_P(VectorKernels, DifferentiateAttention) {
  for (const auto& shape : attention_shapes()) {
    const auto lengths = random_lengths(shape);
    const auto* const of_sequences = shape.is_causal ? nullptr : lengths.data();
    const std::size_t rows = std::size_t{shape.batch} * shape.sequence;
    const auto qkv = random(rows * shape.qkv_width());
    const auto dy = random(rows * shape.width());
    Floats y(rows * shape.width());
    Floats log_sum_exp(rows * shape.heads);
    InlineStream stream;
    for (const auto& dropout : dropouts) {
      ReferenceKernels{}.attention_forward(stream, qkv.data(), of_sequences, y.data(),
                                           log_sum_exp.data(), shape, dropout);
      expect_same(
          5e-6,
          [&](auto& kernels, Stream& on, Floats& d_qkv) {
            kernels.attention_backward(on, dy.data(), qkv.data(), of_sequences, y.data(),
                                       log_sum_exp.data(), d_qkv.data(), shape, dropout);
          },
          Floats(qkv.size(), 7.0F));
    }
  }
}

/// Which elements are kept is the oracle's word for word; what is kept is rounded once more.
TEST_P(VectorKernels, DropElementsAndAddTheRest) {
  constexpr std::uint32_t sequence = 7;
  for (const auto rows : row_counts) {
    for (const auto width : {1U, 15U, 16U, 33U, 63U, 64U, 65U, 384U}) {
      const auto x = random(std::size_t{rows} * width);
      const auto residual = random(x.size());
      for (const auto& dropout : dropouts) {
        for (const bool has_residual : {false, true}) {
          expect_same(
              2e-7,
              [&](auto& kernels, Stream& stream, Floats& y) {
                kernels.dropout(stream, x.data(), has_residual ? residual.data() : nullptr,
                                y.data(), rows, sequence, width, dropout);
              },
              Floats(x.size(), 7.0F));
        }
      }
    }
  }
}

/// With a key and a counter of zeros: that of sample, row and column 0 of step, site and seed 0.
TEST_P(VectorKernels, DropWhatTheGeneratorsKnownAnswersSay) {
  constexpr std::uint32_t words[]{0x9c6ca96aU, 0xe17eae66U, 0xfc10ecd4U, 0x5256a7d8U};
  const Floats x(64, 1.0F);
  for (std::size_t i = 0; i < 4; ++i) {
    for (const bool keeps : {false, true}) {
      // Kept at a threshold of the word itself, dropped at the next.
      const double rate = (static_cast<double>(words[i]) + (keeps ? 0.0 : 1.0)) * 0x1p-32;
      Floats y(64);
      device_->kernels().dropout(*stream_, x.data(), nullptr, y.data(), 1, 1, 64, {.rate = rate});
      stream_->synchronize();
      EXPECT_EQ(y[16 * i] > 0.0F, keeps) << "word " << i;
    }
  }
}

/// Rows and heads of a shard, and samples of another microbatch, are those of the whole.
TEST_P(VectorKernels, DropTheSameElementsHoweverTheyAreDivided) {
  constexpr std::uint32_t sequence = 6;
  constexpr std::uint32_t width = 40;
  const Dropout dropout{.rate = 0.3, .seed = 5, .step = 2, .site = 4, .first_sample = 10};
  const Floats x(std::size_t{4} * sequence * width, 1.0F);
  const auto dropped = [&](std::uint32_t rows, const Dropout& of) {
    Floats y(std::size_t{rows} * width);
    device_->kernels().dropout(*stream_, x.data(), nullptr, y.data(), rows, sequence, width, of);
    stream_->synchronize();
    return y;
  };
  const auto whole = dropped(4 * sequence, dropout);
  const auto expect_part = [&](std::uint32_t row, const Floats& part) {
    const auto from = whole.begin() + static_cast<std::ptrdiff_t>(row * width);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), from)) << "from row " << row;
  };
  for (const std::uint32_t row : {0U, 5U, 8U, 16U}) {
    auto of_shard = dropout;
    of_shard.first_row = row;
    expect_part(row, dropped(8, of_shard));
  }
  auto later = dropout;
  later.first_sample += 2;
  expect_part(2 * sequence, dropped(2 * sequence, later));
}

TEST_P(VectorKernels, TurnQueriesAndKeysWithTheirPosition) {
  for (const auto& shape : {AttentionShape{2, 5, 3, 3, 2}, AttentionShape{2, 7, 6, 2, 20},
                            AttentionShape{1, 9, 4, 1, 64}}) {
    const auto turns = rotary_turns(shape.sequence, shape.head_size, 100.0);
    const auto qkv = random(std::size_t{shape.batch} * shape.sequence * shape.qkv_width());
    for (const bool back : {false, true}) {
      expect_same(
          1e-6,
          [&](auto& kernels, Stream& stream, Floats& values) {
            kernels.rotate(stream, values.data(), turns.data(), back, shape);
          },
          qkv);
    }
    auto there_and_back = qkv;
    device_->kernels().rotate(*stream_, there_and_back.data(), turns.data(), false, shape);
    stream_->synchronize();
    EXPECT_NE(there_and_back, qkv);
    device_->kernels().rotate(*stream_, there_and_back.data(), turns.data(), true, shape);
    stream_->synchronize();
    for (std::size_t i = 0; i < qkv.size(); ++i) EXPECT_NEAR(there_and_back[i], qkv[i], 1e-6);
  }
}

TEST_P(VectorKernels, GateValues) {
  for (const auto rows : row_counts) {
    for (const auto width : hidden_sizes) {
      auto x = random(std::size_t{rows} * 2 * width);
      for (float& value : x) value *= 8.0F;
      x[0] = 200.0F;
      x.back() = -200.0F;
      const auto dy = random(std::size_t{rows} * width);
      expect_same(
          1e-6,
          [&](auto& kernels, Stream& stream, Floats& y) {
            kernels.swiglu_forward(stream, x.data(), y.data(), rows, width);
          },
          Floats(dy.size()));
      expect_same(
          1e-6,
          [&](auto& kernels, Stream& stream, Floats& dx) {
            kernels.swiglu_backward(stream, x.data(), dy.data(), dx.data(), rows, width);
          },
          Floats(x.size()));
    }
  }
}

TEST_P(VectorKernels, MeasureAndDifferentiateTheLoss) {
  for (const auto rows : row_counts) {
    for (const auto vocabulary : {2U, 50U, 256U}) {
      auto logits = random(std::size_t{rows} * vocabulary);
      for (float& value : logits) value *= 20.0F;
      auto targets = random_tokens(rows, vocabulary);
      targets[rows / 2] = -1;
      for (const float scale : {0.0F, 0.25F}) {
        expect_same(
            1e-6,
            [&](auto& kernels, Stream& stream, Floats& values, std::vector<double>& loss) {
              kernels.cross_entropy(stream, values.data(), targets.data(), loss.data(), scale, rows,
                                    vocabulary);
            },
            logits, std::vector<double>(1));
      }
    }
  }
}

/// The first of several that are equal, and a column also where there is no largest.
TEST_P(VectorKernels, FindTheLargestOfEachRow) {
  constexpr auto nan = std::numeric_limits<float>::quiet_NaN();
  const Floats x{1, 3, 3, 2, -5, -4, -4, -9, 7, 0, 0, 7, nan, nan, nan, nan, 0, 0, 0, 1};
  std::vector<std::int32_t> indices(5, -1);
  device_->kernels().arg_max(*stream_, x.data(), indices.data(), 5, 4);
  stream_->synchronize();
  EXPECT_EQ(indices, (std::vector<std::int32_t>{1, 1, 0, 0, 3}));
  for (const auto rows : row_counts) {
    for (const auto columns : {1U, 2U, 50U}) {
      const auto values = random(std::size_t{rows} * columns);
      std::vector<std::int32_t> expected(rows);
      std::vector<std::int32_t> found(rows);
      InlineStream stream;
      ReferenceKernels{}.arg_max(stream, values.data(), expected.data(), rows, columns);
      device_->kernels().arg_max(*stream_, values.data(), found.data(), rows, columns);
      stream_->synchronize();
      EXPECT_EQ(found, expected) << rows << " x " << columns;
    }
  }
}

TEST_P(VectorKernels, MeasureTheLossOverTheWordsOfAllShards) {
  constexpr std::uint32_t rows = 17;
  constexpr std::uint32_t vocabulary = 50;
  const std::vector<WordRange> shards{{0, 20}, {20, 1}, {21, 29}};
  auto targets = random_tokens(rows, vocabulary);
  targets[3] = -1;
  auto whole = random(std::size_t{rows} * vocabulary);
  for (float& value : whole) value *= 20.0F;
  const std::size_t stride = 64;
  Floats statistics(shards.size() * stride);
  std::vector<Floats> logits;
  for (std::size_t s = 0; s < shards.size(); ++s) {
    const auto& words = shards[s];
    auto& of_shard = logits.emplace_back();
    for (std::size_t r = 0; r < rows; ++r) {
      const auto from = whole.begin() + static_cast<std::ptrdiff_t>(r * vocabulary + words.begin);
      of_shard.insert(of_shard.end(), from, from + words.count);
    }
    expect_same(
        1e-6,
        [&](auto& kernels, Stream& stream, Floats& values) {
          kernels.word_statistics(stream, of_shard.data(), targets.data(), values.data(), rows,
                                  words);
          // Minus infinity has no distance to itself.
          stream.enqueue([&values] {
            for (float& value : values) value = std::max(value, -1e3F);
          });
        },
        Floats(std::size_t{3} * rows));
    InlineStream stream;
    ReferenceKernels{}.word_statistics(stream, of_shard.data(), targets.data(),
                                       &statistics[s * stride], rows, words);
  }
  for (const float scale : {0.0F, 0.25F}) {
    auto expected = whole;
    double expected_loss = 0.0;
    InlineStream stream;
    ReferenceKernels{}.cross_entropy(stream, expected.data(), targets.data(), &expected_loss, scale,
                                     rows, vocabulary);
    for (std::size_t s = 0; s < shards.size(); ++s) {
      const auto& words = shards[s];
      expect_same(
          1e-6,
          [&](auto& kernels, Stream& on, Floats& values, std::vector<double>& loss) {
            kernels.cross_entropy_of_shards(on, values.data(), targets.data(), statistics.data(),
                                            stride, 3, loss.data(), scale, rows, words);
          },
          logits[s], std::vector<double>(1));
      double loss = 0.0;
      auto values = logits[s];
      ReferenceKernels{}.cross_entropy_of_shards(stream, values.data(), targets.data(),
                                                 statistics.data(), stride, 3, &loss, scale, rows,
                                                 words);
      EXPECT_NEAR(loss, expected_loss, 1e-6 * expected_loss);
      for (std::size_t r = 0; r < rows; ++r) {
        for (std::size_t i = 0; i < words.count; ++i) {
          EXPECT_NEAR(values[r * words.count + i], expected[r * vocabulary + words.begin + i],
                      1e-6);
        }
      }
    }
  }
}

TEST(Dropout, IsDecidedByTheGeneratorWhoseAnswersAreKnown) {
  // Of Random123's kat_vectors: zeros, ones, and the digits of pi.
  using Words = std::array<std::uint32_t, 4>;
  constexpr auto ones = ~std::uint32_t{0};
  EXPECT_EQ(threefry({}, {}), (Words{0x9c6ca96aU, 0xe17eae66U, 0xfc10ecd4U, 0x5256a7d8U}));
  EXPECT_EQ(threefry({ones, ones, ones, ones}, {ones, ones, ones, ones}),
            (Words{0x2a881696U, 0x57012287U, 0xf6c7446eU, 0xa16a6732U}));
  EXPECT_EQ(threefry({0x243f6a88U, 0x85a308d3U, 0x13198a2eU, 0x03707344U},
                     {0xa4093822U, 0x299f31d0U, 0x082efa98U, 0xec4e6c89U}),
            (Words{0x59cd1dbbU, 0xb8879579U, 0x86b5d00cU, 0xac8b6d84U}));
}

/// Neighbours along every axis of the key are kept as if they knew nothing of each other.
TEST(Dropout, KeepsTheShareThatItSaysAndNeighboursIndependently) {
  constexpr std::size_t rows = 300;
  constexpr std::size_t columns = 1000;
  for (const double rate : {0.1, 0.5, 0.9}) {
    const Dropout dropout{.rate = rate, .seed = 3, .step = 7, .site = 9, .first_sample = 11};
    auto other_seed = dropout;
    auto other_half = dropout;
    auto other_step = dropout;
    auto other_site = dropout;
    ++other_seed.seed;
    other_half.seed += std::uint64_t{1} << 32U;
    ++other_step.step;
    ++other_site.site;
    double kept = 0.0;
    std::array<double, 8> together{};
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t c = 0; c < columns; ++c) {
        if (!is_kept(dropout, 0, 0, r, c)) continue;
        ++kept;
        const bool neighbours[]{is_kept(dropout, 1, 0, r, c),     is_kept(dropout, 0, 1, r, c),
                                is_kept(dropout, 0, 0, r + 1, c), is_kept(dropout, 0, 0, r, c + 1),
                                is_kept(other_seed, 0, 0, r, c),  is_kept(other_half, 0, 0, r, c),
                                is_kept(other_step, 0, 0, r, c),  is_kept(other_site, 0, 0, r, c)};
        for (std::size_t i = 0; i < together.size(); ++i) together[i] += neighbours[i] ? 1.0 : 0.0;
      }
    }
    // Five standard errors of a share of so many elements.
    const auto expect_share = [](double found, double of, double share) {
      EXPECT_NEAR(found / of, share, 5.0 * std::sqrt(share * (1.0 - share) / of));
    };
    expect_share(kept, rows * columns, 1.0 - rate);
    for (const auto both : together) expect_share(both, kept, 1.0 - rate);
  }
}

/// A training that diverges must show it.
TEST_P(VectorKernels, NeverTurnWhatIsNotANumberIntoANumber) {
  auto& kernels = device_->kernels();
  for (const std::size_t at : {0U, 7U, 30U}) {
    Floats x = random(31);
    x[at] = std::numeric_limits<float>::quiet_NaN();
    Floats y(31);
    kernels.gelu_forward(*stream_, x.data(), y.data(), 31);
    const std::vector<std::int32_t> target{1};
    double loss = 0.0;
    double squares = 0.0;
    kernels.sum_of_squares(*stream_, x.data(), &squares, 31);
    kernels.cross_entropy(*stream_, x.data(), target.data(), &loss, 0.0F, 1, 31);
    // One sequence of 31 tokens, one head of size 1: a key that spoils what sees it.
    Floats qkv = random(std::size_t{31} * 3);
    qkv[at * 3 + 1] = std::numeric_limits<float>::quiet_NaN();
    Floats attended(31);
    Floats log_sum_exp(31);
    kernels.attention_forward(*stream_, qkv.data(), nullptr, attended.data(), log_sum_exp.data(),
                              {1, 31, 1, 1, 1}, {});
    stream_->synchronize();
    EXPECT_TRUE(std::isnan(y[at]));
    EXPECT_TRUE(std::isnan(loss)) << "logit " << at;
    EXPECT_TRUE(std::isnan(squares));
    for (std::size_t t = 0; t < 31; ++t) {
      EXPECT_EQ(std::isnan(attended[t]), t >= at) << "key " << at << ", query " << t;
    }
  }
}

TEST_P(VectorKernels, CopyAddAndSquare) {
  for (const std::size_t count : {std::size_t{1}, std::size_t{31}, std::size_t{70001}}) {
    const auto a = random(count);
    const auto b = random(count);
    expect_same(
        0.0,
        [&](auto& kernels, Stream& stream, Floats& y) {
          kernels.copy(stream, a.data(), y.data(), count);
        },
        b);
    expect_same(
        0.0,
        [&](auto& kernels, Stream& stream, Floats& y, Floats& first, Floats& second) {
          kernels.add(stream, a.data(), b.data(), y.data(), count);
          kernels.add(stream, first.data(), b.data(), first.data(), count);
          kernels.add(stream, a.data(), second.data(), second.data(), count);
        },
        Floats(count), a, b);
    expect_same(
        1e-6,
        [&](auto& kernels, Stream& stream, std::vector<double>& sum) {
          kernels.sum_of_squares(stream, a.data(), sum.data(), count);
        },
        std::vector<double>(1));
  }
}

TEST_P(VectorKernels, StepAdafactor) {
  for (const auto& shape : {MatrixShape{1, 1}, MatrixShape{1, 37}, MatrixShape{37, 1},
                            MatrixShape{20, 33}, MatrixShape{300, 130}}) {
    const std::size_t count = std::size_t{shape.rows} * shape.columns;
    const auto g = random(count);
    const auto positive = [&](std::size_t size) {
      auto values = random(size);
      for (float& value : values) value = 0.1F + std::abs(value);
      return values;
    };
    expect_same(
        3e-6,
        [&](auto& kernels, Stream& stream, Floats& rows, Floats& columns) {
          kernels.adafactor_sums(stream, g.data(), rows.data(), columns.data(), shape, 0.5F);
        },
        Floats(shape.rows, 3.0F), Floats(shape.columns, 3.0F));
    auto of_rows = positive(shape.rows);
    auto of_columns = positive(shape.columns);
    const AdafactorMoments moments{.rows = of_rows.data(),
                                   .columns = of_columns.data(),
                                   .whole = of_rows.data(),
                                   .whole_count = shape.rows,
                                   .element_count = count};
    const AdafactorStep step{
        .learning_rate = 0.1F, .keep = 0.7F, .weight_decay = 0.3F, .gradient_scale = 0.5F};
    const auto values = random(shape.columns);
    expect_same(
        1e-6,
        [&](auto& kernels, Stream& stream, Floats& average) {
          kernels.blend(stream, average.data(), values.data(), step.keep, average.size());
        },
        random(shape.columns));
    const auto weights = random(count);
    expect_same(
        3e-6,
        [&](auto& kernels, Stream& stream, Floats& norms) {
          kernels.adafactor_norms(stream, weights.data(), g.data(), moments, norms.data(), shape,
                                  step);
        },
        Floats(2));
    for (const float of_u : {0.5F, 4.0F}) {
      for (const float of_w : {1e-8F, 2.0F}) {
        const auto size = static_cast<float>(count);
        const Floats norms{of_u * size, of_w * size};
        expect_same(
            3e-6,
            [&](auto& kernels, Stream& stream, Floats& w) {
              kernels.adafactor_update(stream, w.data(), g.data(), moments, norms.data(), shape,
                                       step);
            },
            weights);
      }
    }
  }
}

TEST_P(VectorKernels, StepTheOptimizers) {
  for (const std::size_t count : {std::size_t{1}, std::size_t{31}, std::size_t{40000}}) {
    const auto g = random(count);
    auto squares = random(count);
    for (float& value : squares) value = std::abs(value);
    for (const bool is_decoupled : {true, false}) {
      expect_same(
          2e-6,
          [&](auto& kernels, Stream& stream, Floats& w, Floats& m, Floats& v) {
            kernels.adam(stream, w.data(), g.data(), m.data(), v.data(), count,
                         {.learning_rate = 0.1F,
                          .weight_decay = 0.3F,
                          .bias1 = 0.271F,
                          .bias2 = 0.003F,
                          .gradient_scale = 0.5F,
                          .is_decoupled = is_decoupled});
          },
          random(count), random(count), squares);
    }
    expect_same(
        1e-6,
        [&](auto& kernels, Stream& stream, Floats& w, Floats& velocity) {
          kernels.sgd(stream, w.data(), g.data(), velocity.data(), count,
                      {.learning_rate = 0.1F,
                       .momentum = 0.9F,
                       .weight_decay = 0.3F,
                       .gradient_scale = 0.5F});
        },
        random(count), random(count));
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, VectorKernels,
                         testing::Combine(testing::ValuesIn(available_isas().begin(),
                                                            available_isas().end()),
                                          testing::Values(1U, 2U)),
                         [](const auto& instance) {
                           return std::string{std::get<0>(instance.param)->name} + "_"
                                  + std::to_string(std::get<1>(instance.param));
                         });

Floats thousandths(std::size_t count, std::uint64_t seed) {
  Random random{seed};
  Floats values(count);
  for (float& value : values) value = static_cast<float>(random.below(1000)) * 1e-3F;
  return values;
}

/// Stages of one model may be on one stream or on several.
TEST(ProductsOnTwoStreams, AgreeBitForBit) {
  constexpr std::uint32_t rows = 50;
  const auto device = make_cpu_device(*available_isas().back());
  const LinearShape shape{rows, 300, 200, WeightLayout::in_out};
  const auto x = thousandths(std::size_t{rows} * shape.in, 1);
  const auto w = thousandths(std::size_t{shape.in} * shape.out, 2);
  const auto dy = thousandths(std::size_t{rows} * shape.out, 3);
  struct Results {
    Floats y, dx, dw;
    bool operator==(const Results&) const = default;
  };
  const auto results_on = [&](Stream& stream) {
    Results results{Floats(dy.size()), Floats(x.size()), Floats(w.size())};
    auto& kernels = device->kernels();
    kernels.linear_forward(stream, x.data(), w.data(), dy.data(), dy.data(), results.y.data(),
                           shape);
    kernels.linear_backward_input(stream, dy.data(), w.data(), nullptr, results.dx.data(), shape);
    for (const auto accumulate : {Accumulate::overwrite, Accumulate::add}) {
      kernels.linear_backward_weight(stream, x.data(), dy.data(), results.dw.data(), nullptr, shape,
                                     accumulate);
    }
    stream.synchronize();
    return results;
  };
  for (const std::uint32_t threads : {1U, 2U}) {
    const auto one = device->make_stream("one", threads);
    const auto two = device->make_stream("two", threads);
    EXPECT_EQ(results_on(*one), results_on(*two)) << threads << " threads";
  }
}

/// Products excepted: oneDNN may share out a sum.
TEST(KernelsOnTwoStreams, AgreeBitForBitWhateverTheirThreads) {
  const auto device = make_cpu_device(*available_isas().back());
  const AttentionShape shape{
      .batch = 2, .sequence = 50, .heads = 3, .kv_heads = 3, .head_size = 20};
  constexpr std::size_t rows = 100;
  constexpr std::size_t hidden = 60;
  const auto qkv = thousandths(rows * 3 * hidden, 1);
  const auto dy = thousandths(rows * hidden, 2);
  struct Results {
    Floats y, log_sum_exp, d_qkv, d_gamma, d_beta;
    double squares;
    bool operator==(const Results&) const = default;
  };
  const auto results_on = [&](std::uint32_t threads) {
    const auto stream = device->make_stream("threads", threads);
    Results results{Floats(dy.size()), Floats(6 * 50), Floats(qkv.size()),
                    Floats(hidden),    Floats(hidden), 0.0};
    auto& kernels = device->kernels();
    kernels.attention_forward(*stream, qkv.data(), nullptr, results.y.data(),
                              results.log_sum_exp.data(), shape, {.rate = 0.1});
    kernels.attention_backward(*stream, dy.data(), qkv.data(), nullptr, results.y.data(),
                               results.log_sum_exp.data(), results.d_qkv.data(), shape,
                               {.rate = 0.1});
    kernels.layer_norm_backward_weight(*stream, dy.data(), qkv.data(), qkv.data(), dy.data(),
                                       results.d_gamma.data(), results.d_beta.data(), rows, hidden,
                                       Accumulate::overwrite);
    kernels.sum_of_squares(*stream, qkv.data(), &results.squares, qkv.size());
    stream->synchronize();
    return results;
  };
  EXPECT_EQ(results_on(1), results_on(2));
}

}  // namespace
}  // namespace troupe::stages
