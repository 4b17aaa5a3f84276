// stages/src/kernel_calls.hpp -- the calls of a stage's graph, enqueued as kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "troupe/engine/stage_graph.hpp"
#include "troupe/stages/kernels.hpp"

#include "stage_memory.hpp"
#include "stream_group.hpp"

namespace troupe::stages {

/// Where the values of one pass lie, and what else it works on.
struct PassFrame {
  const Slot* slot = nullptr;
  // Of the microbatch; null where they are not needed.
  const std::int32_t* tokens = nullptr;
  const std::int32_t* segments = nullptr;
  const std::int32_t* lengths = nullptr;
  const std::int32_t* targets = nullptr;
  /// As for `Kernels::cross_entropy`: not 0 leaves the gradient of the logits.
  float gradient_scale = 0.0F;
  Accumulate accumulate{};  ///< Of weight gradients.
  bool drops = false;       ///< Whether dropout does anything.
  std::uint32_t step = 0;
  std::uint32_t first_sample = 0;  ///< Of the microbatch, its number in the step.
};

/// Enqueues kernel calls on one stream.
class KernelCalls {
public:
  /// What it refers to outlives the object.
  KernelCalls(Stream& stream, Kernels& kernels, const StageProps& props, const StageGraph& graph,
              const StageMemory& memory, StreamGroup& shards);

  void enqueue(const KernelCall& call, const PassFrame& frame);

  /// Where a value lies in a pass.
  [[nodiscard]] float* at(ValueIndex value, const PassFrame& frame) const;

private:
  void forward(const KernelCall& call, const PassFrame& frame);
  void cross_entropy(const KernelCall& call, const PassFrame& frame);
  /// y = x (+ residual).
  void copy_plus(const float* x, const float* residual, float* y, std::size_t count);
  void backward_input(const KernelCall& call, const PassFrame& frame);
  void backward_weight(const KernelCall& call, const PassFrame& frame);
  /// dx = dy + d_residual.
  void sum(const KernelCall& call, const PassFrame& frame);

  /// Null for `no_parameter`, as are gradients.
  [[nodiscard]] float* value(std::uint32_t parameter) const {
    return parameter == no_parameter ? nullptr : memory_.parameters[parameter].values.data();
  }
  [[nodiscard]] float* gradient(std::uint32_t parameter) const {
    return parameter == no_parameter ? nullptr : memory_.parameters[parameter].gradients.data();
  }
  /// Where the gradient of the operation's weight accumulates.
  [[nodiscard]] float* weight_gradient(const Operation& operation) const;
  [[nodiscard]] static WordRange words_of(const Operation& operation) {
    return {.begin = operation.word_begin, .count = operation.in};
  }
  [[nodiscard]] CustomRows rows_of(const Operation& operation) const;
  /// What the operation drops in a pass: by value, so that enqueued work keeps it.
  [[nodiscard]] Dropout dropout_of(const Operation& operation, const PassFrame& frame) const;
  /// Rows of the operation that belong to one sample, over all shards.
  [[nodiscard]] std::uint32_t rows_of_sample(const Operation& operation) const {
    return operation.rows * (operation.on_own_rows ? shard_.count : 1) / attention_.batch;
  }
  /// The bytes of a value, for a collective.
  [[nodiscard]] BufferView bytes_of(ValueIndex value, const PassFrame& frame) const;
  /// Floats from one shard's statistics to the next one's.
  [[nodiscard]] static std::size_t statistics_stride(const Operation& operation) {
    return padded(std::uint64_t{operation.rows} * word_statistics_count * sizeof(float))
           / sizeof(float);
  }
  /// Where this shard's rows of a value that has all begin, and their floats.
  [[nodiscard]] std::size_t own_begin(const Operation& operation) const {
    return shard_.index * own_count(operation);
  }
  [[nodiscard]] std::size_t own_count(const Operation& operation) const {
    return std::size_t{operation.rows} / shard_.count * operation.out;
  }
  [[nodiscard]] LinearShape shape_of(const Operation& operation) const {
    return {.rows = operation.rows,
            .in = operation.in,
            .out = operation.out,
            .layout = operation.layout,
            .precision = precision_};
  }

  Stream& stream_;
  Kernels& kernels_;
  const StageGraph& graph_;
  const StageMemory& memory_;
  StreamGroup& shards_;
  std::vector<const CustomKernel*> custom_kernels_;  ///< By number of the operation.
  Shard shard_;
  AttentionShape attention_;
  float epsilon_;
  Precision precision_;
  std::uint64_t seed_;
};

}  // namespace troupe::stages
