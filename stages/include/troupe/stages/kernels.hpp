// troupe/stages/kernels.hpp -- the arithmetic of a transformer, enqueued on a stream.
//
// Every member enqueues and returns at once. Every reduction has one fixed order, so the same
// inputs give the same bits on the same device with the same threads per stream. Floats are 32 bits
// wide, tensors dense and row-major; `rows` is microbatch_size * sequence. Pointers are in the
// device's memory space, and tensors of one call do not overlap unless a comment allows it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "troupe/engine/precision.hpp"
#include "troupe/engine/stage_graph.hpp"
#include "troupe/stages/custom_kernel.hpp"
#include "troupe/stages/device.hpp"

namespace troupe::stages {

/// Whether a weight gradient replaces what is there or is added to it.
enum class Accumulate : bool { overwrite = false, add = true };

/// The words of the vocabulary that a table has rows of, or logits columns: all, or those of a
/// shard.
struct WordRange {
  std::uint32_t begin = 0;
  std::uint32_t count = 0;
};

/// Extent of a matrix product with a weight.
struct LinearShape {
  std::uint32_t rows = 0;
  std::uint32_t in = 0;
  std::uint32_t out = 0;
  WeightLayout layout = WeightLayout::in_out;
  Precision precision = Precision::fp32;
};

/// Extent of self-attention. `heads` is a multiple of `kv_heads`: each of these many keys
/// and values serves as many neighbouring queries (Ainslie et al. 2023).
struct AttentionShape {
  std::uint32_t batch = 0;
  std::uint32_t sequence = 0;
  std::uint32_t heads = 0;
  std::uint32_t kv_heads = 0;
  std::uint32_t head_size = 0;
  bool is_causal = true;  ///< A query sees its own and earlier keys; else all of its sequence.

  /// Of y, and of the queries.
  [[nodiscard]] std::size_t width() const { return std::size_t{heads} * head_size; }
  /// Of q, k and v, side by side.
  [[nodiscard]] std::size_t qkv_width() const {
    return (std::size_t{heads} + 2 * std::size_t{kv_heads}) * head_size;
  }
};

/// Which elements a dropout of one microbatch drops: the mask is never stored, but computed
/// wherever it is needed, from numbers that are the same however samples, heads and rows are
/// divided.
///
/// Element `c` of row `r` of head `h` of a sample is kept if word c / 16 mod 4 of
///   Threefry4x32-20(counter = {c / 64 * 16 + c mod 16, r, site, h},
///                   key = {seed mod 2^32, seed / 2^32, step, number of the sample in the step})
/// (Salmon et al. 2011) is not below rate * 2^32, rounded down. So a vector of up to 16
/// counters gives words of neighbouring columns. What has no heads has h = 0.
struct Dropout {
  double rate = 0.0;  ///< At least 0 and below 1.
  std::uint64_t seed = 0;
  std::uint32_t step = 0;
  std::uint32_t site = 0;          ///< Which dropout of the model; see `Operation::site`.
  std::uint32_t first_sample = 0;  ///< The number in the step of the microbatch's first.
  std::uint32_t first_row = 0;     ///< In the microbatch, of the rows of the call.
  std::uint32_t first_head = 0;    ///< In the layer, of the heads of the call.

  [[nodiscard]] std::uint32_t threshold() const {
    return static_cast<std::uint32_t>(rate * 0x1p32);
  }
  /// What is kept is multiplied by this, so that the mean stays.
  [[nodiscard]] float scale() const { return static_cast<float>(1.0 / (1.0 - rate)); }
};

/// Hyperparameters of one step of AdamW (Loshchilov and Hutter 2019, algorithm 2), as PyTorch
/// orders it: w *= 1 - lr * decay; m, v updated; w -= lr / bias1 * m / (sqrt(v / bias2) + epsilon).
struct AdamStep {
  float learning_rate = 0.0F;
  float beta1 = 0.9F;
  float beta2 = 0.999F;
  float epsilon = 1e-8F;
  float weight_decay = 0.0F;
  float bias1 = 1.0F;           ///< 1 - beta1^step
  float bias2 = 1.0F;           ///< 1 - beta2^step
  float gradient_scale = 1.0F;  ///< The gradient is multiplied by this first.
  bool is_decoupled = true;     ///< Else Adam (Kingma and Ba 2015): w * decay is added to g.
};

/// Hyperparameters of one SGD step with momentum (as PyTorch: v = momentum * v + g; w -= lr * v,
/// the weight decay added to g).
struct SgdStep {
  float learning_rate = 0.0F;
  float momentum = 0.0F;
  float weight_decay = 0.0F;
  float gradient_scale = 1.0F;
};

/// A matrix of parameters, or as one row a vector.
struct MatrixShape {
  std::uint32_t rows = 0;
  std::uint32_t columns = 0;
};

/// Hyperparameters of one step of Adafactor (Shazeer and Stern 2018, algorithms 4 and 5, without
/// momentum), the weight decay decoupled. With sums r over the rows and c over the columns of
/// g^2 + 1e-30, each a moving average: u = g / sqrt(r c / sum(r)), and
/// w -= learning_rate max(1e-3, rms(w)) u / max(1, rms(u)).
struct AdafactorStep {
  float learning_rate = 0.0F;
  float keep = 0.0F;  ///< Of the averages: 1 - step^-0.8.
  float weight_decay = 0.0F;
  float gradient_scale = 1.0F;
};

/// The averages of one matrix, and what all their shards know.
struct AdafactorMoments {
  float* rows = nullptr;            ///< [rows]
  float* columns = nullptr;         ///< [columns]
  const float* whole = nullptr;     ///< That of the two which is of the whole matrix,
  std::uint32_t whole_count = 0;    ///< and its size: it adds up to sum(r).
  std::uint64_t element_count = 0;  ///< Of the whole matrix.
};

class Kernels {
public:
  virtual ~Kernels() = default;
  Kernels(const Kernels&) = delete;
  Kernels& operator=(const Kernels&) = delete;

