#include "cpu_kernels.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "troupe/engine/check.hpp"

namespace troupe::stages {

namespace {

CpuStream& cpu(Stream& stream) {
  auto* cpu_stream = dynamic_cast<CpuStream*>(&stream);
  TROUPE_ASSERT(cpu_stream != nullptr);
  return *cpu_stream;
}

/// What one thread does of a kernel.
struct Part {
  std::size_t begin;
  std::size_t end;
  std::uint32_t thread;
};

/// Calls body(part) for one part of [0, count) per thread, each a multiple of `grain` but for the
/// last. Without a parallel region when there is one thread.
template <class Body>
void in_parts(std::uint32_t thread_count, std::size_t count, std::size_t grain, const Body& body) {
  if (thread_count == 1) return body(Part{0, count, 0});
  const std::size_t grains = (count + grain - 1) / grain;
  const auto bound = [=](std::size_t thread) {
    return std::min(count, grains * thread / thread_count * grain);
  };
#pragma omp parallel for schedule(static) num_threads(thread_count)
  for (std::uint32_t thread = 0; thread < thread_count; ++thread) {
    const Part part{bound(thread), bound(thread + 1), thread};
    if (part.begin < part.end) body(part);
  }
}

template <class Body>
void enqueue_in_parts(Stream& stream, std::size_t count, std::size_t grain, const Body& body) {
  stream.enqueue([body, count, grain, thread_count = cpu(stream).thread_count()] {
    in_parts(thread_count, count, grain, body);
  });
}

constexpr std::size_t line_floats = 16;      ///< Of a cache line: threads do not share one.
constexpr std::size_t grain_floats = 16384;  ///< Less is not worth a thread.

/// Runs a product whose operands are rounded first: to bf16 where that is multiplied, otherwise to
/// floats that have the values of bf16 or fp16.
void run_rounded(const Isa& isa, CpuStream& stream, Product product) {
  auto& products = stream.products();
  const bool is_bf16 = product.shape.precision == Precision::bf16;
  const bool is_native = is_bf16 && isa.multiplies_bf16 && OnednnProducts::has_bf16();
  const auto round = is_bf16 ? isa.round_to_bf16 : isa.round_to_fp16;
  if (!is_native) product.shape.precision = Precision::fp32;
  const auto& [m, n, k] = std::tie(product.shape.m, product.shape.n, product.shape.k);
  const auto a_count = std::size_t{m} * k;
  const auto b_count = std::size_t{k} * n;
  const auto floats_of = [&](std::size_t count) {
    const auto bytes = count * (is_native ? sizeof(std::uint16_t) : sizeof(float));
    return static_cast<std::size_t>(padded(bytes)) / sizeof(float);
  };
  const auto own_floats =
      static_cast<std::size_t>(padded(products.scratch_floats(product.shape) * sizeof(float)))
      / sizeof(float);
  float* const scratch = stream.scratch(0, own_floats + floats_of(a_count) + floats_of(b_count));
  const auto rounded = [&](const void* from, float* to, std::size_t count) -> const void* {
    const auto* const values = static_cast<const float*>(from);
    in_parts(stream.thread_count(), count, grain_floats, [&](const Part& part) {
      const auto size = part.end - part.begin;
      if (is_native) {
        isa.to_bf16(values + part.begin, reinterpret_cast<std::uint16_t*>(to) + part.begin, size);
      } else {
        round(values + part.begin, to + part.begin, size);
      }
    });
    return to;
  };
  product.a = rounded(product.a, scratch + own_floats, a_count);
  product.b = rounded(product.b, scratch + own_floats + floats_of(a_count), b_count);
  products.run(product, scratch);
}

void enqueue_product(Stream& to, const Isa& isa, const Product& product) {
  to.enqueue([product, &isa, &stream = cpu(to)] {
    if (product.shape.precision != Precision::fp32) return run_rounded(isa, stream, product);
    auto& products = stream.products();
    products.run(product, stream.scratch(0, products.scratch_floats(product.shape)));
  });
}

/// Of all heads of all sequences, head `index`: where its first elements are in qkv and in y.
struct HeadPlace {
  HeadPlace(const AttentionShape& shape, std::size_t index) {
    const auto row = index / shape.heads * shape.sequence;
    const auto head = index % shape.heads;
    const auto kv_head = head / (shape.heads / shape.kv_heads);
    const auto in_row = [&](std::size_t heads_before) {
      return row * shape.qkv_width() + heads_before * shape.head_size;
    };
    q = in_row(head);
    k = in_row(shape.heads + kv_head);
    v = in_row(shape.heads + shape.kv_heads + kv_head);
    y = row * shape.width() + head * shape.head_size;
  }

