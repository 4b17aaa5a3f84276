#include "model_families.hpp"

#include <cmath>
#include <utility>

#include "troupe/engine/check.hpp"

namespace troupe {
namespace {

ParameterSpec matrix(std::string name, std::uint64_t rows, std::uint64_t columns, float deviation) {
  return {.name = std::move(name),
          .shape = {rows, columns},
          .initial = Initial::normal,
          .deviation = deviation,
          .decays = true};
}

ParameterSpec vector(std::string name, std::uint64_t size, Initial initial) {
  return {.name = std::move(name), .shape = {size}, .initial = initial};
}

/// Appends operation after operation; each member returns the value that the operation makes.
class Builder {
public:
  Builder(const ModelSpec& model, const StageSpec& stage, std::uint32_t microbatch_size)
      : model_{model}, stage_{stage}, rows_{std::uint64_t{microbatch_size} * model.sequence} {}

  ForwardPass take() && {
    const bool is_llama = model_.family == Family::llama;
    auto hidden = begin();
    for (auto layer = stage_.layer_begin; layer < stage_.layer_end; ++layer) {
      begin_block(ForwardPass::Block::Kind::layer);
      const auto number = std::to_string(layer);
      hidden = is_llama ? llama_layer("model.layers." + number, hidden)
                        : gpt2_layer("h." + number, hidden);
    }
    if (stage_.has_head) {
      begin_block(ForwardPass::Block::Kind::head);
      head(is_llama ? rms_norm("model.norm", hidden) : layer_norm("ln_f", hidden));
    } else {
      pass_.output = hidden;
    }
    return std::move(pass_);
  }

private:
  // -- GPT-2 (Radford et al. 2019) ----------------------------------------------------------------

  ValueIndex gpt2_layer(const std::string& name, ValueIndex x) {
    const auto hidden = model_.hidden;
    const auto norm_1 = layer_norm(name + ".ln_1", x);
    const auto qkv = gpt2_linear(name + ".attn.c_attn", norm_1, 3 * hidden);
    const auto attended = attention(name + ".attn", qkv);
    const auto middle = gpt2_linear(name + ".attn.c_proj", attended, hidden, x);
    const auto norm_2 = layer_norm(name + ".ln_2", middle);
    const auto expanded = gpt2_linear(name + ".mlp.c_fc", norm_2, model_.feed_forward_width());
    const auto activated = gelu(name + ".mlp.act", expanded);
    return gpt2_linear(name + ".mlp.c_proj", activated, hidden, middle);
  }

  ValueIndex gpt2_linear(const std::string& name, ValueIndex x, std::uint32_t out,
                         ValueIndex residual = no_value) {
    const auto in = width_of(x);
    const auto weight = parameter(matrix(name + ".weight", in, out, deviation(residual)));
    const auto bias = parameter(vector(name + ".bias", out, Initial::zeros));
    return linear(name, x, out, residual,
                  {.layout = WeightLayout::in_out, .weight = weight, .bias = bias});
  }

  // -- Llama (Touvron et al. 2023) ----------------------------------------------------------------

  ValueIndex llama_layer(const std::string& name, ValueIndex x) {
    const auto hidden = model_.hidden;
    const auto kv_width = model_.kv_head_count() * model_.head_size();
    const auto wide = model_.feed_forward_width();
    const auto norm_1 = rms_norm(name + ".input_layernorm", x);
    const auto qkv =
        llama_linear(name + ".self_attn",
                     {{"q_proj", hidden}, {"k_proj", kv_width}, {"v_proj", kv_width}}, norm_1);
    rotate(qkv);
    const auto attended = attention(name + ".self_attn", qkv);
    const auto middle = llama_linear(name + ".self_attn", {{"o_proj", hidden}}, attended, x);
    const auto norm_2 = rms_norm(name + ".post_attention_layernorm", middle);
    const auto expanded =
        llama_linear(name + ".mlp", {{"gate_proj", wide}, {"up_proj", wide}}, norm_2);
    const auto activated = swiglu(name + ".mlp.act", expanded);
    return llama_linear(name + ".mlp", {{"down_proj", hidden}}, activated, middle);
  }

