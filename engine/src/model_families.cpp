#include "model_families.hpp"

#include <array>
#include <utility>

#include "troupe/engine/check.hpp"
#include "troupe/engine/layer_builder.hpp"

#include "pass_builder.hpp"

namespace troupe {
namespace {

// -- layers ---------------------------------------------------------------------------------------

/// Radford et al. 2019.
ValueIndex gpt2_layer(LayerBuilder& layer, ValueIndex x) {
  const Product to_columns{.layout = WeightLayout::in_out, .has_bias = true};
  const Product to_residual{
      .layout = WeightLayout::in_out, .has_bias = true, .deviation = layer.residual_deviation()};
  const auto& model = layer.model();
  const auto norm_1 = layer.layer_norm("ln_1", x);
  const auto qkv = layer.column_product("attn.c_attn", norm_1, model.hidden, to_columns, 3);
  const auto attended = layer.attention("attn", qkv);
  const auto middle = layer.row_product("attn.c_proj", attended, x, to_residual);
  const auto norm_2 = layer.layer_norm("ln_2", middle);
  const auto wide =
      layer.column_product("mlp.c_fc", norm_2, model.feed_forward_width(), to_columns);
  return layer.row_product("mlp.c_proj", layer.gelu("mlp.act", wide), middle, to_residual);
}

/// Touvron et al. 2023.
ValueIndex llama_layer(LayerBuilder& layer, ValueIndex x) {
  const Product to_residual{.deviation = layer.residual_deviation()};
  const auto& model = layer.model();
  const auto kv_width = model.kv_head_count() * model.head_size();
  const auto norm_1 = layer.rms_norm("input_layernorm", x);
  const auto qkv = layer.joined_column_products(
      "self_attn", norm_1, {{"q_proj", model.hidden}, {"k_proj", kv_width}, {"v_proj", kv_width}});
  const auto attended = layer.attention("self_attn", layer.rotate(qkv));
  const auto middle = layer.row_product("self_attn.o_proj", attended, x, to_residual);
  const auto norm_2 = layer.rms_norm("post_attention_layernorm", middle);
  const auto wide = model.feed_forward_width();
  const auto expanded =
      layer.joined_column_products("mlp", norm_2, {{"gate_proj", wide}, {"up_proj", wide}});
  const auto activated = layer.swiglu("mlp.act", expanded);
  return layer.row_product("mlp.down_proj", activated, middle, to_residual);
}

/// Devlin et al. 2019.
ValueIndex bert_layer(LayerBuilder& layer, ValueIndex x) {
  const Product biased{.has_bias = true};
  const auto& model = layer.model();
  const auto hidden = model.hidden;
  const auto qkv = layer.joined_column_products(
      "attention.self", x, {{"query", hidden}, {"key", hidden}, {"value", hidden}}, biased);
  const auto attended = layer.attention("attention.self", qkv);
  const auto middle =
      layer.layer_norm("attention.output.LayerNorm",
                       layer.row_product("attention.output.dense", attended, x, biased));
  const auto expanded = layer.joined_column_products(
      "intermediate", middle, {{"dense", model.feed_forward_width()}}, biased);
  const auto activated = layer.exact_gelu("intermediate.act", expanded);
  return layer.layer_norm("output.LayerNorm",
                          layer.row_product("output.dense", activated, middle, biased));
}

ValueIndex layer_of(LayerBuilder& layer, ValueIndex x) {
  const auto& model = layer.model();
  switch (model.family) {
    case Family::gpt2:
      return gpt2_layer(layer, x);
    case Family::llama:
      return llama_layer(layer, x);
    case Family::bert:
      return bert_layer(layer, x);
    case Family::custom:
      return model.custom_layer->build(layer, x);
  }
  return no_value;
}

/// What Hugging Face calls the parts of each family.
struct Names {
  const char* layer;  ///< Its number follows.
  const char* words;
  const char* positions;  ///< Null for none, as is the bias.
  const char* head;
  const char* head_bias;
};

constexpr std::array<Names, family_names.size()> names_by_family{{
    {"h.", "wte.weight", "wpe.weight", "lm_head.weight", nullptr},
    {"model.layers.", "model.embed_tokens.weight", nullptr, "lm_head.weight", nullptr},
    {"bert.encoder.layer.", "bert.embeddings.word_embeddings.weight",
     "bert.embeddings.position_embeddings.weight", "cls.predictions.decoder.weight",
     "cls.predictions.bias"},
    {"h.", "wte.weight", "wpe.weight", "lm_head.weight", nullptr},
}};

Names names_of(const ModelSpec& model) {
  auto names = names_by_family[static_cast<std::size_t>(model.family)];
  if (model.family == Family::custom && !model.custom_layer->has_positions) {
    names.positions = nullptr;
  }
  return names;
}

// -- embedding, layers and head of a stage --------------------------------------------------------

class ModelBuilder {
public:
  ModelBuilder(const ModelSpec& model, const StageSpec& stage, std::uint32_t microbatch_size,
               const Shard& shard)
      : model_{model},
        stage_{stage},
        shard_{shard},
        names_{names_of(model)},
        builder_{model, microbatch_size, shard} {}

