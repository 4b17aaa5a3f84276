#include "troupe/engine/model_layout.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include "troupe/engine/check.hpp"

#include "model_families.hpp"

namespace troupe {
namespace {

/// Lists the tensors of one stage's arena, holder by holder.
class ArenaList {
public:
  ArenaList(const StageGraph& graph, const StageShape& shape)
      : graph_{graph},
        shape_{shape},
        model_{shape.model},
        stage_{shape.spec},
        bounds_{shape.bounds},
        rows_{std::uint64_t{shape.microbatch_size} * shape.model.sequence} {}

  std::vector<TensorSpec> take() && {
    for (std::uint32_t copy = 0; copy < shape_.copy_count(); ++copy) {
      append_parameters("parameters", 0, parameter_count(), copy);
    }
    for (std::uint32_t copy = 0; bounds_.trains && copy < shape_.copy_count(); ++copy) {
      append_gradients(copy);
    }
    if (shape_.updates()) append_optimizer_state();
    if (shape_.runs_passes()) {
      if (bounds_.trains) append_tied();
      append_slots();
      append_edges();
      if (std::ranges::find(graph_.operations, OperationKind::rotate, &Operation::kind)
          != graph_.operations.end()) {
        append("constants", "turns", std::uint64_t{model_.sequence} * model_.head_size());
      }
      append_pass_workspace();
    }
    if (shape_.updates()) append_update_workspace();
    if (shape_.runs_passes()) {
      append_tokens();
      append_offloaded();
    }
    append_results();
    return std::move(list_);
  }

private:
  void append(std::string use, std::string name, std::uint64_t floats) {
    list_.push_back({std::move(use), std::move(name), floats * sizeof(float)});
  }

  void append_hidden(std::string use, std::string name) {
    const auto rows = shape_.shard.divides_rows ? rows_ / shape_.shard.count : rows_;
    append(std::move(use), std::move(name), rows * model_.hidden);
  }

  [[nodiscard]] std::uint32_t parameter_count() const {
    return static_cast<std::uint32_t>(graph_.parameters.size());
  }

  void append_parameters(const std::string& use, std::uint32_t begin, std::uint32_t end,
                         std::uint32_t copy) {
    for (auto i = begin; i < end; ++i) {
      const auto& spec = graph_.parameters[i];
      if (spec.joined) {
        list_.back().size_bytes += spec.element_count() * sizeof(float);
      } else {
        append(use, name_of_copy(copy, spec.name), spec.element_count());
      }
    }
  }

  void append_gradients(std::uint32_t copy) {
    const auto in_parts = kept_in_parts(graph_, shape_.holder, shape_.sharding);
    std::array<std::uint64_t, gradient_place_count> places{};
    for (std::size_t b = 0; b < in_parts.size(); ++b) {
      const auto& bucket = graph_.buckets[b];
      if (!in_parts[b]) {
        append_parameters("gradients", bucket.begin, bucket.end, copy);
        continue;
      }
      const auto layout = layout_of(graph_, bucket);
      append("gradients", "part of bucket " + std::to_string(b),
             part_of_bucket(layout, shape_.holder).size());
      auto& place = places[b % gradient_place_count];
      place = std::max(place, layout.size);
    }
    for (std::size_t p = 0; p < places.size(); ++p) {
      if (places[p] > 0) append("gradients", "place " + std::to_string(p), places[p]);
    }
  }

