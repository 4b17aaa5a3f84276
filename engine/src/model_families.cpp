#include "model_families.hpp"

#include <array>
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

/// The part of `whole` that `shard` holds.
ParameterSpec slice(ParameterSpec whole, std::uint32_t axis, const Shard& shard,
                    std::uint32_t part_count = 1) {
  if (shard.count == 1) return whole;
  const Share share{whole.shape.at(axis) / part_count, shard};
  whole.slice = ParameterSlice{.whole_shape = whole.shape,
                               .axis = axis,
                               .part_count = part_count,
                               .begin = share.begin,
                               .end = share.end};
  whole.shape[axis] = std::uint64_t{part_count} * share.size();
  return whole;
}

/// Appends operation after operation; each member returns the value that the operation makes.
class Builder {
public:
  Builder(const ModelSpec& model, const StageSpec& stage, std::uint32_t microbatch_size,
          const Shard& shard)
      : model_{model},
        stage_{stage},
        shard_{shard},
        rows_{std::uint64_t{microbatch_size} * model.sequence},
        divides_rows_{shard.count > 1 && shard.divides_rows} {}

  ForwardPass take() && {
    auto hidden = begin();
    for (auto number = stage_.layer_begin; number < stage_.layer_end; ++number) {
      begin_block(ForwardPass::Block::Kind::layer);
      next_site_ = first_layer_site + sites_per_layer * number;
      hidden = layer(std::to_string(number), hidden);
    }
    if (stage_.has_head) {
      begin_block(ForwardPass::Block::Kind::head);
      head(hidden);
    } else {
      pass_.output = hidden;
    }
    return std::move(pass_);
  }

private:
  ValueIndex layer(const std::string& number, ValueIndex x) {
    switch (model_.family) {
      case Family::gpt2:
        return gpt2_layer("h." + number, x);
      case Family::llama:
        return llama_layer("model.layers." + number, x);
      case Family::bert:
        return bert_layer("bert.encoder.layer." + number, x);
    }
    return no_value;
  }

  void head(ValueIndex x) {
    switch (model_.family) {
      case Family::gpt2:
        return words_head(layer_norm("ln_f", x));
      case Family::llama:
        return words_head(rms_norm("model.norm", x));
      case Family::bert:
        return model_.classifies() ? classes_head(x) : masked_head(x);
    }
  }

  // -- GPT-2 (Radford et al. 2019) ----------------------------------------------------------------

  ValueIndex gpt2_layer(const std::string& name, ValueIndex x) {
    const auto norm_1 = share(layer_norm(name + ".ln_1", x));
    const auto qkv = gpt2_columns(name + ".attn.c_attn", norm_1, model_.hidden, 3);
    const auto attended = attention(name + ".attn", qkv);
    const auto middle = gpt2_rows(name + ".attn.c_proj", attended, model_.hidden, x);
    const auto norm_2 = share(layer_norm(name + ".ln_2", middle));
    const auto wide = model_.feed_forward_width();
    const auto activated = elementwise(OperationKind::gelu, name + ".mlp.act",
                                       gpt2_columns(name + ".mlp.c_fc", norm_2, wide));
    return gpt2_rows(name + ".mlp.c_proj", activated, wide, middle);
  }

  /// A product whose columns, `part_count` times `out`, the shards divide.
  ValueIndex gpt2_columns(const std::string& name, ValueIndex x, std::uint32_t out,
                          std::uint32_t part_count = 1) {
    const auto width = std::uint64_t{part_count} * out;
    const auto weight = parameter(
        slice(matrix(name + ".weight", width_of(x), width, deviation()), 1, shard_, part_count));
    const auto bias =
        parameter(slice(vector(name + ".bias", width, Initial::zeros), 0, shard_, part_count));
    return linear(name, x, part_count * Share{out, shard_}.size(),
                  {.layout = WeightLayout::in_out, .weight = weight, .bias = bias});
  }