  // -- embedding ---------------------------------------------------------------------------------

  /// y[r] = the row of tokens[r] in token_weight, or zeros if it is not among `words`,
  /// + position_weight[r mod sequence]; `position_weight` may be null.
  virtual void embedding_forward(Stream&, const std::int32_t* tokens, const float* token_weight,
                                 const float* position_weight, float* y, std::uint32_t rows,
                                 std::uint32_t sequence, std::uint32_t hidden,
                                 const WordRange& words) = 0;
  /// Adds dy to the rows of both gradients, in the order of r. `overwrite` zeroes
  /// d_token_weight [words, hidden] and d_position_weight [sequence, hidden] first; the latter may
  /// be null.
  virtual void embedding_backward(Stream&, const std::int32_t* tokens, const float* dy,
                                  float* d_token_weight, float* d_position_weight,
                                  std::uint32_t rows, std::uint32_t sequence, std::uint32_t hidden,
                                  const WordRange& words, Accumulate) = 0;

  /// y[r] += table[indices[r]], table [any, hidden].
  virtual void add_rows(Stream&, const std::int32_t* indices, const float* table, float* y,
                        std::uint32_t rows, std::uint32_t hidden) = 0;

  // -- norms -------------------------------------------------------------------------------------

  /// y = (x - mean) * rstd * gamma + beta over each row, rstd = 1 / sqrt(variance + epsilon). Saves
  /// mean and rstd [rows].
  virtual void layer_norm_forward(Stream&, const float* x, const float* gamma, const float* beta,
                                  float* y, float* mean, float* rstd, std::uint32_t rows,
                                  std::uint32_t hidden, float epsilon) = 0;
  /// dx = residual + gradient of the norm. `residual` is the gradient that bypasses the norm, null
  /// for none; it may be `dx` itself.
  virtual void layer_norm_backward_input(Stream&, const float* dy, const float* x,
                                         const float* gamma, const float* mean, const float* rstd,
                                         const float* residual, float* dx, std::uint32_t rows,
                                         std::uint32_t hidden) = 0;
  virtual void layer_norm_backward_weight(Stream&, const float* dy, const float* x,
                                          const float* mean, const float* rstd, float* d_gamma,
                                          float* d_beta, std::uint32_t rows, std::uint32_t hidden,
                                          Accumulate) = 0;

  /// y = x * rstd * gamma over each row, rstd = 1 / sqrt(mean of squares + epsilon) (Zhang and
  /// Sennrich 2019). Saves rstd [rows].
  virtual void rms_norm_forward(Stream&, const float* x, const float* gamma, float* y, float* rstd,
                                std::uint32_t rows, std::uint32_t hidden, float epsilon) = 0;
  /// As for the layer norm.
  virtual void rms_norm_backward_input(Stream&, const float* dy, const float* x, const float* gamma,
                                       const float* rstd, const float* residual, float* dx,
                                       std::uint32_t rows, std::uint32_t hidden) = 0;
  virtual void rms_norm_backward_weight(Stream&, const float* dy, const float* x, const float* rstd,
                                        float* d_gamma, std::uint32_t rows, std::uint32_t hidden,
                                        Accumulate) = 0;

  // -- matrix products with weights --------------------------------------------------------------

