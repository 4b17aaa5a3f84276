#include "troupe/engine/model_layout.hpp"

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

void append_norm(std::vector<ParameterSpec>& list, const std::string& name, std::uint64_t hidden) {
  list.push_back(vector(name + ".weight", hidden, Initial::ones));
  list.push_back(vector(name + ".bias", hidden, Initial::zeros));
}

void append_linear(std::vector<ParameterSpec>& list, const std::string& name, std::uint64_t in,
                   std::uint64_t out, float deviation) {
  list.push_back(matrix(name + ".weight", in, out, deviation));
  list.push_back(vector(name + ".bias", out, Initial::zeros));
}

void append_layer(std::vector<ParameterSpec>& list, const ModelSpec& model, std::uint32_t layer) {
  const auto prefix = "h." + std::to_string(layer);
  const std::uint64_t hidden = model.hidden;
  // Each layer adds to the residual twice: scaled so that the sum keeps its variance.
  const auto residual_deviation =
      static_cast<float>(double{deviation_default} / std::sqrt(2.0 * model.layers));
  append_norm(list, prefix + ".ln_1", hidden);
  append_linear(list, prefix + ".attn.c_attn", hidden, 3 * hidden, deviation_default);
  append_linear(list, prefix + ".attn.c_proj", hidden, hidden, residual_deviation);
  append_norm(list, prefix + ".ln_2", hidden);
  append_linear(list, prefix + ".mlp.c_fc", hidden, 4 * hidden, deviation_default);
  append_linear(list, prefix + ".mlp.c_proj", 4 * hidden, hidden, residual_deviation);
}

/// Lists the tensors of one stage's arena, holder by holder.
class ArenaList {
public:
  ArenaList(const ModelSpec& model, const StageSpec& stage, const StageBounds& bounds,
            std::uint32_t microbatch_count, std::uint32_t microbatch_size)
      : model_{model},
        stage_{stage},
        bounds_{bounds},
        microbatch_count_{microbatch_count},
        rows_{std::uint64_t{microbatch_size} * model.sequence},
        parameters_{parameters_of(model, stage)} {}

  std::vector<TensorSpec> take(std::uint32_t optimizer_words) && {
    append_parameters("parameters", "");
    if (bounds_.trains) {
      append_parameters("gradients", "");
      for (std::uint32_t word = 0; word < optimizer_words; ++word) {
        append_parameters("optimizer state", std::to_string(word) + " ");
      }
      append_tied();
    }
    for (std::uint32_t slot = 0; slot < bounds_.slots; ++slot) append_slot(slot);
    append_edges();
    append_workspace();
    append_tokens();
    append_results();
    return std::move(list_);
  }

private:
  void append(std::string holder, std::string name, std::uint64_t floats) {
    list_.push_back({std::move(holder), std::move(name), floats * sizeof(float)});
  }

  void append_hidden(std::string holder, std::string name, std::uint64_t factor = 1) {
    append(std::move(holder), std::move(name), factor * rows_ * model_.hidden);
  }

  void append_parameters(const std::string& holder, const std::string& prefix) {
    for (const auto& spec : parameters_) append(holder, prefix + spec.name, spec.element_count());
  }

  void append_tied() {
    if (!model_.tie_embeddings) return;
    const auto floats = std::uint64_t{model_.vocabulary} * model_.hidden;
    if (stage_.has_embedding && stage_.has_head) {
      append("tied gradients", "head half", floats);
    } else if (stage_.has_embedding || stage_.has_head) {
      append("tied gradients", "in", floats);
      append("tied gradients", "out", floats);
    }
  }