  /// A product whose rows, `in`, the shards divide.
  ValueIndex gpt2_rows(const std::string& name, ValueIndex x, std::uint32_t in,
                       ValueIndex residual) {
    const auto out = model_.hidden;
    const auto weight =
        parameter(slice(matrix(name + ".weight", in, out, residual_deviation()), 0, shard_));
    const auto bias = parameter(vector(name + ".bias", out, Initial::zeros));
    return linear(name, x, out,
                  {.layout = WeightLayout::in_out, .weight = weight, .bias = bias, .is_term = true},
                  residual);
  }

  // -- Llama (Touvron et al. 2023) ----------------------------------------------------------------

  ValueIndex llama_layer(const std::string& name, ValueIndex x) {
    const auto kv_width = model_.kv_head_count() * model_.head_size();
    const auto wide = model_.feed_forward_width();
    const auto norm_1 = share(rms_norm(name + ".input_layernorm", x));
    const auto qkv = joined_columns(
        name + ".self_attn",
        {{"q_proj", model_.hidden}, {"k_proj", kv_width}, {"v_proj", kv_width}}, norm_1);
    rotate(qkv);
    const auto attended = attention(name + ".self_attn", qkv);
    const auto middle = llama_rows(name + ".self_attn.o_proj", attended, model_.hidden, x);
    const auto norm_2 = share(rms_norm(name + ".post_attention_layernorm", middle));
    const auto expanded =
        joined_columns(name + ".mlp", {{"gate_proj", wide}, {"up_proj", wide}}, norm_2);
    const auto activated = swiglu(name + ".mlp.act", expanded);
    return llama_rows(name + ".mlp.down_proj", activated, wide, middle);
  }

  ValueIndex llama_rows(const std::string& name, ValueIndex x, std::uint32_t in,
                        ValueIndex residual) {
    const auto out = model_.hidden;
    const auto weight =
        parameter(slice(matrix(name + ".weight", out, in, residual_deviation()), 1, shard_));
    return linear(name, x, out, {.layout = WeightLayout::out_in, .weight = weight, .is_term = true},
                  residual);
  }

  ValueIndex rms_norm(const std::string& name, ValueIndex x) {
    const auto width = width_of(x);
    const auto gain = parameter(vector(name + ".weight", width, Initial::ones));
    const auto y = own_value(name, width);
    append({.kind = OperationKind::rms_norm,
            .weight = gain,
            .in = width,
            .out = width,
            .on_own_rows = divides_rows_,
            .x = x,
            .y = y,
            .saved = {own_value(name + " rstd", 1), no_value}});
    return y;
  }

  void rotate(ValueIndex qkv) {
    append({.kind = OperationKind::rotate,
            .in = width_of(qkv),
            .out = width_of(qkv),
            .x = qkv,
            .y = qkv});
  }

  ValueIndex swiglu(const std::string& name, ValueIndex x) {
    const auto width = width_of(x) / 2;
    const auto y = value(name, width);
    append({.kind = OperationKind::swiglu, .in = 2 * width, .out = width, .x = x, .y = y});
    return y;
  }

  // -- BERT (Devlin et al. 2019) ------------------------------------------------------------------

  ValueIndex bert_layer(const std::string& name, ValueIndex x) {
    const auto hidden = model_.hidden;
    const auto wide = model_.feed_forward_width();
    const auto qkv =
        joined_columns(name + ".attention.self",
                       {{"query", hidden}, {"key", hidden}, {"value", hidden}}, share(x), true);
    const auto attended = attention(name + ".attention.self", qkv);
    const auto middle =
        layer_norm(name + ".attention.output.LayerNorm",
                   bert_rows(name + ".attention.output.dense", attended, hidden, x));
    const auto expanded =
        joined_columns(name + ".intermediate", {{"dense", wide}}, share(middle), true);
    const auto activated =
        elementwise(OperationKind::exact_gelu, name + ".intermediate.act", expanded);
    return layer_norm(name + ".output.LayerNorm",
                      bert_rows(name + ".output.dense", activated, wide, middle));
  }

