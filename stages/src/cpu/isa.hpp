// stages/src/cpu/isa.hpp -- the arithmetic of the CPU device but the products with weights,
// compiled once per instruction set.
//
// Every function works on a part of a tensor, on the calling thread, and allocates nothing. How a
// tensor is cut into parts never changes a bit of the result.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "troupe/stages/kernels.hpp"

namespace troupe::stages {

/// What a dropout keeps of one head of one sample; see `Dropout`.
struct Mask {
  std::uint32_t threshold = 0;  ///< 0: everything, as it is.
  float scale = 1.0F;
  std::array<std::uint32_t, 4> key{};
  std::uint32_t site = 0;
  std::uint32_t head = 0;
};

/// One head of one sequence: its first query, key and value, whose rows are `qkv_stride` apart.
/// Rows of y and dy are `y_stride` apart.
struct AttentionHead {
  const float* q = nullptr;
  const float* k = nullptr;
  const float* v = nullptr;
  std::size_t qkv_stride = 0;
  std::size_t y_stride = 0;
  std::size_t sequence = 0;
  std::size_t head_size = 0;
  std::size_t key_count = 0;  ///< The first, which queries see if attention is not causal.
  bool is_causal = true;
  Mask mask{};  ///< Of the probabilities, a row for each query.

  /// How many keys, the first, query `t` sees.
  [[nodiscard]] std::size_t seen_by(std::size_t t) const { return is_causal ? t + 1 : key_count; }
};

/// What its backward pass reads and, laid out like q, k and v, writes.
struct AttentionGradients {
  const float* dy = nullptr;
  const float* y = nullptr;
  const float* log_sum_exp = nullptr;  ///< [sequence]
  float* dq = nullptr;
  float* dk = nullptr;
  float* dv = nullptr;
  bool adds = false;  ///< To dk and dv, which have the gradients from other heads.
};

/// The functions of one instruction set. `begin` and `end` bound the part: rows, columns or
/// elements.
struct Isa {
  const char* name;
  bool multiplies_bf16;  ///< Else products of bf16 are those of floats with the same values.

  std::size_t (*attention_scratch_floats)(std::size_t sequence, std::size_t head_size);
  void (*attention_forward)(const AttentionHead&, float* y, float* log_sum_exp, float* scratch);
  void (*attention_backward)(const AttentionHead&, const AttentionGradients&, float* scratch);

  void (*layer_norm_forward)(const float* x, const float* gamma, const float* beta, float* y,
                             float* mean, float* rstd, std::size_t begin, std::size_t end,
                             std::size_t hidden, float epsilon);
  void (*layer_norm_backward_input)(const float* dy, const float* x, const float* gamma,
                                    const float* mean, const float* rstd, const float* residual,
                                    float* dx, std::size_t begin, std::size_t end,
                                    std::size_t hidden);
  /// A part is a range of columns.
  void (*layer_norm_backward_weight)(const float* dy, const float* x, const float* mean,
                                     const float* rstd, float* d_gamma, float* d_beta,
                                     std::size_t begin, std::size_t end, std::size_t rows,
                                     std::size_t hidden, bool add);
  /// A part is a range of columns.
  void (*column_sums)(const float* x, float* sums, std::size_t begin, std::size_t end,
                      std::size_t rows, std::size_t stride, bool add);

  void (*rms_norm_forward)(const float* x, const float* gamma, float* y, float* rstd,
                           std::size_t begin, std::size_t end, std::size_t hidden, float epsilon);
  void (*rms_norm_backward_input)(const float* dy, const float* x, const float* gamma,
                                  const float* rstd, const float* residual, float* dx,
                                  std::size_t begin, std::size_t end, std::size_t hidden);
  /// A part is a range of columns.
  void (*rms_norm_backward_weight)(const float* dy, const float* x, const float* rstd,
                                   float* d_gamma, std::size_t begin, std::size_t end,
                                   std::size_t rows, std::size_t hidden, bool add);

  /// One head of one position: `size` elements, turned by `cosines` and `sines` [size / 2].
  void (*rotate)(float* head, const float* cosines, const float* sines, float direction,
                 std::size_t size);
  void (*swiglu_forward)(const float* x, float* y, std::size_t begin, std::size_t end,
                         std::size_t width);
  void (*swiglu_backward)(const float* x, const float* dy, float* dx, std::size_t begin,
                          std::size_t end, std::size_t width);

  void (*gelu_forward)(const float* x, float* y, std::size_t count);
  void (*gelu_backward)(const float* x, const float* dy, float* dx, std::size_t count);
  void (*exact_gelu_forward)(const float* x, float* y, std::size_t count);
  void (*exact_gelu_backward)(const float* x, const float* dy, float* dx, std::size_t count);

  /// Writes the loss of each row to `losses`.
  void (*cross_entropy)(float* logits, const std::int32_t* targets, double* losses,
                        float gradient_scale, std::size_t begin, std::size_t end,
                        std::size_t vocabulary);

  /// Of rows `[begin, end)`; see `Kernels::word_statistics`.
  void (*word_statistics)(const float* logits, const std::int32_t* targets, float* statistics,
                          std::size_t begin, std::size_t end, const WordRange& words);
  /// Replaces the logits of a row by e^(logit - shift) * scale.
  void (*scaled_exponentials)(float* logits, float shift, float scale, std::size_t count);

  void (*to_bf16)(const float* x, std::uint16_t* y, std::size_t count);
  /// The same numbers, as floats.
  void (*round_to_bf16)(const float* x, float* y, std::size_t count);
  /// To numbers of half precision, as floats.
  void (*round_to_fp16)(const float* x, float* y, std::size_t count);

  /// Row `row` of a sample, of one head; `residual` may be null.
  void (*dropout)(const float* x, const float* residual, float* y, std::size_t count, const Mask&,
                  std::uint32_t row);

  void (*add)(const float* a, const float* b, float* y, std::size_t count);
  double (*sum_of_squares)(const float* x, std::size_t count);
  void (*adam)(float* w, const float* g, float* m, float* v, std::size_t count, const AdamStep&);
  // One row each.
  float (*adafactor_row_sum)(const float* g, std::size_t count, float gradient_scale);
  void (*adafactor_add_row)(const float* g, float* sums, std::size_t count, float gradient_scale);
  void (*adafactor_row_norms)(const float* w, const float* g, const float* columns, float share,
                              std::size_t count, float gradient_scale, double* norms);
  void (*adafactor_update_row)(float* w, const float* g, const float* columns, float share,
                               std::size_t count, float gradient_scale, float rate,
                               float keep_weight);
  void (*blend)(float* average, const float* value, float keep, std::size_t count);
  void (*sgd)(float* w, const float* g, float* velocity, std::size_t count, const SgdStep&);
};

extern const Isa baseline_isa;
#ifdef TROUPE_X86_64
extern const Isa avx2_isa;
extern const Isa avx512_isa;
#endif

/// Those that this processor runs, widest last.
[[nodiscard]] std::span<const Isa* const> available_isas();

/// `make_cpu_device` with the instruction set chosen by the caller, for tests.
[[nodiscard]] std::unique_ptr<Device> make_cpu_device(const Isa& isa);

}  // namespace troupe::stages
