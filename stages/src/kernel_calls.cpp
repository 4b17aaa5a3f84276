#include "kernel_calls.hpp"

#include "troupe/engine/check.hpp"

namespace troupe::stages {

KernelCalls::KernelCalls(Stream& stream, Kernels& kernels, const StageProps& props,
                         const StageGraph& graph, const StageMemory& memory)
    : stream_{stream},
      kernels_{kernels},
      graph_{graph},
      memory_{memory},
      attention_{.batch = props.microbatch_size,
                 .sequence = props.model.sequence,
                 .heads = props.model.heads,
                 .head_size = props.model.hidden / props.model.heads},
      rows_{props.microbatch_size * props.model.sequence} {}

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

/// A tied embedding has a half of its gradient from either end; where both lie here, the head's is
/// kept apart, so that the two are added as they are between two stages.
float* KernelCalls::gradient(const Operation& operation, std::uint32_t index) const {
  const bool is_head = operation.kind == OperationKind::linear && !memory_.head_half.empty()
                       && operation.parameter == 0;
  return is_head ? memory_.head_half.data()
                 : memory_.parameters[operation.parameter + index].gradients.data();
}

void KernelCalls::enqueue(const KernelCall& call, const PassFrame& frame) {
  switch (call.direction) {
    case Direction::forward:
      return forward(call, frame);
    case Direction::backward_input:
      return backward_input(call, frame);
    case Direction::backward_weight:
      return backward_weight(call, frame);
  }
}

void KernelCalls::forward(const KernelCall& call, const PassFrame& frame) {
  const auto& of = graph_.operations[call.operation];
  auto* const x = at(call.x, frame);
  auto* const y = at(call.y, frame);
  auto* const saved = at(call.saved[0], frame);
  const std::size_t count = std::size_t{rows_} * of.out;
  switch (of.kind) {
    case OperationKind::embedding:
      return kernels_.embedding_forward(stream_, frame.tokens, value(of.parameter),
                                        value(of.parameter + 1), y, rows_, attention_.sequence,
                                        of.out);
    case OperationKind::layer_norm:
      return kernels_.layer_norm_forward(stream_, x, value(of.parameter), value(of.parameter + 1),
                                         y, saved, at(call.saved[1], frame), rows_, of.out);
    case OperationKind::linear:
      return kernels_.linear_forward(stream_, x, value(of.parameter),
                                     of.has_bias ? value(of.parameter + 1) : nullptr,
                                     at(call.residual, frame), y, shape_of(of));
    case OperationKind::attention:
      return kernels_.attention_forward(stream_, x, y, saved, attention_);
    case OperationKind::gelu:
      return kernels_.gelu_forward(stream_, x, y, count);
    case OperationKind::cross_entropy:
      return kernels_.cross_entropy(stream_, x, frame.targets, reinterpret_cast<double*>(saved),
                                    frame.gradient_scale, rows_, of.in);
  }
}

void KernelCalls::backward_input(const KernelCall& call, const PassFrame& frame) {
  const auto& of = graph_.operations[call.operation];
  const auto* const x = at(call.x, frame);
  const auto* const saved = at(call.saved[0], frame);
  const auto* const dy = at(call.dy, frame);
  auto* const dx = at(call.dx, frame);
  TROUPE_ASSERT(call.d_residual == no_value || of.kind == OperationKind::layer_norm);
  switch (of.kind) {
    case OperationKind::layer_norm:
      return kernels_.layer_norm_backward_input(stream_, dy, x, value(of.parameter), saved,
                                                at(call.saved[1], frame),
                                                at(call.d_residual, frame), dx, rows_, of.out);
    case OperationKind::linear:
      return kernels_.linear_backward_input(stream_, dy, value(of.parameter), dx, shape_of(of));
    case OperationKind::attention:
      return kernels_.attention_backward(stream_, dy, x, at(call.y, frame), saved, dx, attention_);
    case OperationKind::gelu:
      return kernels_.gelu_backward(stream_, x, dy, dx, std::size_t{rows_} * of.out);
    case OperationKind::embedding:
    case OperationKind::cross_entropy:
      break;
  }
  TROUPE_ASSERT(false);
}

void KernelCalls::backward_weight(const KernelCall& call, const PassFrame& frame) {
  const auto& of = graph_.operations[call.operation];
  const auto* const x = at(call.x, frame);
  const auto* const dy = at(call.dy, frame);
  switch (of.kind) {
    case OperationKind::embedding:
      return kernels_.embedding_backward(stream_, frame.tokens, dy, gradient(of, 0),
                                         gradient(of, 1), rows_, attention_.sequence, of.out,
                                         of.in, frame.accumulate);
    case OperationKind::layer_norm:
      return kernels_.layer_norm_backward_weight(
          stream_, dy, x, at(call.saved[0], frame), at(call.saved[1], frame), gradient(of, 0),
          gradient(of, 1), rows_, of.out, frame.accumulate);
    case OperationKind::linear:
      return kernels_.linear_backward_weight(stream_, x, dy, gradient(of, 0),
                                             of.has_bias ? gradient(of, 1) : nullptr, shape_of(of),
                                             frame.accumulate);
    case OperationKind::attention:
    case OperationKind::gelu:
    case OperationKind::cross_entropy:
      break;
  }
  TROUPE_ASSERT(false);
}

}  // namespace troupe::stages
