// stages/src/gpt2_parts.hpp -- the passes of embedding, layer and head, enqueued kernel by kernel.
#pragma once

#include <cstddef>
#include <cstdint>

#include "troupe/stages/kernels.hpp"

#include "gpt2_tensors.hpp"

namespace troupe::stages {

/// The parameters of a layer, in model order.
enum LayerParameter : std::size_t {
  norm_1_gain,
  norm_1_bias,
  qkv_weight,
  qkv_bias,
  projection_weight,
  projection_bias,
  norm_2_gain,
  norm_2_bias,
  expand_weight,
  expand_bias,
  contract_weight,
  contract_bias,
  layer_parameter_count,
};

/// Where the parameters of a stage are in the list of `parameters_of`.
struct ParameterPlaces {
  ParameterPlaces(const ModelSpec& model, const StageSpec& stage);

  [[nodiscard]] std::size_t of_layer(std::size_t layer, LayerParameter which) const {
    return first_layer + layer * layer_parameter_count + which;
  }

  std::size_t token_weight = 0;
  std::size_t position_weight = 1;
  std::size_t first_layer = 0;
  std::size_t norm_gain = 0;  ///< The final norm's; its bias follows.
  std::size_t head_weight = 0;
};

/// Enqueues the parts of the passes of one stage. In a backward pass the gradient for the input of
/// a part comes before those for its weights, and parts go from the head down.
class Gpt2Parts {
public:
  /// `tensors` outlives the object.
  Gpt2Parts(Stream& stream, Kernels& kernels, const StageProps& props, const Gpt2Tensors& tensors);

  void forward_embedding(const Slot& slot, const std::int32_t* tokens);
  void forward_layer(const Slot& slot, std::size_t layer);
  /// `gradient_scale` as for `Kernels::cross_entropy`: not 0 leaves the gradient of the logits.
  void forward_head(const Slot& slot, const std::int32_t* targets, float gradient_scale);

  void backward_input_head(const Slot& slot);
  void backward_input_feed_forward(const Slot& slot, std::size_t layer);
  void backward_input_attention(const Slot& slot, std::size_t layer);

  void backward_weight_head(const Slot& slot, Accumulate accumulate);
  void backward_weight_feed_forward(const Slot& slot, std::size_t layer, Accumulate accumulate);
  void backward_weight_attention(const Slot& slot, std::size_t layer, Accumulate accumulate);
  void backward_weight_embedding(const Slot& slot, const std::int32_t* tokens,
                                 Accumulate accumulate);

private:
  void forward_attention(const Slot& slot, std::size_t layer);
  void forward_feed_forward(const Slot& slot, std::size_t layer);

  [[nodiscard]] float* value(std::size_t parameter) const {
    return tensors_.parameters[parameter].values.data();
  }
  [[nodiscard]] float* gradient(std::size_t parameter) const {
    return tensors_.parameters[parameter].gradients.data();
  }
  [[nodiscard]] LinearShape linear(std::uint32_t in, std::uint32_t out) const {
    return {.rows = rows_, .in = in, .out = out, .layout = WeightLayout::in_out};
  }
  [[nodiscard]] LinearShape head_shape() const {
    return {.rows = rows_, .in = hidden_, .out = vocabulary_, .layout = WeightLayout::out_in};
  }
  [[nodiscard]] std::size_t hidden_count() const { return std::size_t{rows_} * hidden_; }

  Stream& stream_;
  Kernels& kernels_;
  const Gpt2Tensors& tensors_;
  ParameterPlaces places_;
  AttentionShape attention_;
  std::uint32_t rows_;
  std::uint32_t hidden_;
  std::uint32_t vocabulary_;
};

}  // namespace troupe::stages