  struct Output {
    const char* name;
    std::uint32_t width;
  };

  /// One product with the matrices of all outputs, which lie below each other.
  ValueIndex llama_linear(const std::string& name, const std::vector<Output>& outputs, ValueIndex x,
                          ValueIndex residual = no_value) {
    const auto in = width_of(x);
    const auto weight = static_cast<std::uint32_t>(pass_.parameters.size());
    std::uint32_t out = 0;
    for (const auto& output : outputs) {
      parameter(
          matrix(name + "." + output.name + ".weight", output.width, in, deviation(residual)));
      pass_.parameters.back().joined = out > 0;
      out += output.width;
    }
    return linear(name + "." + outputs.front().name, x, out, residual,
                  {.layout = WeightLayout::out_in, .weight = weight});
  }

  ValueIndex rms_norm(const std::string& name, ValueIndex x) {
    const auto width = width_of(x);
    const auto gain = parameter(vector(name + ".weight", width, Initial::ones));
    const auto y = value(name, width);
    pass_.operations.push_back({.kind = OperationKind::rms_norm,
                                .weight = gain,
                                .in = width,
                                .out = width,
                                .x = x,
                                .y = y,
                                .saved = {value(name + " rstd", 1), no_value}});
    return y;
  }

  void rotate(ValueIndex qkv) {
    pass_.operations.push_back({.kind = OperationKind::rotate,
                                .in = width_of(qkv),
                                .out = width_of(qkv),
                                .x = qkv,
                                .y = qkv});
  }

  ValueIndex swiglu(const std::string& name, ValueIndex x) {
    const auto width = width_of(x) / 2;
    const auto y = value(name, width);
    pass_.operations.push_back(
        {.kind = OperationKind::swiglu, .in = 2 * width, .out = width, .x = x, .y = y});
    return y;
  }

  // -- both ---------------------------------------------------------------------------------------

  ValueIndex embedding() {
    const auto weight = parameter(token_embedding());
    auto positions = no_parameter;
    if (model_.family == Family::gpt2) {
      positions = parameter(matrix("wpe.weight", model_.sequence, model_.hidden, deviation()));
    }
    const auto y = value("embedded", model_.hidden);
    pass_.operations.push_back({.kind = OperationKind::embedding,
                                .weight = weight,
                                .bias = positions,
                                .in = model_.vocabulary,
                                .out = model_.hidden,
                                .y = y});
    return y;
  }

  void head(ValueIndex norm) {
    const auto logits = linear("logits", norm, model_.vocabulary, no_value,
                               {.layout = WeightLayout::out_in, .weight = head_weight()});
    const auto loss = static_cast<ValueIndex>(pass_.values.size());
    pass_.values.push_back({.name = "loss", .size_bytes = sizeof(double)});
    pass_.operations.push_back({.kind = OperationKind::cross_entropy,
                                .in = model_.vocabulary,
                                .x = logits,
                                .saved = {loss, no_value}});
  }

  ValueIndex layer_norm(const std::string& name, ValueIndex x) {
    const auto width = width_of(x);
    const auto gain = parameter(vector(name + ".weight", width, Initial::ones));
    const auto bias = parameter(vector(name + ".bias", width, Initial::zeros));
    const auto y = value(name, width);
    pass_.operations.push_back({.kind = OperationKind::layer_norm,
                                .weight = gain,
                                .bias = bias,
                                .in = width,
                                .out = width,
                                .x = x,
                                .y = y,
                                .saved = {value(name + " rstd", 1), value(name + " mean", 1)}});
    return y;
  }

  struct LinearParameters {
    WeightLayout layout{};
    std::uint32_t weight = no_parameter;
    std::uint32_t bias = no_parameter;
  };

