#include "model_families.hpp"

#include <cmath>
#include <utility>

#include "troupe/engine/check.hpp"

namespace troupe {
namespace {

constexpr float deviation_default = 0.02F;  // Radford et al. 2019, and so for positions.

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
    auto hidden = begin();
    for (auto layer = stage_.layer_begin; layer < stage_.layer_end; ++layer) {
      begin_block(ForwardPass::Block::Kind::layer);
      hidden = gpt2_layer("h." + std::to_string(layer), hidden);
    }
    if (stage_.has_head) {
      begin_block(ForwardPass::Block::Kind::head);
      gpt2_head(hidden);
    } else {
      pass_.output = hidden;
    }
    return std::move(pass_);
  }

private:
  // -- the families -------------------------------------------------------------------------------

  ValueIndex gpt2_embedding() {
    const auto first = parameter(token_embedding());
    parameter(matrix("wpe.weight", model_.sequence, model_.hidden, deviation_default));
    const auto y = value("embedded", model_.hidden);
    pass_.operations.push_back({.kind = OperationKind::embedding,
                                .parameter = first,
                                .in = model_.vocabulary,
                                .out = model_.hidden,
                                .y = y});
    return y;
  }

  ValueIndex gpt2_layer(const std::string& name, ValueIndex x) {
    const auto hidden = model_.hidden;
    // Each layer adds to the residual twice: scaled so that the sum keeps its variance.
    const auto residual_deviation =
        static_cast<float>(double{deviation_default} / std::sqrt(2.0 * model_.layers));
    const auto norm_1 = layer_norm(name + ".ln_1", x);
    const auto qkv = linear(name + ".attn.c_attn", norm_1, 3 * hidden);
    const auto attended = attention(name + ".attn", qkv);
    const auto middle =
        linear(name + ".attn.c_proj", attended, hidden, x, residual_deviation);
    const auto norm_2 = layer_norm(name + ".ln_2", middle);
    const auto expanded = linear(name + ".mlp.c_fc", norm_2, 4 * hidden);
    const auto activated = gelu(name + ".mlp.act", expanded);
    return linear(name + ".mlp.c_proj", activated, hidden, middle, residual_deviation);
  }

  void gpt2_head(ValueIndex x) {
    const auto norm = layer_norm("ln_f", x);
    const auto logits = value("logits", model_.vocabulary);
    pass_.operations.push_back({.kind = OperationKind::linear,
                                .layout = WeightLayout::out_in,
                                .parameter = head_weight(),
                                .in = model_.hidden,
                                .out = model_.vocabulary,
                                .x = norm,
                                .y = logits});
    const auto loss = static_cast<ValueIndex>(pass_.values.size());
    pass_.values.push_back({.name = "loss", .size_bytes = sizeof(double)});
    pass_.operations.push_back({.kind = OperationKind::cross_entropy,
                                .in = model_.vocabulary,
                                .x = logits,
                                .saved = {loss, no_value}});
  }

  // -- their operations ---------------------------------------------------------------------------

  ValueIndex layer_norm(const std::string& name, ValueIndex x) {
    const auto width = width_of(x);
    const auto first = parameter(vector(name + ".weight", width, Initial::ones));
    parameter(vector(name + ".bias", width, Initial::zeros));
    const auto y = value(name, width);
    pass_.operations.push_back({.kind = OperationKind::layer_norm,
                                .parameter = first,
                                .in = width,
                                .out = width,
                                .x = x,
                                .y = y,
                                .saved = {value(name + " mean", 1), value(name + " rstd", 1)}});
    return y;
  }

  ValueIndex linear(const std::string& name, ValueIndex x, std::uint32_t out,
                    ValueIndex residual = no_value, float deviation = deviation_default) {
    const auto in = width_of(x);
    const auto first = parameter(matrix(name + ".weight", in, out, deviation));
    parameter(vector(name + ".bias", out, Initial::zeros));
    const auto y = value(name, out);
    pass_.operations.push_back({.kind = OperationKind::linear,
                                .has_bias = true,
                                .parameter = first,
                                .in = in,
                                .out = out,
                                .x = x,
                                .residual = residual,
                                .y = y});
    return y;
  }

  ValueIndex attention(const std::string& name, ValueIndex qkv) {
    const auto y = value(name, model_.hidden);
    pass_.operations.push_back(
        {.kind = OperationKind::attention,
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
      return gpt2_embedding();
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

  [[nodiscard]] ParameterSpec token_embedding() const {
    return matrix("wte.weight", model_.vocabulary, model_.hidden, deviation_default);
  }

  std::uint32_t head_weight() {
    if (!model_.tie_embeddings) {
      return parameter(
          matrix("lm_head.weight", model_.vocabulary, model_.hidden, deviation_default));
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