  /// y = x w + bias (+ residual). `bias` and `residual` may be null; `residual` [rows, out] may not
  /// be `y`.
  virtual void linear_forward(Stream&, const float* x, const float* w, const float* bias,
                              const float* residual, float* y, const LinearShape&) = 0;
  /// dx = residual + dy w^T. `residual` [rows, in] is the gradient that bypasses the product, null
  /// for none; it may not be `dx`.
  virtual void linear_backward_input(Stream&, const float* dy, const float* w,
                                     const float* residual, float* dx, const LinearShape&) = 0;
  /// dw (+)= x^T dy in the layout of w, d_bias (+)= column sums of dy; `d_bias` may be null.
  virtual void linear_backward_weight(Stream&, const float* x, const float* dy, float* dw,
                                      float* d_bias, const LinearShape&, Accumulate) = 0;

  // -- activations and attention -----------------------------------------------------------------

  /// y = GELU(x), tanh approximation: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
  virtual void gelu_forward(Stream&, const float* x, float* y, std::size_t count) = 0;
  /// dx = dy * GELU'(x); `dx` may be `dy`.
  virtual void gelu_backward(Stream&, const float* x, const float* dy, float* dx,
                             std::size_t count) = 0;

  /// y = x times the probability that a standard normal number is below x (Hendrycks and Gimpel
  /// 2016).
  virtual void exact_gelu_forward(Stream&, const float* x, float* y, std::size_t count) = 0;
  /// As for the approximation.
  virtual void exact_gelu_backward(Stream&, const float* x, const float* dy, float* dx,
                                   std::size_t count) = 0;

  virtual void tanh_forward(Stream&, const float* x, float* y, std::size_t count) = 0;
  /// dx = dy * (1 - y^2); `dx` may be `dy`.
  virtual void tanh_backward(Stream&, const float* y, const float* dy, float* dx,
                             std::size_t count) = 0;

  /// y [batch, hidden] = the first row of each sequence of x [batch, sequence, hidden].
  virtual void first_rows(Stream&, const float* x, float* y, std::uint32_t batch,
                          std::uint32_t sequence, std::uint32_t hidden) = 0;
  /// dx = dy in these rows, 0 in the others.
  virtual void first_rows_backward(Stream&, const float* dy, float* dx, std::uint32_t batch,
                                   std::uint32_t sequence, std::uint32_t hidden) = 0;

  /// y = silu(gate) * value with silu(x) = x / (1 + e^-x) (Shazeer 2020), for x [rows, 2 width]:
  /// gates, then values. y [rows, width].
  virtual void swiglu_forward(Stream&, const float* x, float* y, std::uint32_t rows,
                              std::uint32_t width) = 0;
  /// dx [rows, 2 width] from dy [rows, width].
  virtual void swiglu_backward(Stream&, const float* x, const float* dy, float* dx,
                               std::uint32_t rows, std::uint32_t width) = 0;

  /// Turns queries and keys in qkv [rows, qkv_width] where they lie. In each head, elements i and
  /// i + head_size / 2 are a point in the plane, turned by position * base^(-2 i / head_size) (Su
  /// et al. 2021). `turns` [sequence, head_size] has the cosines of a position, then its sines, as
  /// `rotary_turns` makes them. `back` turns the other way: that is the gradient.
  virtual void rotate(Stream&, float* qkv, const float* turns, bool back,
                      const AttentionShape&) = 0;

  /// y = x with what is dropped set to 0 (+ residual), each [rows, width]; `residual` may be null.
  /// A sample has `sequence` rows. With dy for x and the gradient that bypasses it for the
  /// residual, this is also the gradient.
  virtual void dropout(Stream&, const float* x, const float* residual, float* y, std::uint32_t rows,
                       std::uint32_t sequence, std::uint32_t width, const Dropout&) = 0;

  /// Attention with scale 1 / sqrt(head_size). qkv [rows, qkv_width]: q, k, v side by side, each by
  /// heads. y [rows, width]. Saves log_sum_exp [batch, heads, sequence]. Where it is not causal,
  /// queries see the first `lengths[b]` keys of sequence b, at least one; causal attention has none
  /// (null). Dropout is that of the probabilities [heads, sequence, sequence] of each sample, after
  /// softmax.
  virtual void attention_forward(Stream&, const float* qkv, const std::int32_t* lengths, float* y,
                                 float* log_sum_exp, const AttentionShape&, const Dropout&) = 0;
  /// d_qkv [rows, qkv_width] from dy [rows, width] and what the forward pass saw and saved. What
  /// several queries add to the gradients of a key or value is added in the order of their heads.
  virtual void attention_backward(Stream&, const float* dy, const float* qkv,
                                  const std::int32_t* lengths, const float* y,
                                  const float* log_sum_exp, float* d_qkv, const AttentionShape&,
                                  const Dropout&) = 0;

  // -- loss --------------------------------------------------------------------------------------