  void append_slot(std::uint32_t slot) {
    const auto prefix = std::to_string(slot) + ' ';
    const auto hidden_kept = kept_hidden_count(stage_, bounds_.trains);
    for (std::uint32_t i = 0; i < hidden_kept; ++i) {
      append_hidden("slots", prefix + "hidden " + std::to_string(i));
    }
    for (std::uint32_t i = 0; i < kept_layer_count(stage_, bounds_.trains); ++i) {
      append_slot_layer(prefix + "layer " + std::to_string(i) + ' ');
    }
    if (stage_.has_head) append_slot_head(prefix + "head ");
    if (bounds_.trains && bounds_.splits_backward) append_slot_gradients(prefix, hidden_kept);
  }

  void append_slot_layer(const std::string& prefix) {
    append_hidden("slots", prefix + "norm_1");
    append("slots", prefix + "mean_1", rows_);
    append("slots", prefix + "rstd_1", rows_);
    append_hidden("slots", prefix + "qkv", 3);
    append("slots", prefix + "log_sum_exp", rows_ * model_.heads);
    append_hidden("slots", prefix + "attended");
    append_hidden("slots", prefix + "middle");
    append_hidden("slots", prefix + "norm_2");
    append("slots", prefix + "mean_2", rows_);
    append("slots", prefix + "rstd_2", rows_);
    append_hidden("slots", prefix + "expanded", 4);
    append_hidden("slots", prefix + "activated", 4);
  }

  void append_slot_head(const std::string& prefix) {
    append_hidden("slots", prefix + "norm");
    append("slots", prefix + "mean", rows_);
    append("slots", prefix + "rstd", rows_);
    append("slots", prefix + "logits", rows_ * model_.vocabulary);
    list_.push_back({"slots", prefix + "loss", sizeof(double)});
  }

  void append_slot_gradients(const std::string& prefix, std::uint32_t hidden_kept) {
    for (std::uint32_t i = 0; i < hidden_kept; ++i) {
      append_hidden("slots", prefix + "d_hidden " + std::to_string(i));
    }
    for (std::uint32_t i = 0; i < stage_.layer_count(); ++i) {
      const auto layer = prefix + "layer " + std::to_string(i) + ' ';
      append_hidden("slots", layer + "d_norm_1");
      append_hidden("slots", layer + "d_middle");
      append_hidden("slots", layer + "d_norm_2");
    }
    append_hidden("slots", prefix + "top d_qkv", 3);
    append_hidden("slots", prefix + "top d_expanded", 4);
    if (stage_.has_head) append_hidden("slots", prefix + "head d_norm");
  }

  void append_edges() {
    const auto append_pool = [this](const std::string& name, std::uint32_t count) {
      for (std::uint32_t i = 0; i < count; ++i) {
        append_hidden("edge buffers", name + ' ' + std::to_string(i));
      }
    };
    append_pool("activation in", bounds_.activations_in);
    append_pool("activation out", bounds_.activations_out);
    append_pool("gradient in", bounds_.gradients_in);
    append_pool("gradient out", bounds_.gradients_out);
  }

  void append_workspace() {
    if (!bounds_.trains) return;
    if (bounds_.splits_backward) {
      append_hidden("workspace", "d_attended");
    } else {
      append_hidden("workspace", "d_hidden");
      append_hidden("workspace", "d_middle");
      append_hidden("workspace", "d_norm");
      append_hidden("workspace", "d_wide", 4);
    }
    list_.push_back({"workspace", "gradient squares", parameters_.size() * sizeof(double)});
  }

  void append_tokens() {
    const auto size_bytes = microbatch_count_ * rows_ * sizeof(std::int32_t);
    if (stage_.has_embedding) list_.push_back({"tokens", "tokens", size_bytes});
    if (stage_.has_head) list_.push_back({"tokens", "targets", size_bytes});
  }

  void append_results() {
    const auto append_doubles = [this](const char* name, std::uint64_t count) {
      list_.push_back({"results", name, count * sizeof(double), true});
    };
    if (stage_.has_head) append_doubles("losses", microbatch_count_);
    if (bounds_.trains) append_doubles("gradient squares", parameters_.size());
  }

