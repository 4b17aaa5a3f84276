// What each kernel of the CPU device costs, one thread, at the shapes of a GPT of 384 x 6 heads,
// 256 tokens and 256 bytes of vocabulary. Names end in the rows of the microbatch.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include <benchmark/benchmark.h>

#include "troupe/stages/cpu_device.hpp"
#include "troupe/stages/kernels.hpp"

namespace troupe::stages {
namespace {

constexpr std::uint32_t hidden = 384;
constexpr std::uint32_t heads = 6;
constexpr std::uint32_t sequence = 256;
constexpr std::uint32_t vocabulary = 256;
constexpr std::size_t tensor_floats = std::size_t{2048} * 4 * hidden;

/// A device, a stream and tensors large enough for every kernel.
class Workbench {
public:
  Workbench() {
    for (auto& tensor : tensors_) {
      const auto memory = device_->allocate(tensor_floats * sizeof(float), MemorySpace::host);
      tensor = reinterpret_cast<float*>(memory.value().data);
      std::uint32_t state = 1;
      for (std::size_t i = 0; i < tensor_floats; ++i) {
        state = state * 1664525U + 1013904223U;
        tensor[i] = static_cast<float>(state >> 8U) / static_cast<float>(1U << 23U) - 1.0F;
      }
    }
    for (std::size_t i = 0; i < tokens_.size(); ++i) {
      tokens_[i] = static_cast<std::int32_t>(i * 2654435761U % vocabulary);
    }
  }

  [[nodiscard]] Kernels& kernels() { return device_->kernels(); }
  [[nodiscard]] Stream& stream() { return *stream_; }
  [[nodiscard]] float* tensor(std::size_t index) { return tensors_.at(index); }
  [[nodiscard]] const std::int32_t* tokens() const { return tokens_.data(); }

private:
  std::unique_ptr<Device> device_ = make_cpu_device();
  std::unique_ptr<Stream> stream_ = device_->make_stream("bench", 1);
  std::vector<float*> tensors_ = std::vector<float*>(6);
  std::vector<std::int32_t> tokens_ = std::vector<std::int32_t>(2048);
};

Workbench& bench() {
  static Workbench workbench;
  return workbench;
}

/// Times `call(bench, stream)`, and reports GFLOP/s and GB/s where they are known.
template <class Call>
void measure(benchmark::State& state, double flops, double bytes, const Call& call) {
  auto& work = bench();
  for (auto _ : state) {
    call(work.kernels(), work.stream());
    work.stream().synchronize();
  }
  using benchmark::Counter;
  if (flops > 0) {
    state.counters["GFLOP/s"] = Counter(flops * 1e-9, Counter::kIsIterationInvariantRate);
  }
  if (bytes > 0) {
    state.counters["GB/s"] = Counter(bytes * 1e-9, Counter::kIsIterationInvariantRate);
  }
}

LinearShape shape_of(const benchmark::State& state) {
  return {static_cast<std::uint32_t>(state.range(0)), static_cast<std::uint32_t>(state.range(1)),
          static_cast<std::uint32_t>(state.range(2)),
          state.range(3) == 0 ? WeightLayout::in_out : WeightLayout::out_in};
}

double flops_of(const LinearShape& shape) {
  return 2.0 * shape.rows * shape.in * shape.out;
}

void linear_forward(benchmark::State& state) {
  const auto shape = shape_of(state);
  auto& b = bench();
  measure(state, flops_of(shape), 0, [&](auto& kernels, Stream& stream) {
    kernels.linear_forward(stream, b.tensor(0), b.tensor(1), b.tensor(3), nullptr, b.tensor(2),
                           shape);
  });
}

void linear_forward_residual(benchmark::State& state) {
  const auto shape = shape_of(state);
  auto& b = bench();
  measure(state, flops_of(shape), 0, [&](auto& kernels, Stream& stream) {
    kernels.linear_forward(stream, b.tensor(0), b.tensor(1), b.tensor(3), b.tensor(4), b.tensor(2),
                           shape);
  });
}

void linear_backward_input(benchmark::State& state) {
  const auto shape = shape_of(state);
  auto& b = bench();
  measure(state, flops_of(shape), 0, [&](auto& kernels, Stream& stream) {
    kernels.linear_backward_input(stream, b.tensor(0), b.tensor(1), nullptr, b.tensor(2), shape);
  });
}

void linear_backward_weight(benchmark::State& state) {
  const auto shape = shape_of(state);
  auto& b = bench();
  measure(state, flops_of(shape), 0, [&](auto& kernels, Stream& stream) {
    kernels.linear_backward_weight(stream, b.tensor(0), b.tensor(2), b.tensor(1), b.tensor(3),
                                   shape, Accumulate::overwrite);
  });
}

void linear_backward_weight_add(benchmark::State& state) {
  const auto shape = shape_of(state);
  auto& b = bench();
  measure(state, flops_of(shape), 0, [&](auto& kernels, Stream& stream) {
    kernels.linear_backward_weight(stream, b.tensor(0), b.tensor(2), b.tensor(1), b.tensor(3),
                                   shape, Accumulate::add);
  });
}

void linear_shapes(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"rows", "in", "out", "layout"});
  for (const int rows : {2048, 1024}) {
    benchmark->Args({rows, hidden, 3 * hidden, 0});
    benchmark->Args({rows, hidden, hidden, 0});
    benchmark->Args({rows, hidden, 4 * hidden, 0});
    benchmark->Args({rows, 4 * hidden, hidden, 0});
    benchmark->Args({rows, hidden, vocabulary, 1});
  }
  benchmark->Unit(benchmark::kMillisecond)->UseRealTime();
}
BENCHMARK(linear_forward)->Apply(linear_shapes);
BENCHMARK(linear_forward_residual)->Apply(linear_shapes);
BENCHMARK(linear_backward_input)->Apply(linear_shapes);
BENCHMARK(linear_backward_weight)->Apply(linear_shapes);
BENCHMARK(linear_backward_weight_add)->Apply(linear_shapes);