  ValueIndex linear(std::string name, ValueIndex x, std::uint32_t out, ValueIndex residual,
                    const LinearParameters& parameters) {
    const auto y = value(std::move(name), out);
    pass_.operations.push_back({.kind = OperationKind::linear,
                                .layout = parameters.layout,
                                .weight = parameters.weight,
                                .bias = parameters.bias,
                                .in = width_of(x),
                                .out = out,
                                .x = x,
                                .residual = residual,
                                .y = y});
    return y;
  }

  ValueIndex attention(const std::string& name, ValueIndex qkv) {
    const auto y = value(name, model_.hidden);
    pass_.operations.push_back({.kind = OperationKind::attention,
                                .in = width_of(qkv),
                                .out = model_.hidden,
                                .x = qkv,
                                .y = y,
                                .saved = {value(name + " log_sum_exp", model_.heads), no_value}});
    return y;
  }

  ValueIndex gelu(const std::string& name, ValueIndex x) {
    const auto y = value(name, width_of(x));
    pass_.operations.push_back(
        {.kind = OperationKind::gelu, .in = width_of(x), .out = width_of(x), .x = x, .y = y});
    return y;
  }

  // -- what they share ----------------------------------------------------------------------------

  ValueIndex begin() {
    if (stage_.has_embedding) {
      begin_block(ForwardPass::Block::Kind::embedding);
      return embedding();
    }
    pass_.input = value("input", model_.hidden);
    return pass_.input;
  }

  void begin_block(ForwardPass::Block::Kind kind) {
    pass_.blocks.push_back(
        {.kind = kind,
         .operations_begin = static_cast<std::uint32_t>(pass_.operations.size()),
         .parameters_begin = static_cast<std::uint32_t>(pass_.parameters.size())});
  }

  /// 0.02, and less for what is added to a residual: each layer does so twice, and the sum is to
  /// keep its variance (Radford et al. 2019).
  [[nodiscard]] float deviation(ValueIndex residual = no_value) const {
    constexpr float usual = 0.02F;
    return residual == no_value
               ? usual
               : static_cast<float>(double{usual} / std::sqrt(2.0 * model_.layers));
  }

  [[nodiscard]] ParameterSpec token_embedding() const {
    const auto* const name =
        model_.family == Family::llama ? "model.embed_tokens.weight" : "wte.weight";
    return matrix(name, model_.vocabulary, model_.hidden, deviation());
  }

  std::uint32_t head_weight() {
    if (!model_.tie_embeddings) {
      return parameter(matrix("lm_head.weight", model_.vocabulary, model_.hidden, deviation()));
    }
    if (stage_.has_embedding) return 0;
    const auto index = parameter(token_embedding());
    pass_.parameters.back().owned = false;
    return index;
  }

  std::uint32_t parameter(ParameterSpec spec) {
    pass_.parameters.push_back(std::move(spec));
    return static_cast<std::uint32_t>(pass_.parameters.size() - 1);
  }

  /// [rows, width] floats.
  ValueIndex value(std::string name, std::uint32_t width) {
    pass_.values.push_back({.name = std::move(name), .size_bytes = rows_ * width * sizeof(float)});
    return static_cast<ValueIndex>(pass_.values.size() - 1);
  }

  [[nodiscard]] std::uint32_t width_of(ValueIndex value) const {
    return static_cast<std::uint32_t>(pass_.values[value].size_bytes / sizeof(float) / rows_);
  }

  const ModelSpec& model_;
  const StageSpec& stage_;
  std::uint64_t rows_;
  ForwardPass pass_;
};

}  // namespace

ForwardPass forward_pass_of(const ModelSpec& model, const StageSpec& stage,
                            std::uint32_t microbatch_size) {
  TROUPE_ASSERT(stage.layer_begin < stage.layer_end && stage.layer_end <= model.layers);
  return Builder{model, stage, microbatch_size}.take();
}

}  // namespace troupe