  ValueIndex bert_rows(const std::string& name, ValueIndex x, std::uint32_t in,
                       ValueIndex residual) {
    const auto out = model_.hidden;
    const auto weight = parameter(slice(matrix(name + ".weight", out, in, deviation()), 1, shard_));
    const auto bias = parameter(vector(name + ".bias", out, Initial::zeros));
    return linear(name, x, out,
                  {.layout = WeightLayout::out_in, .weight = weight, .bias = bias, .is_term = true},
                  residual);
  }

  /// A product that every shard computes, of its own rows if they divide them.
  ValueIndex bert_whole(const std::string& name, ValueIndex x, std::uint32_t out) {
    const auto weight = parameter(matrix(name + ".weight", out, width_of(x), deviation()));
    const auto bias = parameter(vector(name + ".bias", out, Initial::zeros));
    const auto y = own_value(name, out);
    append({.kind = OperationKind::linear,
            .layout = WeightLayout::out_in,
            .weight = weight,
            .bias = bias,
            .in = width_of(x),
            .out = out,
            .on_own_rows = divides_rows_,
            .x = x,
            .y = y});
    return y;
  }

  /// The first shard adds them, as it does positions.
  void segments(ValueIndex x) {
    const auto weight = parameter(matrix("bert.embeddings.token_type_embeddings.weight",
                                         segment_count, model_.hidden, deviation()));
    append({.kind = OperationKind::segments,
            .weight = weight,
            .in = segment_count,
            .out = model_.hidden,
            .is_term = true,
            .x = x,
            .y = x});
  }

  void masked_head(ValueIndex x) {
    const std::string name = "cls.predictions.transform";
    const auto dense = bert_whole(name + ".dense", x, model_.hidden);
    const auto activated =
        elementwise(OperationKind::exact_gelu, name + ".act", dense, divides_rows_);
    words_head(layer_norm(name + ".LayerNorm", activated));
  }

  void classes_head(ValueIndex x) {
    const auto dense = bert_whole("bert.pooler.dense", first_tokens(x), model_.hidden);
    const auto pooled = elementwise(OperationKind::tanh, "bert.pooler.act", dense);
    cross_entropy(bert_whole("classifier", dropped(pooled, pooled_site), model_.classes));
  }

  /// What follows has one row for each sequence, and all shards compute it.
  ValueIndex first_tokens(ValueIndex x) {
    const auto width = width_of(x);
    if (divides_rows_) x = gather_rows(x, false);
    rows_ /= model_.sequence;
    divides_rows_ = false;
    const auto y = value("first tokens", width);
    append({.kind = OperationKind::first_tokens, .in = width, .out = width, .x = x, .y = y});
    return y;
  }

  // -- all ----------------------------------------------------------------------------------------

  ValueIndex embedding() {
    const Share words{model_.vocabulary, shard_};
    const auto weight = parameter(vocabulary_matrix(names().words));
    auto positions = no_parameter;
    if (names().positions != nullptr) {
      positions = parameter(matrix(names().positions, model_.sequence, model_.hidden, deviation()));
    }
    const auto y = value("embedded", model_.hidden);
    append({.kind = OperationKind::embedding,
            .weight = weight,
            .bias = positions,
            .in = words.size(),
            .out = model_.hidden,
            .is_term = true,
            .word_begin = static_cast<std::uint32_t>(words.begin),
            .y = y});
    if (model_.family != Family::bert) return dropped(sum_shards(y, no_value), embedding_site);
    segments(y);
    return dropped(layer_norm("bert.embeddings.LayerNorm", sum_shards(y, no_value)),
                   embedding_site);
  }

