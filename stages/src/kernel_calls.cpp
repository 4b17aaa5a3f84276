#include "kernel_calls.hpp"

#include <array>

#include "troupe/engine/check.hpp"

namespace troupe::stages {

KernelCalls::KernelCalls(Stream& stream, Kernels& kernels, const StageProps& props,
                         const StageGraph& graph, const StageMemory& memory, StreamGroup& shards)
    : stream_{stream},
      kernels_{kernels},
      graph_{graph},
      memory_{memory},
      shards_{shards},
      shard_{props.shard()},
      attention_{.batch = props.microbatch_size,
                 .sequence = props.model.sequence,
                 .heads = props.model.heads / shard_.count,
                 .kv_heads = props.model.kv_head_count() / shard_.count,
                 .head_size = props.model.head_size(),
                 .is_causal = props.model.family != Family::bert},
      epsilon_{static_cast<float>(props.model.norm_epsilon)},
      precision_{props.train.precision},
      seed_{props.train.seed} {
  for (const auto& operation : graph.custom_operations) {
    custom_kernels_.push_back(&props.custom_kernels.find(operation.name)->second);
  }
}

float* KernelCalls::at(ValueIndex value, const PassFrame& frame) const {
  if (value == no_value) return nullptr;
  const auto& of = graph_.values[value];
  switch (of.place) {
    case ValuePlace::slot:
      return reinterpret_cast<float*>(frame.slot->memory.data + of.offset_bytes);
    case ValuePlace::workspace:
      return reinterpret_cast<float*>(memory_.workspace.data + of.offset_bytes);
    case ValuePlace::activation_in:
      return frame.slot->activation_in;
    case ValuePlace::activation_out:
      return frame.slot->activation_out;
    case ValuePlace::gradient_in:
      return frame.slot->gradient_in;
    case ValuePlace::gradient_out:
      return frame.slot->gradient_out;
  }
  return nullptr;
}

BufferView KernelCalls::bytes_of(ValueIndex value, const PassFrame& frame) const {
  return {reinterpret_cast<std::byte*>(at(value, frame)),
          static_cast<std::size_t>(graph_.values[value].size_bytes), memory_.workspace.space};
}

/// A tied embedding has a half of its gradient from either end; where both lie here, the head's is
/// kept apart, so that the two are added as they are between two stages.
float* KernelCalls::weight_gradient(const Operation& operation) const {
  const bool is_head = operation.kind == OperationKind::linear && !memory_.head_half.empty()
                       && operation.weight == 0;
  return is_head ? memory_.head_half.data() : gradient(operation.weight);
}

Dropout KernelCalls::dropout_of(const Operation& operation, const PassFrame& frame) const {
  const bool has_heads = operation.kind == OperationKind::attention;
  return {.rate = frame.drops ? operation.dropout : 0.0,
          .seed = seed_,
          .step = frame.step,
          .site = operation.site,
          .first_sample = frame.first_sample,
          .first_row = operation.on_own_rows ? shard_.index * operation.rows : 0,
          .first_head = has_heads ? shard_.index * attention_.heads : 0};
}

void KernelCalls::enqueue(const KernelCall& call, const PassFrame& frame) {
  switch (call.direction) {
    case Direction::forward:
      return forward(call, frame);
    case Direction::backward_input:
      return backward_input(call, frame);
    case Direction::backward_weight:
      return backward_weight(call, frame);
    case Direction::sum:
      return sum(call, frame);
  }
}

void KernelCalls::sum(const KernelCall& call, const PassFrame& frame) {
  kernels_.add(stream_, at(call.dy, frame), at(call.d_residual, frame), at(call.dx, frame),
               bytes_of(call.dx, frame).size_bytes / sizeof(float));
}

CustomRows KernelCalls::rows_of(const Operation& operation) const {
  CustomRows rows{.rows = operation.rows, .in = operation.in, .out = operation.out};
  const auto set = [&](std::size_t i, std::uint32_t parameter) {
    if (parameter != no_parameter) rows.parameters[i] = memory_.parameters[parameter].values;
  };
  set(0, operation.weight);
  set(1, operation.bias);
  return rows;
}

void KernelCalls::forward(const KernelCall& call, const PassFrame& frame) {
  const auto& of = graph_.operations[call.operation];
  auto* const x = at(call.x, frame);
  auto* const y = at(call.y, frame);
  auto* const saved = at(call.saved[0], frame);
  const auto* const bias = call.adds_bias ? value(of.bias) : nullptr;
  switch (of.kind) {
    case OperationKind::embedding:
      return kernels_.embedding_forward(stream_, frame.tokens, value(of.weight), bias, y, of.rows,
                                        attention_.sequence, of.out, words_of(of));
    case OperationKind::segments:
      return kernels_.add_rows(stream_, frame.segments, value(of.weight), y, of.rows, of.out);
    case OperationKind::layer_norm:
      return kernels_.layer_norm_forward(stream_, x, value(of.weight), value(of.bias), y,
                                         at(call.saved[1], frame), saved, of.rows, of.out,
                                         epsilon_);
    case OperationKind::rms_norm:
      return kernels_.rms_norm_forward(stream_, x, value(of.weight), y, saved, of.rows, of.out,
                                       epsilon_);
    case OperationKind::linear:
      return kernels_.linear_forward(stream_, x, value(of.weight), bias, at(call.residual, frame),
                                     y, shape_of(of));
    case OperationKind::rotate:
      return kernels_.rotate(stream_, y, memory_.turns.data(), false, attention_);
    case OperationKind::attention:
      return kernels_.attention_forward(stream_, x, frame.lengths, y, saved, attention_,
                                        dropout_of(of, frame));
    case OperationKind::gelu:
      return kernels_.gelu_forward(stream_, x, y, std::size_t{of.rows} * of.out);
    case OperationKind::exact_gelu:
      return kernels_.exact_gelu_forward(stream_, x, y, std::size_t{of.rows} * of.out);
    case OperationKind::first_tokens:
      return kernels_.first_rows(stream_, x, y, of.rows, attention_.sequence, of.out);
    case OperationKind::tanh:
      return kernels_.tanh_forward(stream_, x, y, std::size_t{of.rows} * of.out);
    case OperationKind::add:
      return kernels_.add(stream_, x, at(call.residual, frame), y, std::size_t{of.rows} * of.out);
    case OperationKind::custom:
      return kernels_.custom_forward(stream_, *custom_kernels_[of.custom], rows_of(of), x, y);
    case OperationKind::dropout:
      if (!frame.drops) {
        return copy_plus(x, at(call.residual, frame), y, std::size_t{of.rows} * of.out);
      }
      return kernels_.dropout(stream_, x, at(call.residual, frame), y, of.rows, rows_of_sample(of),
                              of.out, dropout_of(of, frame));
    case OperationKind::swiglu:
      return kernels_.swiglu_forward(stream_, x, y, of.rows, of.out);
    case OperationKind::cross_entropy:
      return cross_entropy(call, frame);
    case OperationKind::sum_shards:
      return shards_.perform(StreamGroup::Operation::all_reduce, bytes_of(call.y, frame));
    case OperationKind::gather_shards:
      return shards_.perform(StreamGroup::Operation::all_gather, bytes_of(call.y, frame));
    case OperationKind::word_statistics:
      return kernels_.word_statistics(stream_, x, frame.targets,
                                      y + shard_.index * statistics_stride(of), of.rows,
                                      words_of(of));
    case OperationKind::gather_rows:
      kernels_.copy(stream_, x, y + own_begin(of), own_count(of));
      return shards_.perform(StreamGroup::Operation::all_gather, bytes_of(call.y, frame));
    case OperationKind::sum_to_rows:
      shards_.perform(StreamGroup::Operation::reduce_scatter, bytes_of(call.x, frame));
      return copy_plus(x + own_begin(of), at(call.residual, frame), y, own_count(of));
    case OperationKind::share:
      break;
  }
  TROUPE_ASSERT(false);
}

void KernelCalls::copy_plus(const float* x, const float* residual, float* y, std::size_t count) {
  if (residual == nullptr) return kernels_.copy(stream_, x, y, count);
  kernels_.add(stream_, x, residual, y, count);
}

void KernelCalls::cross_entropy(const KernelCall& call, const PassFrame& frame) {
  const auto& of = graph_.operations[call.operation];
  auto* const logits = at(call.x, frame);
  auto* const loss = reinterpret_cast<double*>(at(call.saved[0], frame));
  if (call.saved[1] == no_value) {
    return kernels_.cross_entropy(stream_, logits, frame.targets, loss, frame.gradient_scale,
                                  of.rows, of.in);
  }
  kernels_.cross_entropy_of_shards(stream_, logits, frame.targets, at(call.saved[1], frame),
                                   statistics_stride(of), shard_.count, loss, frame.gradient_scale,
                                   of.rows, words_of(of));
}

void KernelCalls::backward_input(const KernelCall& call, const PassFrame& frame) {
  const auto& of = graph_.operations[call.operation];
  const auto* const x = at(call.x, frame);
  const auto* const saved = at(call.saved[0], frame);
  const auto* const dy = at(call.dy, frame);
  auto* const dx = at(call.dx, frame);
  const auto* const residual = at(call.d_residual, frame);
  switch (of.kind) {
    case OperationKind::layer_norm:
      return kernels_.layer_norm_backward_input(stream_, dy, x, value(of.weight),
                                                at(call.saved[1], frame), saved, residual, dx,
                                                of.rows, of.out);
    case OperationKind::rms_norm:
      return kernels_.rms_norm_backward_input(stream_, dy, x, value(of.weight), saved, residual, dx,
                                              of.rows, of.out);
    case OperationKind::linear:
      return kernels_.linear_backward_input(stream_, dy, value(of.weight), residual, dx,
                                            shape_of(of));
    case OperationKind::rotate:
      return kernels_.rotate(stream_, dx, memory_.turns.data(), true, attention_);
    case OperationKind::attention:
      return kernels_.attention_backward(stream_, dy, x, frame.lengths, at(call.y, frame), saved,
                                         dx, attention_, dropout_of(of, frame));
    case OperationKind::gelu:
      return kernels_.gelu_backward(stream_, x, dy, dx, std::size_t{of.rows} * of.out);
    case OperationKind::exact_gelu:
      return kernels_.exact_gelu_backward(stream_, x, dy, dx, std::size_t{of.rows} * of.out);
    case OperationKind::first_tokens:
      return kernels_.first_rows_backward(stream_, dy, dx, of.rows, attention_.sequence, of.out);
    case OperationKind::tanh:
      return kernels_.tanh_backward(stream_, at(call.y, frame), dy, dx,
                                    std::size_t{of.rows} * of.out);
    case OperationKind::custom:
      return kernels_.custom_backward_input(stream_, *custom_kernels_[of.custom], rows_of(of), x,
                                            dy, dx);
    case OperationKind::dropout:
      return kernels_.dropout(stream_, dy, residual, dx, of.rows, rows_of_sample(of), of.out,
                              dropout_of(of, frame));
    case OperationKind::swiglu:
      return kernels_.swiglu_backward(stream_, x, dy, dx, of.rows, of.out);
    case OperationKind::share:
      return shards_.perform(StreamGroup::Operation::all_reduce, bytes_of(call.dx, frame));
    case OperationKind::gather_rows:
      if (of.is_term) {
        shards_.perform(StreamGroup::Operation::reduce_scatter, bytes_of(call.dy, frame));
      }
      return copy_plus(dy + own_begin(of), residual, dx, own_count(of));
    case OperationKind::sum_to_rows:
      TROUPE_ASSERT(residual == nullptr);
      kernels_.copy(stream_, dy, dx + own_begin(of), own_count(of));
      return shards_.perform(StreamGroup::Operation::all_gather, bytes_of(call.dx, frame));
    default:
      break;
  }
  TROUPE_ASSERT(false);
}

void KernelCalls::backward_weight(const KernelCall& call, const PassFrame& frame) {
  const auto& of = graph_.operations[call.operation];
  const auto* const x = at(call.x, frame);
  const auto* const dy = at(call.dy, frame);
  const auto accumulate =
      memory_.is_kept_in_parts[of.weight] ? Accumulate::overwrite : frame.accumulate;
  switch (of.kind) {
    case OperationKind::embedding:
      return kernels_.embedding_backward(stream_, frame.tokens, dy, gradient(of.weight),
                                         gradient(of.bias), of.rows, attention_.sequence, of.out,
                                         words_of(of), accumulate);
    case OperationKind::segments:
      return kernels_.embedding_backward(stream_, frame.segments, dy, gradient(of.weight), nullptr,
                                         of.rows, attention_.sequence, of.out, words_of(of),
                                         accumulate);
    case OperationKind::layer_norm:
      return kernels_.layer_norm_backward_weight(stream_, dy, x, at(call.saved[1], frame),
                                                 at(call.saved[0], frame), gradient(of.weight),
                                                 gradient(of.bias), of.rows, of.out, accumulate);
    case OperationKind::rms_norm:
      return kernels_.rms_norm_backward_weight(stream_, dy, x, at(call.saved[0], frame),
                                               gradient(of.weight), of.rows, of.out, accumulate);
    case OperationKind::linear:
      return kernels_.linear_backward_weight(stream_, x, dy, weight_gradient(of), gradient(of.bias),
                                             shape_of(of), accumulate);
    case OperationKind::custom: {
      std::array<std::span<float>, custom_parameters_max> gradients{};
      gradients[0] = memory_.parameters[of.weight].gradients;
      if (of.bias != no_parameter) gradients[1] = memory_.parameters[of.bias].gradients;
      return kernels_.custom_backward_weight(stream_, *custom_kernels_[of.custom], rows_of(of), x,
                                             dy, gradients, accumulate);
    }
    default:
      break;
  }
  TROUPE_ASSERT(false);
}

}  // namespace troupe::stages