  ForwardPass take() && {
    auto hidden = begin();
    for (auto number = stage_.layer_begin; number < stage_.layer_end; ++number) {
      builder_.begin_block(ForwardPass::Block::Kind::layer);
      hidden = append_layer(number, hidden);
      builder_.end_layer(number);
    }
    if (stage_.has_head) {
      builder_.begin_block(ForwardPass::Block::Kind::head);
      head(hidden);
    } else {
      builder_.pass().output = hidden;
    }
    return std::move(builder_.pass());
  }

private:
  ValueIndex begin() {
    if (stage_.has_embedding) {
      builder_.begin_block(ForwardPass::Block::Kind::embedding);
      return embedding();
    }
    return builder_.pass().input = builder_.value("input", {model_.hidden, {model_.hidden}});
  }

  ValueIndex append_layer(std::uint32_t number, ValueIndex x) {
    LayerBuilder layer{builder_, names_.layer + std::to_string(number) + '.', x};
    const auto y = layer_of(layer, x);
    TROUPE_ASSERT(!layer.complaint(y));
    return y;
  }

  void head(ValueIndex x) {
    switch (model_.family) {
      case Family::gpt2:
        return words_head(builder_.layer_norm("ln_f", x));
      case Family::llama:
        return words_head(builder_.rms_norm("model.norm", x));
      case Family::bert:
        return model_.classifies() ? classes_head(x) : masked_head(x);
      case Family::custom:
        return words_head(model_.custom_layer->last_norm == CustomLayer::Norm::layer_norm
                              ? builder_.layer_norm("ln_f", x)
                              : builder_.rms_norm("ln_f", x));
    }
  }

  void masked_head(ValueIndex x) {
    const std::string name = "cls.predictions.transform";
    const auto dense =
        builder_.whole_product(name + ".dense", x, model_.hidden, {.has_bias = true});
    const auto activated = builder_.elementwise(OperationKind::exact_gelu, name + ".act", dense);
    words_head(builder_.layer_norm(name + ".LayerNorm", activated));
  }

  void classes_head(ValueIndex x) {
    const Product biased{.has_bias = true};
    const auto dense = builder_.whole_product("bert.pooler.dense", builder_.first_tokens(x),
                                              model_.hidden, biased);
    const auto pooled = builder_.elementwise(OperationKind::tanh, "bert.pooler.act", dense);
    cross_entropy(builder_.whole_product("classifier", builder_.dropped(pooled, pooled_site),
                                         model_.classes, biased));
  }

  ValueIndex embedding() {
    const Share words{model_.vocabulary, shard_};
    const auto weight = builder_.parameter(vocabulary_matrix(names_.words));
    auto positions = no_parameter;
    if (names_.positions != nullptr) {
      positions = builder_.parameter(
          matrix(names_.positions, model_.sequence, model_.hidden, Product{}.deviation));
    }
    const auto y = builder_.value_of_all_rows("embedded", {model_.hidden, {model_.hidden}});
    builder_.append({.kind = OperationKind::embedding,
                     .weight = weight,
                     .bias = positions,
                     .in = words.size(),
                     .out = model_.hidden,
                     .is_term = true,
                     .word_begin = static_cast<std::uint32_t>(words.begin),
                     .y = y});
    if (model_.family != Family::bert) {
      return builder_.dropped(builder_.sum_shards(y, no_value), embedding_site);
    }
    segments(y);
    const auto sum = builder_.sum_shards(y, no_value);
    return builder_.dropped(builder_.layer_norm("bert.embeddings.LayerNorm", sum), embedding_site);
  }

