#include "troupe/engine/model_layout.hpp"

#include <algorithm>
#include <utility>

#include "model_families.hpp"

namespace troupe {
namespace {

/// Lists the tensors of one stage's arena, holder by holder.
class ArenaList {
public:
  ArenaList(const StageGraph& graph, const ModelSpec& model, const StageSpec& stage,
            const StageBounds& bounds, std::uint32_t microbatch_count,
            std::uint32_t microbatch_size)
      : graph_{graph},
        model_{model},
        stage_{stage},
        bounds_{bounds},
        microbatch_count_{microbatch_count},
        rows_{std::uint64_t{microbatch_size} * model.sequence} {}

  std::vector<TensorSpec> take(OptimizerKind optimizer) && {
    append_parameters("parameters", "");
    if (bounds_.trains) {
      append_parameters("gradients", "");
      append_optimizer_state(optimizer);
      append_tied();
    }
    append_slots();
    append_edges();
    if (model_.family == Family::llama) {
      append("constants", "turns", std::uint64_t{model_.sequence} * model_.head_size());
    }
    append_workspace(optimizer);
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
    for (const auto& spec : graph_.parameters) {
      if (spec.joined) {
        list_.back().size_bytes += spec.element_count() * sizeof(float);
      } else {
        append(holder, prefix + spec.name, spec.element_count());
      }
    }
  }

  void append_optimizer_state(OptimizerKind optimizer) {
    const auto array_count = optimizer_state_of(optimizer, graph_.parameters.front()).size();
    for (std::size_t array = 0; array < array_count; ++array) {
      for (const auto& spec : graph_.parameters) {
        append("optimizer state", std::to_string(array) + " " + spec.name,
               optimizer_state_of(optimizer, spec)[array]);
      }
    }
  }

  void append_tied() {
    if (!model_.tie_embeddings) return;
    const auto& tied = stage_.has_embedding ? graph_.parameters.front() : graph_.parameters.back();
    const auto floats = tied.element_count();
    if (stage_.has_embedding && stage_.has_head) {
      append("tied gradients", "head half", floats);
    } else if (stage_.has_embedding || stage_.has_head) {
      append("tied gradients", "in", floats);
      append("tied gradients", "out", floats);
    }
  }

  void append_slots() {
    if (graph_.slot_bytes == 0) return;
    for (std::uint32_t slot = 0; slot < bounds_.slots; ++slot) {
      list_.push_back({"slots", std::to_string(slot), graph_.slot_bytes});
    }
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

  /// Of one parameter at a time: sums over its rows and columns, and two norms.
  void append_optimizer_sums() {
    std::uint64_t most_bytes = 0;
    for (const auto& spec : graph_.parameters) {
      std::uint64_t bytes = tensor_alignment_bytes;
      for (const auto floats : optimizer_state_of(OptimizerKind::adafactor, spec)) {
        bytes += padded(floats * sizeof(float));
      }
      most_bytes = std::max(most_bytes, bytes);
    }
    list_.push_back({"workspace", "optimizer sums", most_bytes});
  }

  void append_workspace(OptimizerKind optimizer) {
    if (graph_.workspace_bytes > 0) {
      list_.push_back({"workspace", "values", graph_.workspace_bytes});
    }
    if (!bounds_.trains) return;
    list_.push_back({"workspace", "gradient squares", graph_.parameters.size() * sizeof(double)});
    if (optimizer == OptimizerKind::adafactor) append_optimizer_sums();
  }

  void append_tokens() {
    const auto append_integers = [this](const char* name, std::uint64_t per_sequence) {
      if (per_sequence == 0) return;
      const auto sequences = microbatch_count_ * rows_ / model_.sequence;
      list_.push_back({"tokens", name, sequences * per_sequence * sizeof(std::int32_t)});
    };
    const auto widths = model_.batch_widths();
    if (stage_.has_embedding) append_integers("tokens", widths.tokens);
    if (stage_.has_embedding) append_integers("segments", widths.segments);
    append_integers("lengths", widths.lengths);
    if (stage_.has_head) append_integers("targets", widths.targets);
  }

  void append_results() {
    const auto append_doubles = [this](const char* name, std::uint64_t count) {
      list_.push_back({"results", name, count * sizeof(double), true});
    };
    if (stage_.has_head) append_doubles("losses", microbatch_count_);
    if (bounds_.trains) append_doubles("gradient squares", graph_.parameters.size());
  }

  const StageGraph& graph_;
  const ModelSpec& model_;
  const StageSpec& stage_;
  const StageBounds& bounds_;
  std::uint64_t microbatch_count_;
  std::uint64_t rows_;
  std::vector<TensorSpec> list_;
};

}  // namespace

std::vector<ParameterSpec> parameters_of(const ModelSpec& model, const StageSpec& stage,
                                         const Shard& shard) {
  return forward_pass_of(model, stage, 1, shard).parameters;
}

std::vector<ParameterSpec> parameters_of(const ModelSpec& model) {
  return parameters_of(
      model,
      StageSpec{
          .layer_begin = 0, .layer_end = model.layers, .has_embedding = true, .has_head = true});
}

StageGraph graph_of(const ModelSpec& model, const StageSpec& stage, const StageBounds& bounds,
                    std::uint32_t microbatch_size, const Shard& shard) {
  return graph_of(model, stage,
                  {.microbatch_size = microbatch_size,
                   .trains = bounds.trains,
                   .splits_backward = bounds.splits_backward,
                   .recompute = bounds.recompute,
                   .shard = shard});
}

std::vector<std::uint64_t> optimizer_state_of(OptimizerKind optimizer, const ParameterSpec& spec) {
  const auto count = spec.element_count();
  switch (optimizer) {
    case OptimizerKind::adamw:
    case OptimizerKind::adam:
      return {count, count};
    case OptimizerKind::sgd:
      return {count};
    case OptimizerKind::adafactor:
      return {count / spec.shape.back(), spec.shape.back()};
  }
  return {};
}

std::vector<TensorSpec> tensors_of(const StageGraph& graph, const ModelSpec& model,
                                   const StageSpec& stage, const StageBounds& bounds,
                                   std::uint32_t microbatch_count, std::uint32_t microbatch_size,
                                   OptimizerKind optimizer) {
  return ArenaList{graph, model, stage, bounds, microbatch_count, microbatch_size}.take(optimizer);
}

std::vector<MemoryItem> memory_of(const ModelSpec& model, const StageSpec& stage,
                                  const StageBounds& bounds, std::uint32_t microbatch_count,
                                  std::uint32_t microbatch_size, OptimizerKind optimizer,
                                  const Shard& shard) {
  std::vector<MemoryItem> items;
  const auto graph = graph_of(model, stage, bounds, microbatch_size, shard);
  for (const auto& tensor :
       tensors_of(graph, model, stage, bounds, microbatch_count, microbatch_size, optimizer)) {
    if (items.empty() || items.back().name != tensor.holder) items.push_back({tensor.holder, 0});
    items.back().bytes += padded(tensor.size_bytes);
  }
  return items;
}

}  // namespace troupe