  const ModelSpec& model_;
  const StageSpec& stage_;
  const StageBounds& bounds_;
  std::uint64_t microbatch_count_;
  std::uint64_t rows_;
  std::vector<ParameterSpec> parameters_;
  std::vector<TensorSpec> list_;
};

}  // namespace

std::uint64_t ParameterSpec::element_count() const noexcept {
  std::uint64_t count = 1;
  for (const auto extent : shape) count *= extent;
  return count;
}

std::vector<ParameterSpec> parameters_of(const ModelSpec& model, const StageSpec& stage) {
  TROUPE_ASSERT(stage.layer_begin < stage.layer_end && stage.layer_end <= model.layers);
  std::vector<ParameterSpec> list;
  const auto embedding = matrix("wte.weight", model.vocabulary, model.hidden, deviation_default);
  if (stage.has_embedding) {
    list.push_back(embedding);
    list.push_back(matrix("wpe.weight", model.sequence, model.hidden, deviation_default));
  }
  for (auto layer = stage.layer_begin; layer < stage.layer_end; ++layer) {
    append_layer(list, model, layer);
  }
  if (!stage.has_head) return list;
  append_norm(list, "ln_f", model.hidden);
  if (!model.tie_embeddings) {
    list.push_back(matrix("lm_head.weight", model.vocabulary, model.hidden, deviation_default));
  } else if (!stage.has_embedding) {
    list.push_back(embedding);
    list.back().owned = false;
  }
  return list;
}

std::vector<ParameterSpec> parameters_of(const ModelSpec& model) {
  return parameters_of(
      model,
      StageSpec{
          .layer_begin = 0, .layer_end = model.layers, .has_embedding = true, .has_head = true});
}

std::uint32_t kept_layer_count(const StageSpec& stage, bool trains) noexcept {
  return trains ? stage.layer_count() : 1;
}

std::uint32_t kept_hidden_count(const StageSpec& stage, bool trains) noexcept {
  const auto count =
      stage.layer_count() - 1 + (stage.has_embedding ? 1U : 0U) + (stage.has_head ? 1U : 0U);
  return trains || count == 0 ? count : 1;
}

std::vector<TensorSpec> tensors_of(const ModelSpec& model, const StageSpec& stage,
                                   const StageBounds& bounds, std::uint32_t microbatch_count,
                                   std::uint32_t microbatch_size, std::uint32_t optimizer_words) {
  return ArenaList{model, stage, bounds, microbatch_count, microbatch_size}.take(optimizer_words);
}

std::vector<MemoryItem> memory_of(const ModelSpec& model, const StageSpec& stage,
                                  const StageBounds& bounds, std::uint32_t microbatch_count,
                                  std::uint32_t microbatch_size, std::uint32_t optimizer_words) {
  std::vector<MemoryItem> items;
  for (const auto& tensor :
       tensors_of(model, stage, bounds, microbatch_count, microbatch_size, optimizer_words)) {
    if (items.empty() || items.back().name != tensor.holder) items.push_back({tensor.holder, 0});
    items.back().bytes += padded(tensor.size_bytes);
  }
  return items;
}

PassFlops flops_of(const ModelSpec& model, const StageSpec& stage, std::uint32_t microbatch_size) {
  const double rows = double{1} * microbatch_size * model.sequence;
  const double hidden = model.hidden;
  // c_attn 3, c_proj 1, c_fc 4, c_proj 4 times hidden^2.
  double products = 2.0 * rows * 12.0 * hidden * hidden * stage.layer_count();
  if (stage.has_head) products += 2.0 * rows * hidden * model.vocabulary;
  // Queries times keys, weights times values: two products of [T, C] with [C, T] forward, four
  // back.
  const double attention = 4.0 * rows * model.sequence * hidden * stage.layer_count();
  return {.forward = products + attention,
          .backward_input = products + 2.0 * attention,
          .backward_weight = products};
}

}  // namespace troupe