AttentionShape attention_of(const benchmark::State& state) {
  return {static_cast<std::uint32_t>(state.range(0)) / sequence, sequence, heads, heads,
          hidden / heads};
}

/// Of the unmasked half alone.
double attention_flops(const AttentionShape& shape, double products) {
  return products * shape.batch * shape.heads * shape.sequence * (shape.sequence + 1.0)
         * shape.head_size;
}

void measure_attention_forward(benchmark::State& state, double rate) {
  auto& b = bench();
  const auto shape = attention_of(state);
  measure(state, attention_flops(shape, 2), 0, [&](auto& kernels, Stream& stream) {
    kernels.attention_forward(stream, b.tensor(0), nullptr, b.tensor(1), b.tensor(2), shape,
                              {.rate = rate});
  });
}

void measure_attention_backward(benchmark::State& state, double rate) {
  auto& b = bench();
  const auto shape = attention_of(state);
  measure(state, attention_flops(shape, 5), 0, [&](auto& kernels, Stream& stream) {
    kernels.attention_backward(stream, b.tensor(3), b.tensor(0), nullptr, b.tensor(1), b.tensor(2),
                               b.tensor(4), shape, {.rate = rate});
  });
}

void attention_forward(benchmark::State& state) {
  measure_attention_forward(state, 0.0);
}
void attention_forward_dropout(benchmark::State& state) {
  measure_attention_forward(state, 0.1);
}
void attention_backward(benchmark::State& state) {
  measure_attention_backward(state, 0.0);
}
void attention_backward_dropout(benchmark::State& state) {
  measure_attention_backward(state, 0.1);
}

double row_bytes(const benchmark::State& state, double floats_per_row) {
  return static_cast<double>(state.range(0)) * floats_per_row * sizeof(float);
}

std::uint32_t rows_of(const benchmark::State& state) {
  return static_cast<std::uint32_t>(state.range(0));
}

void dropout(benchmark::State& state) {
  auto& b = bench();
  measure(state, 0, row_bytes(state, 3.0 * hidden), [&](auto& kernels, Stream& stream) {
    kernels.dropout(stream, b.tensor(0), b.tensor(1), b.tensor(2), rows_of(state), sequence, hidden,
                    {.rate = 0.1});
  });
}

void layer_norm_forward(benchmark::State& state) {
  auto& b = bench();
  measure(state, 0, row_bytes(state, 2.0 * hidden), [&](auto& kernels, Stream& stream) {
    kernels.layer_norm_forward(stream, b.tensor(0), b.tensor(1), b.tensor(1), b.tensor(2),
                               b.tensor(3), b.tensor(4), rows_of(state), hidden, 1e-5F);
  });
}

void layer_norm_backward_input(benchmark::State& state) {
  auto& b = bench();
  measure(state, 0, row_bytes(state, 4.0 * hidden), [&](auto& kernels, Stream& stream) {
    kernels.layer_norm_backward_input(stream, b.tensor(0), b.tensor(1), b.tensor(5), b.tensor(3),
                                      b.tensor(4), b.tensor(2), b.tensor(2), rows_of(state),
                                      hidden);
  });
}

void layer_norm_backward_weight(benchmark::State& state) {
  auto& b = bench();
  measure(state, 0, row_bytes(state, 2.0 * hidden), [&](auto& kernels, Stream& stream) {
    kernels.layer_norm_backward_weight(stream, b.tensor(0), b.tensor(1), b.tensor(3), b.tensor(4),
                                       b.tensor(2), b.tensor(5), rows_of(state), hidden,
                                       Accumulate::overwrite);
  });
}

