// stages/src/cpu/cpu_kernels.hpp -- the kernels of the CPU device: what is cut into parts, and how.
#pragma once

#include "troupe/stages/kernels.hpp"

#include "cpu_stream.hpp"
#include "isa.hpp"

namespace troupe::stages {

/// Works on streams of the CPU device. Products with weights are oneDNN's, all other arithmetic is
/// the `Isa`'s.
class CpuKernels final : public Kernels {
public:
  explicit CpuKernels(const Isa& isa) : isa_{isa} {}

  void embedding_forward(Stream&, const std::int32_t* tokens, const float* token_weight,
                         const float* position_weight, float* y, std::uint32_t rows,
                         std::uint32_t sequence, std::uint32_t hidden,
                         const WordRange& words) override;
  void embedding_backward(Stream&, const std::int32_t* tokens, const float* dy,
                          float* d_token_weight, float* d_position_weight, std::uint32_t rows,
                          std::uint32_t sequence, std::uint32_t hidden, const WordRange& words,
                          Accumulate) override;
  void add_rows(Stream&, const std::int32_t* indices, const float* table, float* y,
                std::uint32_t rows, std::uint32_t hidden) override;

  void layer_norm_forward(Stream&, const float* x, const float* gamma, const float* beta, float* y,
                          float* mean, float* rstd, std::uint32_t rows, std::uint32_t hidden,
                          float epsilon) override;
  void layer_norm_backward_input(Stream&, const float* dy, const float* x, const float* gamma,
                                 const float* mean, const float* rstd, const float* residual,
                                 float* dx, std::uint32_t rows, std::uint32_t hidden) override;
  void layer_norm_backward_weight(Stream&, const float* dy, const float* x, const float* mean,
                                  const float* rstd, float* d_gamma, float* d_beta,
                                  std::uint32_t rows, std::uint32_t hidden, Accumulate) override;

  void rms_norm_forward(Stream&, const float* x, const float* gamma, float* y, float* rstd,
                        std::uint32_t rows, std::uint32_t hidden, float epsilon) override;
  void rms_norm_backward_input(Stream&, const float* dy, const float* x, const float* gamma,
                               const float* rstd, const float* residual, float* dx,
                               std::uint32_t rows, std::uint32_t hidden) override;
  void rms_norm_backward_weight(Stream&, const float* dy, const float* x, const float* rstd,
                                float* d_gamma, std::uint32_t rows, std::uint32_t hidden,
                                Accumulate) override;

  void linear_forward(Stream&, const float* x, const float* w, const float* bias,
                      const float* residual, float* y, const LinearShape&) override;
  void linear_backward_input(Stream&, const float* dy, const float* w, const float* residual,
                             float* dx, const LinearShape&) override;
  void linear_backward_weight(Stream&, const float* x, const float* dy, float* dw, float* d_bias,
                              const LinearShape&, Accumulate) override;

  void gelu_forward(Stream&, const float* x, float* y, std::size_t count) override;
  void gelu_backward(Stream&, const float* x, const float* dy, float* dx,
                     std::size_t count) override;

  void exact_gelu_forward(Stream&, const float* x, float* y, std::size_t count) override;
  void exact_gelu_backward(Stream&, const float* x, const float* dy, float* dx,
                           std::size_t count) override;
  void tanh_forward(Stream&, const float* x, float* y, std::size_t count) override;
  void tanh_backward(Stream&, const float* y, const float* dy, float* dx,
                     std::size_t count) override;

  void first_rows(Stream&, const float* x, float* y, std::uint32_t batch, std::uint32_t sequence,
                  std::uint32_t hidden) override;
  void first_rows_backward(Stream&, const float* dy, float* dx, std::uint32_t batch,
                           std::uint32_t sequence, std::uint32_t hidden) override;

  void swiglu_forward(Stream&, const float* x, float* y, std::uint32_t rows,
                      std::uint32_t width) override;
  void swiglu_backward(Stream&, const float* x, const float* dy, float* dx, std::uint32_t rows,
                       std::uint32_t width) override;

  void rotate(Stream&, float* qkv, const float* turns, bool back, const AttentionShape&) override;
  void dropout(Stream&, const float* x, const float* residual, float* y, std::uint32_t rows,
               std::uint32_t sequence, std::uint32_t width, const Dropout&) override;
  void attention_forward(Stream&, const float* qkv, const std::int32_t* lengths, float* y,
                         float* log_sum_exp, const AttentionShape&, const Dropout&) override;
  void attention_backward(Stream&, const float* dy, const float* qkv, const std::int32_t* lengths,
                          const float* y, const float* log_sum_exp, float* d_qkv,
                          const AttentionShape&, const Dropout&) override;

  void cross_entropy(Stream&, float* logits, const std::int32_t* targets, double* loss,
                     float gradient_scale, std::uint32_t rows, std::uint32_t vocabulary) override;

  void arg_max(Stream&, const float* x, std::int32_t* indices, std::uint32_t rows,
               std::uint32_t columns) override;

  void word_statistics(Stream&, const float* logits, const std::int32_t* targets, float* statistics,
                       std::uint32_t rows, const WordRange& words) override;
  void cross_entropy_of_shards(Stream&, float* logits, const std::int32_t* targets,
                               const float* statistics, std::size_t statistics_stride,
                               std::uint32_t shard_count, double* loss, float gradient_scale,
                               std::uint32_t rows, const WordRange& words) override;

  void custom_forward(Stream&, const CustomKernel&, const CustomRows& rows, const float* x,
                      float* y) override;
  void custom_backward_input(Stream&, const CustomKernel&, const CustomRows& rows, const float* x,
                             const float* dy, float* dx) override;
  void custom_backward_weight(Stream&, const CustomKernel&, const CustomRows& rows, const float* x,
                              const float* dy,
                              const std::array<std::span<float>, custom_parameters_max>& gradients,
                              Accumulate) override;

  void upload(Stream&, const void* host, void* device, std::size_t size_bytes) override;
  void download(Stream&, const void* device, void* host, std::size_t size_bytes) override;

  void copy(Stream&, const float* x, float* y, std::size_t count) override;
  void add(Stream&, const float* a, const float* b, float* y, std::size_t count) override;
  void sum_of_squares(Stream&, const float* x, double* sum, std::size_t count) override;
  void adam(Stream&, float* w, const float* g, float* m, float* v, std::size_t count,
            const AdamStep&) override;
  void adafactor_sums(Stream&, const float* g, float* row_sums, float* column_sums,
                      const MatrixShape&, float gradient_scale) override;
  void blend(Stream&, float* average, const float* value, float keep, std::size_t count) override;
  void adafactor_norms(Stream&, const float* w, const float* g, const AdafactorMoments&,
                       float* norms, const MatrixShape&, const AdafactorStep&) override;
  void adafactor_update(Stream&, float* w, const float* g, const AdafactorMoments&,
                        const float* norms, const MatrixShape&, const AdafactorStep&) override;
  void sgd(Stream&, float* w, const float* g, float* velocity, std::size_t count,
           const SgdStep&) override;

private:
  const Isa& isa_;
};

}  // namespace troupe::stages