  std::size_t q;
  std::size_t k;
  std::size_t v;
  std::size_t y;
};

/// Of sample `sample` of the microbatch, and one of the call's heads.
Mask mask_of(const Dropout& dropout, std::size_t sample, std::size_t head = 0) {
  return {.threshold = dropout.threshold(),
          .scale = dropout.scale(),
          .key = {static_cast<std::uint32_t>(dropout.seed),
                  static_cast<std::uint32_t>(dropout.seed >> 32U), dropout.step,
                  dropout.first_sample + static_cast<std::uint32_t>(sample)},
          .site = dropout.site,
          .head = dropout.first_head + static_cast<std::uint32_t>(head)};
}

AttentionHead head_of(const float* qkv, const std::int32_t* lengths, const AttentionShape& shape,
                      const Dropout& dropout, std::size_t index, const HeadPlace& place) {
  const auto key_count = lengths == nullptr
                             ? std::size_t{shape.sequence}
                             : static_cast<std::size_t>(lengths[index / shape.heads]);
  return {.q = qkv + place.q,
          .k = qkv + place.k,
          .v = qkv + place.v,
          .qkv_stride = shape.qkv_width(),
          .y_stride = shape.width(),
          .sequence = shape.sequence,
          .head_size = shape.head_size,
          .key_count = key_count,
          .is_causal = shape.is_causal,
          .mask = mask_of(dropout, index / shape.heads, index % shape.heads)};
}

}  // namespace

void CpuKernels::embedding_forward(Stream& stream, const std::int32_t* tokens,
                                   const float* token_weight, const float* position_weight,
                                   float* y, std::uint32_t rows, std::uint32_t sequence,
                                   std::uint32_t hidden, const WordRange& words) {
  enqueue_in_parts(stream, rows, 1, [=, &isa = isa_](const Part& part) {
    for (std::size_t r = part.begin; r < part.end; ++r) {
      const auto word = static_cast<std::uint32_t>(tokens[r]) - words.begin;
      const float* token = word < words.count ? token_weight + std::size_t{word} * hidden : nullptr;
      const float* position =
          position_weight == nullptr ? nullptr : position_weight + r % sequence * hidden;
      float* to = y + r * hidden;
      if (token != nullptr && position != nullptr) {
        isa.add(token, position, to, hidden);
      } else if (token != nullptr || position != nullptr) {
        std::copy_n(token != nullptr ? token : position, hidden, to);
      } else {
        std::fill_n(to, hidden, 0.0F);
      }
    }
  });
}

void CpuKernels::embedding_backward(Stream& stream, const std::int32_t* tokens, const float* dy,
                                    float* d_token_weight, float* d_position_weight,
                                    std::uint32_t rows, std::uint32_t sequence,
                                    std::uint32_t hidden, const WordRange& words,
                                    Accumulate accumulate) {
  // Parts are columns, so that the additions to an element keep their order.
  enqueue_in_parts(stream, hidden, line_floats, [=, &isa = isa_](const Part& part) {
    TROUPE_ASSERT(sequence > 0);
    const std::size_t count = part.end - part.begin;
    const auto at = [&](auto* tensor, std::size_t row) {
      return tensor + row * hidden + part.begin;
    };
    if (accumulate == Accumulate::overwrite) {
      for (std::size_t v = 0; v < words.count; ++v) {
        std::fill_n(at(d_token_weight, v), count, 0.0F);
      }
      for (std::size_t t = 0; d_position_weight != nullptr && t < sequence; ++t) {
        std::fill_n(at(d_position_weight, t), count, 0.0F);
      }
    }
    for (std::size_t r = 0; r < rows; ++r) {
      const auto word = static_cast<std::uint32_t>(tokens[r]) - words.begin;
      if (word < words.count) {
        float* d_token = at(d_token_weight, word);
        isa.add(d_token, at(dy, r), d_token, count);
      }
      if (d_position_weight == nullptr) continue;
      float* d_position = at(d_position_weight, r % sequence);
      isa.add(d_position, at(dy, r), d_position, count);
    }
  });
}

void CpuKernels::add_rows(Stream& stream, const std::int32_t* indices, const float* table, float* y,
                          std::uint32_t rows, std::uint32_t hidden) {
  enqueue_in_parts(stream, rows, 1, [=, &isa = isa_](const Part& part) {
    for (std::size_t r = part.begin; r < part.end; ++r) {
      const auto* row = table + static_cast<std::size_t>(indices[r]) * hidden;
      isa.add(y + r * hidden, row, y + r * hidden, hidden);
    }
  });
}

void CpuKernels::layer_norm_forward(Stream& stream, const float* x, const float* gamma,
                                    const float* beta, float* y, float* mean, float* rstd,
                                    std::uint32_t rows, std::uint32_t hidden, float epsilon) {
  enqueue_in_parts(stream, rows, 1, [=, &isa = isa_](const Part& part) {
    isa.layer_norm_forward(x, gamma, beta, y, mean, rstd, part.begin, part.end, hidden, epsilon);
  });
}

void CpuKernels::layer_norm_backward_input(Stream& stream, const float* dy, const float* x,
                                           const float* gamma, const float* mean, const float* rstd,
                                           const float* residual, float* dx, std::uint32_t rows,
                                           std::uint32_t hidden) {
  enqueue_in_parts(stream, rows, 1, [=, &isa = isa_](const Part& part) {
    isa.layer_norm_backward_input(dy, x, gamma, mean, rstd, residual, dx, part.begin, part.end,
                                  hidden);
  });
}

void CpuKernels::layer_norm_backward_weight(Stream& stream, const float* dy, const float* x,
                                            const float* mean, const float* rstd, float* d_gamma,
                                            float* d_beta, std::uint32_t rows, std::uint32_t hidden,
                                            Accumulate accumulate) {
  enqueue_in_parts(stream, hidden, line_floats, [=, &isa = isa_](const Part& part) {
    isa.layer_norm_backward_weight(dy, x, mean, rstd, d_gamma, d_beta, part.begin, part.end, rows,
                                   hidden, accumulate == Accumulate::add);
  });
}

void CpuKernels::rms_norm_forward(Stream& stream, const float* x, const float* gamma, float* y,
                                  float* rstd, std::uint32_t rows, std::uint32_t hidden,
                                  float epsilon) {
  enqueue_in_parts(stream, rows, 1, [=, &isa = isa_](const Part& part) {
    isa.rms_norm_forward(x, gamma, y, rstd, part.begin, part.end, hidden, epsilon);
  });
}

void CpuKernels::rms_norm_backward_input(Stream& stream, const float* dy, const float* x,
                                         const float* gamma, const float* rstd,
                                         const float* residual, float* dx, std::uint32_t rows,
                                         std::uint32_t hidden) {
  enqueue_in_parts(stream, rows, 1, [=, &isa = isa_](const Part& part) {
    isa.rms_norm_backward_input(dy, x, gamma, rstd, residual, dx, part.begin, part.end, hidden);
  });
}

void CpuKernels::rms_norm_backward_weight(Stream& stream, const float* dy, const float* x,
                                          const float* rstd, float* d_gamma, std::uint32_t rows,
                                          std::uint32_t hidden, Accumulate accumulate) {
  enqueue_in_parts(stream, hidden, line_floats, [=, &isa = isa_](const Part& part) {
    isa.rms_norm_backward_weight(dy, x, rstd, d_gamma, part.begin, part.end, rows, hidden,
                                 accumulate == Accumulate::add);
  });
}

void CpuKernels::linear_forward(Stream& stream, const float* x, const float* w, const float* bias,
                                const float* residual, float* y, const LinearShape& shape) {
  using Addend = Product::Shape::Addend;
  enqueue_product(stream, isa_,
                  {.shape = {.m = shape.rows,
                             .n = shape.out,
                             .k = shape.in,
                             .transposed_b = shape.layout == WeightLayout::out_in,
                             .has_bias = bias != nullptr,
                             .precision = shape.precision,
                             .addend = residual != nullptr ? Addend::elsewhere : Addend::none},
                   .a = x,
                   .b = w,
                   .bias = bias,
                   .addend = residual,
                   .c = y});
}

void CpuKernels::linear_backward_input(Stream& stream, const float* dy, const float* w,
                                       const float* residual, float* dx, const LinearShape& shape) {
  using Addend = Product::Shape::Addend;
  enqueue_product(stream, isa_,
                  {.shape = {.m = shape.rows,
                             .n = shape.in,
                             .k = shape.out,
                             .transposed_b = shape.layout == WeightLayout::in_out,
                             .precision = shape.precision,
                             .addend = residual != nullptr ? Addend::elsewhere : Addend::none},
                   .a = dy,
                   .b = w,
                   .addend = residual,
                   .c = dx});
}

void CpuKernels::linear_backward_weight(Stream& stream, const float* x, const float* dy, float* dw,
                                        float* d_bias, const LinearShape& shape,
                                        Accumulate accumulate) {
  using Addend = Product::Shape::Addend;
  const bool add = accumulate == Accumulate::add;
  const bool is_in_out = shape.layout == WeightLayout::in_out;
  enqueue_product(stream, isa_,
                  {.shape = {.m = is_in_out ? shape.in : shape.out,
                             .n = is_in_out ? shape.out : shape.in,
                             .k = shape.rows,
                             .transposed_a = true,
                             .precision = shape.precision,
                             .addend = add ? Addend::in_c : Addend::none},
                   .a = is_in_out ? x : dy,
                   .b = is_in_out ? dy : x,
                   .c = dw});
  if (d_bias == nullptr) return;
  enqueue_in_parts(stream, shape.out, line_floats, [=, &isa = isa_](const Part& part) {
    isa.column_sums(dy, d_bias, part.begin, part.end, shape.rows, shape.out, add);
  });
}

void CpuKernels::gelu_forward(Stream& stream, const float* x, float* y, std::size_t count) {
  enqueue_in_parts(stream, count, grain_floats, [=, &isa = isa_](const Part& part) {
    isa.gelu_forward(x + part.begin, y + part.begin, part.end - part.begin);
  });
}

void CpuKernels::gelu_backward(Stream& stream, const float* x, const float* dy, float* dx,
                               std::size_t count) {
  enqueue_in_parts(stream, count, grain_floats, [=, &isa = isa_](const Part& part) {
    isa.gelu_backward(x + part.begin, dy + part.begin, dx + part.begin, part.end - part.begin);
  });
}

void CpuKernels::exact_gelu_forward(Stream& stream, const float* x, float* y, std::size_t count) {
  enqueue_in_parts(stream, count, grain_floats, [=, &isa = isa_](const Part& part) {
    isa.exact_gelu_forward(x + part.begin, y + part.begin, part.end - part.begin);
  });
}

void CpuKernels::exact_gelu_backward(Stream& stream, const float* x, const float* dy, float* dx,
                                     std::size_t count) {
  enqueue_in_parts(stream, count, grain_floats, [=, &isa = isa_](const Part& part) {
    isa.exact_gelu_backward(x + part.begin, dy + part.begin, dx + part.begin,
                            part.end - part.begin);
  });
}

// One row for each sequence: too little to be worth vectors.

void CpuKernels::tanh_forward(Stream& stream, const float* x, float* y, std::size_t count) {
  enqueue_in_parts(stream, count, grain_floats, [=](const Part& part) {
    for (std::size_t i = part.begin; i < part.end; ++i) y[i] = std::tanh(x[i]);
  });
}

void CpuKernels::tanh_backward(Stream& stream, const float* y, const float* dy, float* dx,
                               std::size_t count) {
  enqueue_in_parts(stream, count, grain_floats, [=](const Part& part) {
    for (std::size_t i = part.begin; i < part.end; ++i) dx[i] = dy[i] * (1.0F - y[i] * y[i]);
  });
}

void CpuKernels::first_rows(Stream& stream, const float* x, float* y, std::uint32_t batch,
                            std::uint32_t sequence, std::uint32_t hidden) {
  enqueue_in_parts(stream, batch, 1, [=](const Part& part) {
    for (std::size_t b = part.begin; b < part.end; ++b) {
      std::copy_n(x + b * sequence * hidden, hidden, y + b * hidden);
    }
  });
}

void CpuKernels::first_rows_backward(Stream& stream, const float* dy, float* dx,
                                     std::uint32_t batch, std::uint32_t sequence,
                                     std::uint32_t hidden) {
  enqueue_in_parts(stream, batch, 1, [=](const Part& part) {
    for (std::size_t b = part.begin; b < part.end; ++b) {
      float* to = dx + b * sequence * hidden;
      std::fill_n(std::copy_n(dy + b * hidden, hidden, to), std::size_t{sequence - 1} * hidden,
                  0.0F);
    }
  });
}

void CpuKernels::swiglu_forward(Stream& stream, const float* x, float* y, std::uint32_t rows,
                                std::uint32_t width) {
  enqueue_in_parts(stream, rows, 1, [=, &isa = isa_](const Part& part) {
    isa.swiglu_forward(x, y, part.begin, part.end, width);
  });
}

void CpuKernels::swiglu_backward(Stream& stream, const float* x, const float* dy, float* dx,
                                 std::uint32_t rows, std::uint32_t width) {
  enqueue_in_parts(stream, rows, 1, [=, &isa = isa_](const Part& part) {
    isa.swiglu_backward(x, dy, dx, part.begin, part.end, width);
  });
}

void CpuKernels::rotate(Stream& stream, float* qkv, const float* turns, bool back,
                        const AttentionShape& shape) {
  const std::size_t rows = std::size_t{shape.batch} * shape.sequence;
  const std::size_t turned = shape.heads + shape.kv_heads;
  enqueue_in_parts(stream, rows, 1, [=, &isa = isa_](const Part& part) {
    for (std::size_t r = part.begin; r < part.end; ++r) {
      const float* cosines = turns + r % shape.sequence * shape.head_size;
      for (std::size_t head = 0; head < turned; ++head) {
        isa.rotate(qkv + r * shape.qkv_width() + head * shape.head_size, cosines,
                   cosines + shape.head_size / 2, back ? -1.0F : 1.0F, shape.head_size);
      }
    }
  });
}

void CpuKernels::dropout(Stream& stream, const float* x, const float* residual, float* y,
                         std::uint32_t rows, std::uint32_t sequence, std::uint32_t width,
                         const Dropout& dropout) {
  enqueue_in_parts(stream, rows, 1, [=, &isa = isa_](const Part& part) {
    for (std::size_t r = part.begin; r < part.end; ++r) {
      const auto row = dropout.first_row + static_cast<std::uint32_t>(r);
      const std::size_t at = r * width;
      isa.dropout(x + at, residual == nullptr ? nullptr : residual + at, y + at, width,
                  mask_of(dropout, row / sequence), row % sequence);
    }
  });
}

void CpuKernels::attention_forward(Stream& to, const float* qkv, const std::int32_t* lengths,
                                   float* y, float* log_sum_exp, const AttentionShape& shape,
                                   const Dropout& dropout) {
  const std::size_t heads = std::size_t{shape.batch} * shape.heads;
  enqueue_in_parts(to, heads, 1, [=, &stream = cpu(to), &isa = isa_](const Part& part) {
    float* scratch =
        stream.scratch(part.thread, isa.attention_scratch_floats(shape.sequence, shape.head_size));
    for (std::size_t i = part.begin; i < part.end; ++i) {
      const HeadPlace place{shape, i};
      isa.attention_forward(head_of(qkv, lengths, shape, dropout, i, place), y + place.y,
                            log_sum_exp + i * shape.sequence, scratch);
    }
  });
}

void CpuKernels::attention_backward(Stream& to, const float* dy, const float* qkv,
                                    const std::int32_t* lengths, const float* y,
                                    const float* log_sum_exp, float* d_qkv,
                                    const AttentionShape& shape, const Dropout& dropout) {
  // Heads that share keys and values stay together and in order: they add to one gradient.
  const std::size_t group = shape.heads / shape.kv_heads;
  const std::size_t groups = std::size_t{shape.batch} * shape.kv_heads;
  enqueue_in_parts(to, groups, 1, [=, &stream = cpu(to), &isa = isa_](const Part& part) {
    float* scratch =
        stream.scratch(part.thread, isa.attention_scratch_floats(shape.sequence, shape.head_size));
    for (std::size_t i = part.begin * group; i < part.end * group; ++i) {
      const HeadPlace place{shape, i};
      isa.attention_backward(head_of(qkv, lengths, shape, dropout, i, place),
                             {.dy = dy + place.y,
                              .y = y + place.y,
                              .log_sum_exp = log_sum_exp + i * shape.sequence,
                              .dq = d_qkv + place.q,
                              .dk = d_qkv + place.k,
                              .dv = d_qkv + place.v,
                              .adds = i % group != 0},
                             scratch);
    }
  });
}

void CpuKernels::cross_entropy(Stream& to, float* logits, const std::int32_t* targets, double* loss,
                               float gradient_scale, std::uint32_t rows, std::uint32_t vocabulary) {
  to.enqueue([=, &stream = cpu(to), &isa = isa_] {
    // The first thread's scratch; the others need none.
    auto* losses = reinterpret_cast<double*>(stream.scratch(0, std::size_t{2} * rows));
    in_parts(stream.thread_count(), rows, 1, [=, &isa](const Part& part) {
      isa.cross_entropy(logits, targets, losses, gradient_scale, part.begin, part.end, vocabulary);
    });
    double sum = 0.0;
    for (std::size_t r = 0; r < rows; ++r) sum += losses[r];
    *loss = sum;
  });
}

void CpuKernels::arg_max(Stream& stream, const float* x, std::int32_t* indices, std::uint32_t rows,
                         std::uint32_t columns) {
  enqueue_in_parts(stream, rows, 1, [=](const Part& part) {
    for (std::size_t r = part.begin; r < part.end; ++r) {
      const auto* row = x + r * columns;
      indices[r] = static_cast<std::int32_t>(std::max_element(row, row + columns) - row);
    }
  });
}

void CpuKernels::word_statistics(Stream& stream, const float* logits, const std::int32_t* targets,
                                 float* statistics, std::uint32_t rows, const WordRange& words) {
  enqueue_in_parts(stream, rows, 1, [=, &isa = isa_](const Part& part) {
    isa.word_statistics(logits, targets, statistics, part.begin, part.end, words);
  });
}

void CpuKernels::cross_entropy_of_shards(Stream& to, float* logits, const std::int32_t* targets,
                                         const float* statistics, std::size_t statistics_stride,
                                         std::uint32_t shard_count, double* loss,
                                         float gradient_scale, std::uint32_t rows,
                                         const WordRange& words) {
  to.enqueue([=, &stream = cpu(to), &isa = isa_] {
    auto* losses = reinterpret_cast<double*>(stream.scratch(0, std::size_t{2} * rows));
    in_parts(stream.thread_count(), rows, 1, [=, &isa](const Part& part) {
      for (std::size_t r = part.begin; r < part.end; ++r) {
        float* row = logits + r * words.count;
        if (targets[r] < 0) {
          losses[r] = 0.0;
          if (gradient_scale != 0.0F) std::fill_n(row, words.count, 0.0F);
          continue;
        }
        const auto of_shard = [&](std::size_t shard) {
          return statistics + shard * statistics_stride + 3 * r;
        };
        float highest = of_shard(0)[0];
        float target_logit = of_shard(0)[2];
        for (std::size_t s = 1; s < shard_count; ++s) {
          highest = std::max(highest, of_shard(s)[0]);
          target_logit = std::max(target_logit, of_shard(s)[2]);
        }
        float sum = 0.0F;
        for (std::size_t s = 0; s < shard_count; ++s) {
          sum += of_shard(s)[1] * std::exp(of_shard(s)[0] - highest);
        }
        losses[r] = double{highest - target_logit} + std::log(double{sum});
        if (gradient_scale == 0.0F) continue;
        isa.scaled_exponentials(row, highest, gradient_scale / sum, words.count);
        const auto target = static_cast<std::uint32_t>(targets[r]) - words.begin;
        if (target < words.count) row[target] -= gradient_scale;
      }
    });
    double sum = 0.0;
    for (std::size_t r = 0; r < rows; ++r) sum += losses[r];
    *loss = sum;
  });
}

namespace {

/// What of `rows` a part of them is.
CustomRows part_of(CustomRows rows, const Part& part) {
  rows.rows = part.end - part.begin;
  return rows;
}

template <class Float>
std::span<Float> rows_of(Float* values, std::size_t width, const Part& part) {
  return {values + part.begin * width, (part.end - part.begin) * width};
}

}  // namespace

void CpuKernels::custom_forward(Stream& stream, const CustomKernel& kernel, const CustomRows& rows,
                                const float* x, float* y) {
  enqueue_in_parts(stream, rows.rows, 1, [&kernel, rows, x, y](const Part& part) {
    kernel.forward(part_of(rows, part), rows_of(x, rows.in, part), rows_of(y, rows.out, part));
  });
}

void CpuKernels::custom_backward_input(Stream& stream, const CustomKernel& kernel,
                                       const CustomRows& rows, const float* x, const float* dy,
                                       float* dx) {
  enqueue_in_parts(stream, rows.rows, 1, [&kernel, rows, x, dy, dx](const Part& part) {
    kernel.backward_input(part_of(rows, part), rows_of(x, rows.in, part),
                          rows_of(dy, rows.out, part), rows_of(dx, rows.in, part));
  });
}

void CpuKernels::custom_backward_weight(
    Stream& stream, const CustomKernel& kernel, const CustomRows& rows, const float* x,
    const float* dy, const std::array<std::span<float>, custom_parameters_max>& gradients,
    Accumulate accumulate) {
  enqueue_in_parts(stream, rows.out, line_floats, [=, &kernel](const Part& part) {
    for (const auto& gradient : gradients) {
      if (accumulate == Accumulate::add || gradient.empty()) continue;
      std::ranges::fill(gradient.subspan(part.begin, part.end - part.begin), 0.0F);
    }
    kernel.backward_weight(rows, {.begin = part.begin, .end = part.end}, {x, rows.rows * rows.in},
                           {dy, rows.rows * rows.out}, gradients);
  });
}

void CpuKernels::upload(Stream& stream, const void* host, void* device, std::size_t size_bytes) {
  stream.enqueue([=] { std::memcpy(device, host, size_bytes); });
}

void CpuKernels::download(Stream& stream, const void* device, void* host, std::size_t size_bytes) {
  stream.enqueue([=] { std::memcpy(host, device, size_bytes); });
}

void CpuKernels::copy(Stream& stream, const float* x, float* y, std::size_t count) {
  enqueue_in_parts(stream, count, grain_floats, [=](const Part& part) {
    std::copy(x + part.begin, x + part.end, y + part.begin);
  });
}

void CpuKernels::add(Stream& stream, const float* a, const float* b, float* y, std::size_t count) {
  enqueue_in_parts(stream, count, grain_floats, [=, &isa = isa_](const Part& part) {
    isa.add(a + part.begin, b + part.begin, y + part.begin, part.end - part.begin);
  });
}

void CpuKernels::sum_of_squares(Stream& to, const float* x, double* sum, std::size_t count) {
  to.enqueue([=, &stream = cpu(to), &isa = isa_] {
    // One sum per grain, so that the order of the additions does not depend on the threads.
    const std::size_t grains = (count + grain_floats - 1) / grain_floats;
    auto* sums = reinterpret_cast<double*>(stream.scratch(0, 2 * grains));
    in_parts(stream.thread_count(), grains, 1, [=, &isa](const Part& part) {
      for (std::size_t i = part.begin; i < part.end; ++i) {
        const std::size_t begin = i * grain_floats;
        sums[i] = isa.sum_of_squares(x + begin, std::min(grain_floats, count - begin));
      }
    });
    double total = 0.0;
    for (std::size_t i = 0; i < grains; ++i) total += sums[i];
    *sum = total;
  });
}

void CpuKernels::adam(Stream& stream, float* w, const float* g, float* m, float* v,
                      std::size_t count, const AdamStep& step) {
  enqueue_in_parts(stream, count, grain_floats, [=, &isa = isa_](const Part& part) {
    const std::size_t at = part.begin;
    isa.adam(w + at, g + at, m + at, v + at, part.end - at, step);
  });
}

void CpuKernels::adafactor_sums(Stream& stream, const float* g, float* row_sums, float* column_sums,
                                const MatrixShape& shape, float gradient_scale) {
  const std::size_t columns = shape.columns;
  enqueue_in_parts(stream, shape.rows, line_floats, [=, &isa = isa_](const Part& part) {
    for (std::size_t r = part.begin; r < part.end; ++r) {
      row_sums[r] = isa.adafactor_row_sum(g + r * columns, columns, gradient_scale);
    }
  });
  // Parts are columns, so that the additions to a sum keep their order.
  enqueue_in_parts(stream, columns, line_floats, [=, &isa = isa_](const Part& part) {
    const std::size_t count = part.end - part.begin;
    std::fill_n(column_sums + part.begin, count, 0.0F);
    for (std::size_t r = 0; r < shape.rows; ++r) {
      isa.adafactor_add_row(g + r * columns + part.begin, column_sums + part.begin, count,
                            gradient_scale);
    }
  });
}

void CpuKernels::blend(Stream& stream, float* average, const float* value, float keep,
                       std::size_t count) {
  enqueue_in_parts(stream, count, grain_floats, [=, &isa = isa_](const Part& part) {
    isa.blend(average + part.begin, value + part.begin, keep, part.end - part.begin);
  });
}

namespace {

/// 1 / sum(r).
float inverse_total(const AdafactorMoments& moments) {
  double total = 0.0;
  for (std::size_t i = 0; i < moments.whole_count; ++i) total += double{moments.whole[i]};
  return static_cast<float>(1.0 / total);
}

}  // namespace

void CpuKernels::adafactor_norms(Stream& to, const float* w, const float* g,
                                 const AdafactorMoments& moments, float* norms,
                                 const MatrixShape& shape, const AdafactorStep& step) {
  to.enqueue([=, &stream = cpu(to), &isa = isa_] {
    const float inverse = inverse_total(moments);
    // Two sums for each row, so that the order of the additions does not depend on the threads.
    auto* of_rows = reinterpret_cast<double*>(stream.scratch(0, std::size_t{4} * shape.rows));
    in_parts(stream.thread_count(), shape.rows, 1, [=, &isa](const Part& part) {
      for (std::size_t r = part.begin; r < part.end; ++r) {
        const std::size_t at = r * shape.columns;
        isa.adafactor_row_norms(w + at, g + at, moments.columns, moments.rows[r] * inverse,
                                shape.columns, step.gradient_scale, of_rows + 2 * r);
      }
    });
    double of_u = 0.0;
    double of_w = 0.0;
    for (std::size_t r = 0; r < shape.rows; ++r) {
      of_u += of_rows[2 * r];
      of_w += of_rows[2 * r + 1];
    }
    norms[0] = static_cast<float>(of_u);
    norms[1] = static_cast<float>(of_w);
  });
}

void CpuKernels::adafactor_update(Stream& to, float* w, const float* g,
                                  const AdafactorMoments& moments, const float* norms,
                                  const MatrixShape& shape, const AdafactorStep& step) {
  to.enqueue([=, &stream = cpu(to), &isa = isa_] {
    const float inverse = inverse_total(moments);
    const auto root_of_mean = [&](float sum) {
      return std::sqrt(sum / static_cast<float>(moments.element_count));
    };
    const float rate = step.learning_rate * std::max(1e-3F, root_of_mean(norms[1]))
                       / std::max(1.0F, root_of_mean(norms[0]));
    const float keep_weight = 1.0F - step.learning_rate * step.weight_decay;
    in_parts(stream.thread_count(), shape.rows, 1, [=, &isa](const Part& part) {
      for (std::size_t r = part.begin; r < part.end; ++r) {
        const std::size_t at = r * shape.columns;
        isa.adafactor_update_row(w + at, g + at, moments.columns, moments.rows[r] * inverse,
                                 shape.columns, step.gradient_scale, rate, keep_weight);
      }
    });
  });
}

void CpuKernels::sgd(Stream& stream, float* w, const float* g, float* velocity, std::size_t count,
                     const SgdStep& step) {
  enqueue_in_parts(stream, count, grain_floats, [=, &isa = isa_](const Part& part) {
    const std::size_t at = part.begin;
    isa.sgd(w + at, g + at, velocity + at, part.end - at, step);
  });
}

}  // namespace troupe::stages