  /// Logits of every word, which the shards divide, and their loss.
  void words_head(ValueIndex x) {
    const Share words{model_.vocabulary, shard_};
    auto bias = no_parameter;
    if (names().head_bias != nullptr) {
      bias =
          parameter(slice(vector(names().head_bias, model_.vocabulary, Initial::zeros), 0, shard_));
    }
    const auto logits =
        linear("logits", share(x), words.size(),
               {.layout = WeightLayout::out_in, .weight = head_weight(), .bias = bias});
    const auto word_begin = static_cast<std::uint32_t>(words.begin);
    auto statistics = no_value;
    if (shard_.count > 1) {
      statistics = bytes("word statistics",
                         shard_.count * padded(rows_ * word_statistics_count * sizeof(float)));
      append({.kind = OperationKind::word_statistics,
              .in = words.size(),
              .word_begin = word_begin,
              .x = logits,
              .y = statistics});
      in_place(OperationKind::gather_shards, statistics);
    }
    cross_entropy(logits, statistics, word_begin);
  }

  void cross_entropy(ValueIndex logits, ValueIndex statistics = no_value,
                     std::uint32_t word_begin = 0) {
    append({.kind = OperationKind::cross_entropy,
            .in = width_of(logits),
            .word_begin = word_begin,
            .x = logits,
            .saved = {bytes("loss", sizeof(double)), statistics}});
  }

  // Between shards.

  /// What a product whose columns the shards divide reads.
  ValueIndex share(ValueIndex x) {
    return divides_rows_ ? gather_rows(x, true) : in_place(OperationKind::share, x);
  }

  ValueIndex gather_rows(ValueIndex x, bool sums_backward) {
    const auto width = width_of(x);
    const auto y = value("all rows of " + pass_.values[x].name, width);
    append({.kind = OperationKind::gather_rows,
            .in = width,
            .out = width,
            .is_term = sums_backward,
            .x = x,
            .y = y});
    return y;
  }

  /// The sum of what every shard has in x, and `residual`, which without `divides_rows_` is in the
  /// first term.
  ValueIndex sum_shards(ValueIndex x, ValueIndex residual) {
    if (!divides_rows_) return in_place(OperationKind::sum_shards, x);
    const auto width = width_of(x);
    const auto y = own_value("own rows of " + pass_.values[x].name, width);
    append({.kind = OperationKind::sum_to_rows,
            .in = width,
            .out = width,
            .x = x,
            .residual = residual,
            .y = y});
    return y;
  }

  ValueIndex in_place(OperationKind kind, ValueIndex x) {
    if (shard_.count > 1) append({.kind = kind, .x = x, .y = x});
    return x;
  }

  ValueIndex layer_norm(const std::string& name, ValueIndex x) {
    const auto width = width_of(x);
    const auto gain = parameter(vector(name + ".weight", width, Initial::ones));
    const auto bias = parameter(vector(name + ".bias", width, Initial::zeros));
    const auto y = own_value(name, width);
    append({.kind = OperationKind::layer_norm,
            .weight = gain,
            .bias = bias,
            .in = width,
            .out = width,
            .on_own_rows = divides_rows_,
            .x = x,
            .y = y,
            .saved = {own_value(name + " rstd", 1), own_value(name + " mean", 1)}});
    return y;
  }

  /// x, some of it dropped by training, and `residual`.
  ValueIndex dropped(ValueIndex x, std::uint32_t site, ValueIndex residual = no_value) {
    if (model_.dropout <= 0.0) {
      TROUPE_ASSERT(residual == no_value);
      return x;
    }
    const auto width = width_of(x);
    const auto y = own_value("what is left of " + pass_.values[x].name, width);
    append({.kind = OperationKind::dropout,
            .in = width,
            .out = width,
            .on_own_rows = divides_rows_,
            .dropout = model_.dropout,
            .site = site,
            .x = x,
            .residual = residual,
            .y = y});
    return y;
  }

  struct LinearParameters {
    WeightLayout layout{};
    std::uint32_t weight = no_parameter;
    std::uint32_t bias = no_parameter;
    bool is_term = false;
  };