  /// *loss = sum over rows of -log softmax(logits)[target], added in row order in double. When
  /// `gradient_scale` is not 0, replaces logits [rows, vocabulary] by
  /// (softmax(logits) - one_hot(target)) * gradient_scale. A row whose target is negative has no
  /// loss and a gradient of 0, here and below.
  virtual void cross_entropy(Stream&, float* logits, const std::int32_t* targets, double* loss,
                             float gradient_scale, std::uint32_t rows,
                             std::uint32_t vocabulary) = 0;

  /// indices[r] = where the largest element of row r of x [rows, columns] is, the first if several
  /// are; some column where an element is not a number.
  virtual void arg_max(Stream&, const float* x, std::int32_t* indices, std::uint32_t rows,
                       std::uint32_t columns) = 0;

  /// What other shards must know of these logits [rows, words]: statistics [rows, 3] are the
  /// largest logit m, the sum of e^(logit - m), and the target's logit, or minus infinity if it is
  /// not among `words`.
  virtual void word_statistics(Stream&, const float* logits, const std::int32_t* targets,
                               float* statistics, std::uint32_t rows, const WordRange& words) = 0;
  /// As `cross_entropy`, over the words of all shards: from the statistics of `shard_count` of
  /// them, `statistics_stride` floats apart, combined in their order. Every shard gets the same
  /// loss, and the gradient of its own logits.
  virtual void cross_entropy_of_shards(Stream&, float* logits, const std::int32_t* targets,
                                       const float* statistics, std::size_t statistics_stride,
                                       std::uint32_t shard_count, double* loss,
                                       float gradient_scale, std::uint32_t rows,
                                       const WordRange& words) = 0;

  // -- operations that a program defines ---------------------------------------------------------

  // The kernel outlives the work. `rows` has the parameters in the device's memory.

  /// x [rows, in] -> y [rows, out]
  virtual void custom_forward(Stream&, const CustomKernel&, const CustomRows& rows, const float* x,
                              float* y) = 0;
  virtual void custom_backward_input(Stream&, const CustomKernel&, const CustomRows& rows,
                                     const float* x, const float* dy, float* dx) = 0;
  /// @param gradients [out] of each parameter; empty where there is none.
  virtual void custom_backward_weight(
      Stream&, const CustomKernel&, const CustomRows& rows, const float* x, const float* dy,
      const std::array<std::span<float>, custom_parameters_max>& gradients, Accumulate) = 0;

  // -- between host and device -------------------------------------------------------------------

  /// Copies `size_bytes` from host memory. The host memory stays as it is until the work has run.
  /// An accelerator copies asynchronously from `MemorySpace::host_pinned`; from other host memory
  /// it may block the caller until the stream has come so far.
  virtual void upload(Stream&, const void* host, void* device, std::size_t size_bytes) = 0;
  /// Copies `size_bytes` to host memory, which belongs to the work until it has run; asynchronous
  /// as `upload` is.
  virtual void download(Stream&, const void* device, void* host, std::size_t size_bytes) = 0;

  // -- vectors -----------------------------------------------------------------------------------

  virtual void copy(Stream&, const float* x, float* y, std::size_t count) = 0;
  /// y = a + b; `y` may be `a` or `b`.
  virtual void add(Stream&, const float* a, const float* b, float* y, std::size_t count) = 0;
  /// *sum = sum of x_i^2, in double.
  virtual void sum_of_squares(Stream&, const float* x, double* sum, std::size_t count) = 0;
  virtual void adam(Stream&, float* w, const float* g, float* m, float* v, std::size_t count,
                    const AdamStep&) = 0;
  // Adafactor, in steps between which shards add up what they have: of the sums that over which the
  // matrix is divided, then the norms.

  /// Sums over rows and over columns of g^2 + 1e-30, g scaled first.
  virtual void adafactor_sums(Stream&, const float* g, float* row_sums, float* column_sums,
                              const MatrixShape&, float gradient_scale) = 0;
  /// average = keep * average + (1 - keep) * value.
  virtual void blend(Stream&, float* average, const float* value, float keep,
                     std::size_t count) = 0;
  /// norms[0] = sum of u^2, norms[1] = sum of w^2.
  virtual void adafactor_norms(Stream&, const float* w, const float* g, const AdafactorMoments&,
                               float* norms, const MatrixShape&, const AdafactorStep&) = 0;
  virtual void adafactor_update(Stream&, float* w, const float* g, const AdafactorMoments&,
                                const float* norms, const MatrixShape&, const AdafactorStep&) = 0;
  virtual void sgd(Stream&, float* w, const float* g, float* velocity, std::size_t count,
                   const SgdStep&) = 0;

protected:
  Kernels() = default;
};

/// [sequence, head_size]: what `Kernels::rotate` takes for `turns`.
[[nodiscard]] std::vector<float> rotary_turns(std::uint32_t sequence, std::uint32_t head_size,
                                              double base);

}  // namespace troupe::stages