void gelu_forward(benchmark::State& state) {
  auto& b = bench();
  const std::size_t count = std::size_t{rows_of(state)} * 4 * hidden;
  measure(state, 0, row_bytes(state, 8.0 * hidden), [&](auto& kernels, Stream& stream) {
    kernels.gelu_forward(stream, b.tensor(0), b.tensor(2), count);
  });
}

void gelu_backward(benchmark::State& state) {
  auto& b = bench();
  const std::size_t count = std::size_t{rows_of(state)} * 4 * hidden;
  measure(state, 0, row_bytes(state, 12.0 * hidden), [&](auto& kernels, Stream& stream) {
    kernels.gelu_backward(stream, b.tensor(0), b.tensor(1), b.tensor(2), count);
  });
}

void cross_entropy(benchmark::State& state) {
  auto& b = bench();
  double loss = 0.0;
  measure(state, 0, row_bytes(state, 2.0 * vocabulary), [&](auto& kernels, Stream& stream) {
    kernels.cross_entropy(stream, b.tensor(2), b.tokens(), &loss, 1.0F, rows_of(state), vocabulary);
  });
}

void embedding_forward(benchmark::State& state) {
  auto& b = bench();
  measure(state, 0, row_bytes(state, 3.0 * hidden), [&](auto& kernels, Stream& stream) {
    kernels.embedding_forward(stream, b.tokens(), b.tensor(0), b.tensor(1), b.tensor(2),
                              rows_of(state), sequence, hidden, {0, vocabulary});
  });
}

void embedding_backward(benchmark::State& state) {
  auto& b = bench();
  measure(state, 0, row_bytes(state, 5.0 * hidden), [&](auto& kernels, Stream& stream) {
    kernels.embedding_backward(stream, b.tokens(), b.tensor(0), b.tensor(1), b.tensor(2),
                               rows_of(state), sequence, hidden, {0, vocabulary},
                               Accumulate::overwrite);
  });
}

void row_counts(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"rows"})->Arg(2048)->Arg(1024)->Unit(benchmark::kMillisecond)->UseRealTime();
}
BENCHMARK(attention_forward)->Apply(row_counts);
BENCHMARK(attention_forward_dropout)->Apply(row_counts);
BENCHMARK(attention_backward)->Apply(row_counts);
BENCHMARK(attention_backward_dropout)->Apply(row_counts);
BENCHMARK(dropout)->Apply(row_counts);
BENCHMARK(layer_norm_forward)->Apply(row_counts);
BENCHMARK(layer_norm_backward_input)->Apply(row_counts);
BENCHMARK(layer_norm_backward_weight)->Apply(row_counts);
BENCHMARK(gelu_forward)->Apply(row_counts);
BENCHMARK(gelu_backward)->Apply(row_counts);
BENCHMARK(cross_entropy)->Apply(row_counts);
BENCHMARK(embedding_forward)->Apply(row_counts);
BENCHMARK(embedding_backward)->Apply(row_counts);

/// The largest parameter of a layer.
constexpr std::size_t parameter_count = std::size_t{hidden} * 4 * hidden;

void adamw(benchmark::State& state) {
  auto& b = bench();
  // Squares of gradients are not negative.
  std::fill_n(b.tensor(3), parameter_count, 1.0F);
  const AdamStep step{.learning_rate = 1e-9F, .weight_decay = 0.1F};
  measure(state, 0, 7.0 * sizeof(float) * parameter_count, [&](auto& kernels, Stream& stream) {
    kernels.adam(stream, b.tensor(0), b.tensor(1), b.tensor(2), b.tensor(3), parameter_count, step);
  });
}
BENCHMARK(adamw)->Unit(benchmark::kMillisecond)->UseRealTime();

void sum_of_squares(benchmark::State& state) {
  auto& b = bench();
  double sum = 0.0;
  measure(state, 0, sizeof(float) * parameter_count, [&](auto& kernels, Stream& stream) {
    kernels.sum_of_squares(stream, b.tensor(0), &sum, parameter_count);
  });
}
BENCHMARK(sum_of_squares)->Unit(benchmark::kMillisecond)->UseRealTime();

/// What an empty kernel costs from enqueueing to the caller's return.
void empty_round_trip(benchmark::State& state) {
  measure(state, 0, 0, [](auto& /*kernels*/, Stream& stream) { stream.enqueue([] {}); });
}
BENCHMARK(empty_round_trip)->UseRealTime();

}  // namespace
}  // namespace troupe::stages

BENCHMARK_MAIN();