  /// What is a term of a sum, a part of a layer adds to `residual`.
  ValueIndex linear(std::string name, ValueIndex x, std::uint32_t out,
                    const LinearParameters& parameters, ValueIndex residual = no_value) {
    const bool drops = parameters.is_term && model_.dropout > 0.0;
    const auto y = value(std::move(name), out);
    append({.kind = OperationKind::linear,
            .layout = parameters.layout,
            .weight = parameters.weight,
            .bias = parameters.bias,
            .in = width_of(x),
            .out = out,
            .is_term = parameters.is_term,
            .x = x,
            .residual = divides_rows_ || drops ? no_value : residual,
            .y = y});
    if (!parameters.is_term) return y;
    const auto site = next_site_++;
    return drops ? dropped(sum_shards(y, no_value), site, residual) : sum_shards(y, residual);
  }

  struct Output {
    const char* name;
    std::uint32_t width;
  };

  /// One product with the matrices of all outputs, which lie below each other; the shards divide
  /// each. Biases, if there are any, lie behind the matrices, one behind the other.
  ValueIndex joined_columns(const std::string& name, const std::vector<Output>& outputs,
                            ValueIndex x, bool has_bias = false) {
    const auto weight = joined(name, ".weight", outputs, [&](std::string whole, auto width) {
      return matrix(std::move(whole), width, width_of(x), deviation());
    });
    auto bias = no_parameter;
    if (has_bias) {
      bias = joined(name, ".bias", outputs, [](std::string whole, auto width) {
        return vector(std::move(whole), width, Initial::zeros);
      });
    }
    std::uint32_t out = 0;
    for (const auto& output : outputs) out += Share{output.width, shard_}.size();
    return linear(name + "." + outputs.front().name, x, out,
                  {.layout = WeightLayout::out_in, .weight = weight, .bias = bias});
  }

  /// One parameter for each output, joined. @returns the first.
  template <class Make>
  std::uint32_t joined(const std::string& name, const char* suffix,
                       const std::vector<Output>& outputs, Make make) {
    const auto first = static_cast<std::uint32_t>(pass_.parameters.size());
    for (const auto& output : outputs) {
      const auto index =
          parameter(slice(make(name + "." + output.name + suffix, output.width), 0, shard_));
      pass_.parameters.back().joined = index > first;
    }
    return first;
  }

  ValueIndex attention(const std::string& name, ValueIndex qkv) {
    const auto heads = Share{model_.heads, shard_}.size();
    const auto width = heads * model_.head_size();
    const auto y = value(name, width);
    append({.kind = OperationKind::attention,
            .in = width_of(qkv),
            .out = width,
            .dropout = model_.attention_dropout,
            .site = next_site_++,
            .x = qkv,
            .y = y,
            .saved = {value(name + " log_sum_exp", heads), no_value}});
    return y;
  }

  ValueIndex elementwise(OperationKind kind, const std::string& name, ValueIndex x,
                         bool on_own_rows = false) {
    const auto width = width_of(x);
    const auto y = on_own_rows ? own_value(name, width) : value(name, width);
    append({.kind = kind, .in = width, .out = width, .on_own_rows = on_own_rows, .x = x, .y = y});
    return y;
  }

  // -- what they share ----------------------------------------------------------------------------

  ValueIndex begin() {
    if (stage_.has_embedding) {
      begin_block(ForwardPass::Block::Kind::embedding);
      return embedding();
    }
    pass_.input = own_value("input", model_.hidden);
    return pass_.input;
  }

  void begin_block(ForwardPass::Block::Kind kind) {
    pass_.blocks.push_back(
        {.kind = kind,
         .operations_begin = static_cast<std::uint32_t>(pass_.operations.size()),
         .parameters_begin = static_cast<std::uint32_t>(pass_.parameters.size())});
  }

  // Every dropout of the model has a number, whether it drops anything or not. In a layer: the
  // probabilities of attention, its result, and that of the feed-forward.
  static constexpr std::uint32_t embedding_site = 0;
  static constexpr std::uint32_t pooled_site = 1;
  static constexpr std::uint32_t first_layer_site = 2;
  static constexpr std::uint32_t sites_per_layer = 3;

