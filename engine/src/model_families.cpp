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

/// What `shard` has of `count` things in a row: as equal as can be, the first shard no less than
/// others.
struct Share {
  Share(std::uint64_t count, const Shard& shard)
      : begin{(count * shard.index + shard.count - 1) / shard.count},
        end{(count * (shard.index + 1) + shard.count - 1) / shard.count} {}

  [[nodiscard]] std::uint32_t size() const { return static_cast<std::uint32_t>(end - begin); }

  std::uint64_t begin;
  std::uint64_t end;
};

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
    const auto norm_1 = share(layer_norm(name + ".ln_1", x));
    const auto qkv = gpt2_columns(name + ".attn.c_attn", norm_1, model_.hidden, 3);
    const auto attended = attention(name + ".attn", qkv);
    const auto middle = gpt2_rows(name + ".attn.c_proj", attended, model_.hidden, x);
    const auto norm_2 = share(layer_norm(name + ".ln_2", middle));
    const auto wide = model_.feed_forward_width();
    const auto activated = gelu(name + ".mlp.act", gpt2_columns(name + ".mlp.c_fc", norm_2, wide));
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
    const auto qkv = llama_columns(
        name + ".self_attn",
        {{"q_proj", model_.hidden}, {"k_proj", kv_width}, {"v_proj", kv_width}}, norm_1);
    rotate(qkv);
    const auto attended = attention(name + ".self_attn", qkv);
    const auto middle = llama_rows(name + ".self_attn.o_proj", attended, model_.hidden, x);
    const auto norm_2 = share(rms_norm(name + ".post_attention_layernorm", middle));
    const auto expanded =
        llama_columns(name + ".mlp", {{"gate_proj", wide}, {"up_proj", wide}}, norm_2);
    const auto activated = swiglu(name + ".mlp.act", expanded);
    return llama_rows(name + ".mlp.down_proj", activated, wide, middle);
  }

  struct Output {
    const char* name;
    std::uint32_t width;
  };

  /// One product with the matrices of all outputs, which lie below each other; the shards divide
  /// each.
  ValueIndex llama_columns(const std::string& name, const std::vector<Output>& outputs,
                           ValueIndex x) {
    const auto weight = static_cast<std::uint32_t>(pass_.parameters.size());
    std::uint32_t out = 0;
    for (const auto& output : outputs) {
      parameter(slice(
          matrix(name + "." + output.name + ".weight", output.width, width_of(x), deviation()), 0,
          shard_));
      pass_.parameters.back().joined = out > 0;
      out += Share{output.width, shard_}.size();
    }
    return linear(name + "." + outputs.front().name, x, out,
                  {.layout = WeightLayout::out_in, .weight = weight});
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
    pass_.operations.push_back({.kind = OperationKind::rms_norm,
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
    const Share words{model_.vocabulary, shard_};
    const auto weight = parameter(token_embedding());
    auto positions = no_parameter;
    if (model_.family == Family::gpt2) {
      positions = parameter(matrix("wpe.weight", model_.sequence, model_.hidden, deviation()));
    }
    const auto y = value("embedded", model_.hidden);
    pass_.operations.push_back({.kind = OperationKind::embedding,
                                .weight = weight,
                                .bias = positions,
                                .in = words.size(),
                                .out = model_.hidden,
                                .is_term = true,
                                .word_begin = static_cast<std::uint32_t>(words.begin),
                                .y = y});
    return sum_shards(y, no_value);
  }

  void head(ValueIndex norm) {
    const Share words{model_.vocabulary, shard_};
    const auto logits = linear("logits", share(norm), words.size(),
                               {.layout = WeightLayout::out_in, .weight = head_weight()});
    const auto word_begin = static_cast<std::uint32_t>(words.begin);
    auto statistics = no_value;
    if (shard_.count > 1) {
      statistics = bytes("word statistics",
                         shard_.count * padded(rows_ * word_statistics_count * sizeof(float)));
      pass_.operations.push_back({.kind = OperationKind::word_statistics,
                                  .in = words.size(),
                                  .word_begin = word_begin,
                                  .x = logits,
                                  .y = statistics});
      in_place(OperationKind::gather_shards, statistics);
    }
    pass_.operations.push_back({.kind = OperationKind::cross_entropy,
                                .in = words.size(),
                                .word_begin = word_begin,
                                .x = logits,
                                .saved = {bytes("loss", sizeof(double)), statistics}});
  }

  // Between shards.

  /// What a product whose columns the shards divide reads.
  ValueIndex share(ValueIndex x) {
    if (!divides_rows_) return in_place(OperationKind::share, x);
    const auto width = width_of(x);
    const auto y = value("all rows of " + pass_.values[x].name, width);
    pass_.operations.push_back(
        {.kind = OperationKind::gather_rows, .in = width, .out = width, .x = x, .y = y});
    return y;
  }

  /// The sum of what every shard has in x, and `residual`, which without `divides_rows_` is in the
  /// first term.
  ValueIndex sum_shards(ValueIndex x, ValueIndex residual) {
    if (!divides_rows_) return in_place(OperationKind::sum_shards, x);
    const auto width = width_of(x);
    const auto y = own_value("own rows of " + pass_.values[x].name, width);
    pass_.operations.push_back({.kind = OperationKind::sum_to_rows,
                                .in = width,
                                .out = width,
                                .x = x,
                                .residual = residual,
                                .y = y});
    return y;
  }

  ValueIndex in_place(OperationKind kind, ValueIndex x) {
    if (shard_.count > 1) pass_.operations.push_back({.kind = kind, .x = x, .y = x});
    return x;
  }

  ValueIndex layer_norm(const std::string& name, ValueIndex x) {
    const auto width = width_of(x);
    const auto gain = parameter(vector(name + ".weight", width, Initial::ones));
    const auto bias = parameter(vector(name + ".bias", width, Initial::zeros));
    const auto y = own_value(name, width);
    pass_.operations.push_back(
        {.kind = OperationKind::layer_norm,
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

  struct LinearParameters {
    WeightLayout layout{};
    std::uint32_t weight = no_parameter;
    std::uint32_t bias = no_parameter;
    bool is_term = false;
  };

  ValueIndex linear(std::string name, ValueIndex x, std::uint32_t out,
                    const LinearParameters& parameters, ValueIndex residual = no_value) {
    const auto y = value(std::move(name), out);
    pass_.operations.push_back({.kind = OperationKind::linear,
                                .layout = parameters.layout,
                                .weight = parameters.weight,
                                .bias = parameters.bias,
                                .in = width_of(x),
                                .out = out,
                                .is_term = parameters.is_term,
                                .x = x,
                                .residual = divides_rows_ ? no_value : residual,
                                .y = y});
    return parameters.is_term ? sum_shards(y, residual) : y;
  }

  ValueIndex attention(const std::string& name, ValueIndex qkv) {
    const auto heads = Share{model_.heads, shard_}.size();
    const auto width = heads * model_.head_size();
    const auto y = value(name, width);
    pass_.operations.push_back({.kind = OperationKind::attention,
                                .in = width_of(qkv),
                                .out = width,
                                .x = qkv,
                                .y = y,
                                .saved = {value(name + " log_sum_exp", heads), no_value}});
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
    pass_.input = own_value("input", model_.hidden);
    return pass_.input;
  }

  void begin_block(ForwardPass::Block::Kind kind) {
    pass_.blocks.push_back(
        {.kind = kind,
         .operations_begin = static_cast<std::uint32_t>(pass_.operations.size()),
         .parameters_begin = static_cast<std::uint32_t>(pass_.parameters.size())});
  }

  /// As in Radford et al. 2019, and so for what comes with an embedding.
  [[nodiscard]] static float deviation() { return 0.02F; }
  /// Each layer adds to the residual twice: scaled so that the sum keeps its variance.
  [[nodiscard]] float residual_deviation() const {
    return static_cast<float>(double{deviation()} / std::sqrt(2.0 * model_.layers));
  }

  [[nodiscard]] ParameterSpec token_embedding() const {
    return vocabulary_matrix(model_.family == Family::llama ? "model.embed_tokens.weight"
                                                            : "wte.weight");
  }
  [[nodiscard]] ParameterSpec vocabulary_matrix(const char* name) const {
    return slice(matrix(name, model_.vocabulary, model_.hidden, deviation()), 0, shard_);
  }

  std::uint32_t head_weight() {
    if (!model_.tie_embeddings) return parameter(vocabulary_matrix("lm_head.weight"));
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
  std::uint64_t rows_;
  bool divides_rows_;
  ForwardPass pass_;
  std::vector<std::uint32_t> widths_;  ///< By value; 0 for what is no matrix of rows.
};

}  // namespace

ForwardPass forward_pass_of(const ModelSpec& model, const StageSpec& stage,
                            std::uint32_t microbatch_size, const Shard& shard) {
  TROUPE_ASSERT(stage.layer_begin < stage.layer_end && stage.layer_end <= model.layers);
  TROUPE_ASSERT(shard.index < shard.count);
  return Builder{model, stage, microbatch_size, shard}.take();
}

}  // namespace troupe
