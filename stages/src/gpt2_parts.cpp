#include "gpt2_parts.hpp"

namespace troupe::stages {

ParameterPlaces::ParameterPlaces(const ModelSpec& model, const StageSpec& stage)
    : first_layer{stage.has_embedding ? 2U : 0U},
      norm_gain{of_layer(stage.layer_count(), norm_1_gain)},
      head_weight{model.tie_embeddings && stage.has_embedding ? token_weight : norm_gain + 2} {}

Gpt2Parts::Gpt2Parts(Stream& stream, Kernels& kernels, const StageProps& props,
                     const Gpt2Tensors& tensors)
    : stream_{stream},
      kernels_{kernels},
      tensors_{tensors},
      places_{props.model, props.spec},
      attention_{.batch = props.microbatch_size,
                 .sequence = props.model.sequence,
                 .heads = props.model.heads,
                 .head_size = props.model.hidden / props.model.heads},
      rows_{props.microbatch_size * props.model.sequence},
      hidden_{props.model.hidden},
      vocabulary_{props.model.vocabulary} {}

// -- forward --------------------------------------------------------------------------------------

void Gpt2Parts::forward_embedding(const Slot& slot, const std::int32_t* tokens) {
  kernels_.embedding_forward(stream_, tokens, value(places_.token_weight),
                             value(places_.position_weight), slot.hidden.front(), rows_,
                             attention_.sequence, hidden_);
}

void Gpt2Parts::forward_layer(const Slot& slot, std::size_t layer) {
  forward_attention(slot, layer);
  forward_feed_forward(slot, layer);
}

void Gpt2Parts::forward_attention(const Slot& slot, std::size_t layer) {
  const auto& t = slot.layers[layer];
  const auto p = [&](LayerParameter which) { return value(places_.of_layer(layer, which)); };
  kernels_.layer_norm_forward(stream_, slot.hidden[layer], p(norm_1_gain), p(norm_1_bias), t.norm_1,
                              t.mean_1, t.rstd_1, rows_, hidden_);
  kernels_.linear_forward(stream_, t.norm_1, p(qkv_weight), p(qkv_bias), nullptr, t.qkv,
                          linear(hidden_, 3 * hidden_));
  kernels_.attention_forward(stream_, t.qkv, t.attended, t.log_sum_exp, attention_);
  kernels_.linear_forward(stream_, t.attended, p(projection_weight), p(projection_bias),
                          slot.hidden[layer], t.middle, linear(hidden_, hidden_));
}

void Gpt2Parts::forward_feed_forward(const Slot& slot, std::size_t layer) {
  const auto& t = slot.layers[layer];
  const auto p = [&](LayerParameter which) { return value(places_.of_layer(layer, which)); };
  kernels_.layer_norm_forward(stream_, t.middle, p(norm_2_gain), p(norm_2_bias), t.norm_2, t.mean_2,
                              t.rstd_2, rows_, hidden_);
  kernels_.linear_forward(stream_, t.norm_2, p(expand_weight), p(expand_bias), nullptr, t.expanded,
                          linear(hidden_, 4 * hidden_));
  kernels_.gelu_forward(stream_, t.expanded, t.activated, 4 * hidden_count());
  kernels_.linear_forward(stream_, t.activated, p(contract_weight), p(contract_bias), t.middle,
                          slot.hidden[layer + 1], linear(4 * hidden_, hidden_));
}

void Gpt2Parts::forward_head(const Slot& slot, const std::int32_t* targets, float gradient_scale) {
  const auto& t = slot.head;
  kernels_.layer_norm_forward(stream_, slot.hidden.back(), value(places_.norm_gain),
                              value(places_.norm_gain + 1), t.norm, t.mean, t.rstd, rows_, hidden_);
  kernels_.linear_forward(stream_, t.norm, value(places_.head_weight), nullptr, nullptr, t.logits,
                          head_shape());
  kernels_.cross_entropy(stream_, t.logits, targets, t.loss, gradient_scale, rows_, vocabulary_);
}

// -- backward -------------------------------------------------------------------------------------

void Gpt2Parts::backward_input_head(const Slot& slot) {
  const auto& t = slot.head;
  kernels_.linear_backward_input(stream_, t.logits, value(places_.head_weight), t.d_norm,
                                 head_shape());
  kernels_.layer_norm_backward_input(stream_, t.d_norm, slot.hidden.back(),
                                     value(places_.norm_gain), t.mean, t.rstd, nullptr,
                                     slot.d_hidden.back(), rows_, hidden_);
}

void Gpt2Parts::backward_weight_head(const Slot& slot, Accumulate accumulate) {
  const auto& t = slot.head;
  auto* const half =
      tensors_.head_half.empty() ? gradient(places_.head_weight) : tensors_.head_half.data();
  kernels_.linear_backward_weight(stream_, t.norm, t.logits, half, nullptr, head_shape(),
                                  accumulate);
  kernels_.layer_norm_backward_weight(stream_, t.d_norm, slot.hidden.back(), t.mean, t.rstd,
                                      gradient(places_.norm_gain), gradient(places_.norm_gain + 1),
                                      rows_, hidden_, accumulate);
}

void Gpt2Parts::backward_input_feed_forward(const Slot& slot, std::size_t layer) {
  const auto& t = slot.layers[layer];
  const auto p = [&](LayerParameter which) { return value(places_.of_layer(layer, which)); };
  const auto* const dy = slot.d_hidden[layer + 1];
  kernels_.linear_backward_input(stream_, dy, p(contract_weight), t.d_expanded,
                                 linear(4 * hidden_, hidden_));
  kernels_.gelu_backward(stream_, t.expanded, t.d_expanded, t.d_expanded, 4 * hidden_count());
  kernels_.linear_backward_input(stream_, t.d_expanded, p(expand_weight), t.d_norm_2,
                                 linear(hidden_, 4 * hidden_));
  kernels_.layer_norm_backward_input(stream_, t.d_norm_2, t.middle, p(norm_2_gain), t.mean_2,
                                     t.rstd_2, dy, t.d_middle, rows_, hidden_);
}

void Gpt2Parts::backward_weight_feed_forward(const Slot& slot, std::size_t layer,
                                             Accumulate accumulate) {
  const auto& t = slot.layers[layer];
  const auto g = [&](LayerParameter which) { return gradient(places_.of_layer(layer, which)); };
  kernels_.linear_backward_weight(stream_, t.activated, slot.d_hidden[layer + 1],
                                  g(contract_weight), g(contract_bias),
                                  linear(4 * hidden_, hidden_), accumulate);
  kernels_.linear_backward_weight(stream_, t.norm_2, t.d_expanded, g(expand_weight), g(expand_bias),
                                  linear(hidden_, 4 * hidden_), accumulate);
  kernels_.layer_norm_backward_weight(stream_, t.d_norm_2, t.middle, t.mean_2, t.rstd_2,
                                      g(norm_2_gain), g(norm_2_bias), rows_, hidden_, accumulate);
}

void Gpt2Parts::backward_input_attention(const Slot& slot, std::size_t layer) {
  const auto& t = slot.layers[layer];
  const auto p = [&](LayerParameter which) { return value(places_.of_layer(layer, which)); };
  kernels_.linear_backward_input(stream_, t.d_middle, p(projection_weight), t.d_attended,
                                 linear(hidden_, hidden_));
  kernels_.attention_backward(stream_, t.d_attended, t.qkv, t.attended, t.log_sum_exp, t.d_qkv,
                              attention_);
  kernels_.linear_backward_input(stream_, t.d_qkv, p(qkv_weight), t.d_norm_1,
                                 linear(hidden_, 3 * hidden_));
  kernels_.layer_norm_backward_input(stream_, t.d_norm_1, slot.hidden[layer], p(norm_1_gain),
                                     t.mean_1, t.rstd_1, t.d_middle, slot.d_hidden[layer], rows_,
                                     hidden_);
}

void Gpt2Parts::backward_weight_attention(const Slot& slot, std::size_t layer,
                                          Accumulate accumulate) {
  const auto& t = slot.layers[layer];
  const auto g = [&](LayerParameter which) { return gradient(places_.of_layer(layer, which)); };
  kernels_.linear_backward_weight(stream_, t.attended, t.d_middle, g(projection_weight),
                                  g(projection_bias), linear(hidden_, hidden_), accumulate);
  kernels_.linear_backward_weight(stream_, t.norm_1, t.d_qkv, g(qkv_weight), g(qkv_bias),
                                  linear(hidden_, 3 * hidden_), accumulate);
  kernels_.layer_norm_backward_weight(stream_, t.d_norm_1, slot.hidden[layer], t.mean_1, t.rstd_1,
                                      g(norm_1_gain), g(norm_1_bias), rows_, hidden_, accumulate);
}

void Gpt2Parts::backward_weight_embedding(const Slot& slot, const std::int32_t* tokens,
                                          Accumulate accumulate) {
  kernels_.embedding_backward(stream_, tokens, slot.d_hidden.front(),
                              gradient(places_.token_weight), gradient(places_.position_weight),
                              rows_, attention_.sequence, hidden_, vocabulary_, accumulate);
}

}  // namespace troupe::stages