  /// As in Radford et al. 2019, and so for what comes with an embedding.
  [[nodiscard]] static float deviation() { return 0.02F; }
  /// Each layer adds to the residual twice: scaled so that the sum keeps its variance.
  [[nodiscard]] float residual_deviation() const {
    return static_cast<float>(double{deviation()} / std::sqrt(2.0 * model_.layers));
  }

  /// What Hugging Face calls what has a row for each word or position; null for none.
  struct Names {
    const char* words;
    const char* positions;
    const char* head;
    const char* head_bias;
  };
  [[nodiscard]] const Names& names() const {
    static constexpr std::array<Names, family_names.size()> by_family{{
        {"wte.weight", "wpe.weight", "lm_head.weight", nullptr},
        {"model.embed_tokens.weight", nullptr, "lm_head.weight", nullptr},
        {"bert.embeddings.word_embeddings.weight", "bert.embeddings.position_embeddings.weight",
         "cls.predictions.decoder.weight", "cls.predictions.bias"},
    }};
    return by_family[static_cast<std::size_t>(model_.family)];
  }
  [[nodiscard]] ParameterSpec vocabulary_matrix(const char* name) const {
    return slice(matrix(name, model_.vocabulary, model_.hidden, deviation()), 0, shard_);
  }

  std::uint32_t head_weight() {
    if (!model_.tie_embeddings) return parameter(vocabulary_matrix(names().head));
    if (stage_.has_embedding) return 0;
    const auto index = parameter(vocabulary_matrix(names().words));
    pass_.parameters.back().owned = false;
    return index;
  }

  void append(Operation operation) {
    operation.rows =
        static_cast<std::uint32_t>(operation.on_own_rows ? rows_ / shard_.count : rows_);
    pass_.operations.push_back(operation);
  }

  std::uint32_t parameter(ParameterSpec spec) {
    pass_.parameters.push_back(std::move(spec));
    return static_cast<std::uint32_t>(pass_.parameters.size() - 1);
  }

  /// [rows, width] floats.
  ValueIndex value(std::string name, std::uint32_t width) {
    return bytes(std::move(name), rows_ * width * sizeof(float), width);
  }

  /// The same, where shards divide rows of the own rows alone.
  ValueIndex own_value(std::string name, std::uint32_t width) {
    const auto rows = divides_rows_ ? rows_ / shard_.count : rows_;
    return bytes(std::move(name), rows * width * sizeof(float), width);
  }

  ValueIndex bytes(std::string name, std::uint64_t size_bytes, std::uint32_t width = 0) {
    pass_.values.push_back({.name = std::move(name), .size_bytes = size_bytes});
    widths_.push_back(width);
    return static_cast<ValueIndex>(pass_.values.size() - 1);
  }

  [[nodiscard]] std::uint32_t width_of(ValueIndex value) const { return widths_[value]; }

  const ModelSpec& model_;
  const StageSpec& stage_;
  const Shard shard_;
  // Of what is appended.
  std::uint64_t rows_;
  bool divides_rows_;
  std::uint32_t next_site_ = 0;  ///< Of the layer.
  ForwardPass pass_;
  std::vector<std::uint32_t> widths_;  ///< By value; 0 for what is no matrix of rows.
};

}  // namespace

ForwardPass forward_pass_of(const ModelSpec& model, const StageSpec& stage,
                            std::uint32_t microbatch_size, const Shard& shard) {
  TROUPE_ASSERT(stage.layer_begin < stage.layer_end && stage.layer_end <= model.layers);
  TROUPE_ASSERT(shard.index < shard.count);
  TROUPE_ASSERT(!(model.classifies() && model.tie_embeddings));
  return Builder{model, stage, microbatch_size, shard}.take();
}

}  // namespace troupe