  /// The first shard adds them, as it does positions.
  void segments(ValueIndex x) {
    const auto weight =
        builder_.parameter(matrix("bert.embeddings.token_type_embeddings.weight", segment_count,
                                  model_.hidden, Product{}.deviation));
    builder_.append({.kind = OperationKind::segments,
                     .weight = weight,
                     .in = segment_count,
                     .out = model_.hidden,
                     .is_term = true,
                     .x = x,
                     .y = x});
  }

  /// Logits of every word, which the shards divide, and their loss.
  void words_head(ValueIndex x) {
    const Share words{model_.vocabulary, shard_};
    auto bias = no_parameter;
    if (names_.head_bias != nullptr) {
      bias = builder_.parameter(
          slice(vector(names_.head_bias, model_.vocabulary, Initial::zeros), 0, shard_));
    }
    const auto shared = builder_.share(x);
    const auto logits = builder_.value("logits", {words.size(), {model_.vocabulary}, true});
    builder_.append({.kind = OperationKind::linear,
                     .layout = WeightLayout::out_in,
                     .weight = head_weight(),
                     .bias = bias,
                     .in = builder_.width_of(shared),
                     .out = words.size(),
                     .is_term_backward = shard_.count > 1 && !builder_.divides_rows(),
                     .x = shared,
                     .y = logits});
    const auto word_begin = static_cast<std::uint32_t>(words.begin);
    auto statistics = no_value;
    if (shard_.count > 1) {
      statistics = builder_.bytes(
          "word statistics",
          shard_.count * padded(builder_.rows() * word_statistics_count * sizeof(float)));
      builder_.append({.kind = OperationKind::word_statistics,
                       .in = words.size(),
                       .word_begin = word_begin,
                       .x = logits,
                       .y = statistics});
      builder_.in_place(OperationKind::gather_shards, statistics);
    }
    cross_entropy(logits, statistics, word_begin);
  }

  void cross_entropy(ValueIndex logits, ValueIndex statistics = no_value,
                     std::uint32_t word_begin = 0) {
    builder_.append({.kind = OperationKind::cross_entropy,
                     .in = builder_.width_of(logits),
                     .word_begin = word_begin,
                     .x = logits,
                     .saved = {builder_.bytes("loss", sizeof(double)), statistics}});
  }

  [[nodiscard]] ParameterSpec vocabulary_matrix(const char* name) const {
    return slice(matrix(name, model_.vocabulary, model_.hidden, Product{}.deviation), 0, shard_);
  }

  std::uint32_t head_weight() {
    if (!model_.tie_embeddings) return builder_.parameter(vocabulary_matrix(names_.head));
    if (stage_.has_embedding) return 0;
    const auto index = builder_.parameter(vocabulary_matrix(names_.words));
    builder_.pass().parameters.back().owned = false;
    return index;
  }

  // Which of the model's dropouts; those of layers follow.
  static constexpr std::uint32_t embedding_site = 0;
  static constexpr std::uint32_t pooled_site = 1;

  const ModelSpec& model_;
  const StageSpec& stage_;
  const Shard shard_;
  const Names names_;
  PassBuilder builder_;
};

}  // namespace

ForwardPass forward_pass_of(const ModelSpec& model, const StageSpec& stage,
                            std::uint32_t microbatch_size, const Shard& shard) {
  TROUPE_ASSERT(stage.layer_begin < stage.layer_end && stage.layer_end <= model.layers);
  TROUPE_ASSERT(shard.index < shard.count);
  TROUPE_ASSERT(!(model.classifies() && model.tie_embeddings));
  TROUPE_ASSERT((model.family == Family::custom) == (model.custom_layer != nullptr));
  return ModelBuilder{model, stage, microbatch_size, shard}.take();
}

std::optional<std::string> complaint_about_layer(const ModelSpec& model,
                                                 std::uint32_t shard_count) {
  const auto& custom = *model.custom_layer;
  const auto quoted = "the layer \"" + custom.name + "\"";
  if (!custom.build) return quoted + " has no function that builds it; set CustomLayer::build";
  PassBuilder builder{model, 1, {.index = 0, .count = shard_count}};
  builder.begin_block(ForwardPass::Block::Kind::layer);
  const auto x = builder.value("x", {model.hidden, {model.hidden}});
  LayerBuilder layer{builder, {}, x};
  const auto complaint = layer.complaint(custom.build(layer, x));
  if (!complaint) return std::nullopt;
  return quoted + ": " + *complaint;
}

}  // namespace troupe