  void append_optimizer_state() {
    const auto updated = updated_by(graph_, shape_.holder, shape_.sharding);
    const auto floats_of = [&](std::size_t i) {
      return optimizer_state_of(shape_.optimizer, graph_.parameters[i], updated[i].size());
    };
    for (std::size_t array = 0; array < floats_of(0).size(); ++array) {
      for (std::size_t i = 0; i < graph_.parameters.size(); ++i) {
        append("optimizer state", std::to_string(array) + " " + graph_.parameters[i].name,
               floats_of(i)[array]);
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
    const auto count = bounds_.offloads ? resident_slots : bounds_.slots;
    for (std::uint32_t slot = 0; slot < count; ++slot) {
      list_.push_back({"slots", std::to_string(slot), graph_.slot_bytes});
    }
  }

  void append_offloaded() {
    if (!bounds_.offloads || graph_.slot_bytes == 0) return;
    for (std::uint32_t slot = 0; slot < bounds_.slots; ++slot) {
      list_.push_back({"offloaded slots", std::to_string(slot), graph_.slot_bytes, true});
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
      for (const auto floats :
           optimizer_state_of(OptimizerKind::adafactor, spec, spec.element_count())) {
        bytes += padded(floats * sizeof(float));
      }
      most_bytes = std::max(most_bytes, bytes);
    }
    list_.push_back({"workspace", "optimizer sums", most_bytes});
  }

  void append_pass_workspace() {
    if (graph_.workspace_bytes > 0) {
      list_.push_back({"workspace", "values", graph_.workspace_bytes});
    }
    append_predictions("workspace", 1, false);
  }

  void append_update_workspace() {
    list_.push_back({"workspace", "gradient squares", graph_.parameters.size() * sizeof(double)});
    if (shape_.optimizer == OptimizerKind::adafactor) append_optimizer_sums();
  }

  /// The class that each sequence is taken for.
  void append_predictions(const char* use, std::uint64_t microbatch_count, bool for_host) {
    if (!stage_.has_head || !model_.classifies()) return;
    list_.push_back({use, "predictions",
                     microbatch_count * shape_.microbatch_size * sizeof(std::int32_t), for_host});
  }

  void append_tokens() {
    const auto append_integers = [this](const char* name, std::uint64_t per_sequence) {
      if (per_sequence == 0) return;
      const auto sequences = shape_.microbatch_count * rows_ / model_.sequence;
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
    if (shape_.runs_passes()) {
      if (stage_.has_head) append_doubles("losses", shape_.microbatch_count);
      append_predictions("results", shape_.microbatch_count, true);
    }
    if (shape_.updates()) append_doubles("gradient squares", graph_.parameters.size());
  }

  const StageGraph& graph_;
  const StageShape& shape_;
  const ModelSpec& model_;
  const StageSpec& stage_;
  const StageBounds& bounds_;
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

StageGraph graph_of(const StageShape& shape) {
  return graph_of(shape.model, shape.spec,
                  {.microbatch_size = shape.microbatch_size,
                   .trains = shape.bounds.trains,
                   .splits_backward = shape.bounds.splits_backward,
                   .recompute = shape.bounds.recompute,
                   .shard = shape.shard});
}

std::vector<std::uint64_t> optimizer_state_of(OptimizerKind optimizer, const ParameterSpec& spec,
                                              std::uint64_t element_count) {
  switch (optimizer) {
    case OptimizerKind::adamw:
    case OptimizerKind::adam:
      return {element_count, element_count};
    case OptimizerKind::sgd:
      return {element_count};
    case OptimizerKind::adafactor:
      TROUPE_ASSERT(element_count == spec.element_count());
      return {element_count / spec.shape.back(), spec.shape.back()};
  }
  return {};
}

std::vector<TensorSpec> tensors_of(const StageGraph& graph, const StageShape& shape) {
  return ArenaList{graph, shape}.take();
}

std::vector<MemoryItem> memory_of(const StageShape& shape) {
  std::vector<MemoryItem> items;
  for (const auto& tensor : tensors_of(graph_of(shape), shape)) {
    if (tensor.size_bytes == 0) continue;
    if (items.empty() || items.back().name != tensor.use) {
      items.push_back({tensor.use, 0, tensor.for_host});
    }
    items.back().bytes += padded(tensor.size_bytes);
  }
  return items;
}

}  // namespace troupe
