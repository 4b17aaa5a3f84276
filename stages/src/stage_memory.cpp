#include "stage_memory.hpp"

#include <algorithm>
#include <string>

#include "troupe/engine/check.hpp"

namespace troupe::stages {
namespace {

void cut_edges(ArenaCutter& cutter, const StageBounds& bounds, StageBuffers& buffers) {
  const auto cut_pool = [&](Edge edge, const std::string& name, std::uint32_t count) {
    for (std::uint32_t i = 0; i < count; ++i) {
      buffers.add(edge, Buffer{cutter.buffer(name + ' ' + std::to_string(i))});
    }
  };
  cut_pool(Edge::activation_in, "activation in", bounds.activations_in);
  cut_pool(Edge::activation_out, "activation out", bounds.activations_out);
  cut_pool(Edge::gradient_in, "gradient in", bounds.gradients_in);
  cut_pool(Edge::gradient_out, "gradient out", bounds.gradients_out);
}

}  // namespace

BufferView ArenaCutter::buffer(std::string_view name) {
  TROUPE_ASSERT(next_ < list_.size() && list_[next_].name == name);
  const auto size_bytes = static_cast<std::size_t>(list_[next_++].size_bytes);
  const BufferView view{arena_.data + offset_bytes_, size_bytes, arena_.space};
  offset_bytes_ += padded(size_bytes);
  TROUPE_ASSERT(offset_bytes_ <= arena_.size_bytes);
  return view;
}

std::span<float> ArenaCutter::floats(std::string_view name) {
  const auto view = buffer(name);
  return {reinterpret_cast<float*>(view.data), view.size_bytes / sizeof(float)};
}

std::span<double> ArenaCutter::doubles(std::string_view name) {
  const auto view = buffer(name);
  return {reinterpret_cast<double*>(view.data), view.size_bytes / sizeof(double)};
}

std::span<std::int32_t> ArenaCutter::integers(std::string_view name) {
  const auto view = buffer(name);
  return {reinterpret_cast<std::int32_t*>(view.data), view.size_bytes / sizeof(std::int32_t)};
}

StageMemory::StageMemory(const StageProps& props, const StageGraph& graph, ArenaCutter& cutter,
                         ArenaCutter& host_cutter, StageBuffers& buffers) {
  const auto shape = props.shape();
  cut_parameters(shape, graph, cutter);
  if (props.bounds.trains) {
    cut_gradients(shape, graph, cutter);
    cut_updated(shape, graph, cutter);
  }
  if (cutter.at("tied gradients")) {
    if (props.spec.has_embedding && props.spec.has_head) {
      head_half = cutter.floats("head half");
    } else {
      buffers.add(Edge::tied_in, Buffer{cutter.buffer("in")});
      buffers.add(Edge::tied_out, Buffer{cutter.buffer("out")});
    }
  }
  const bool predicts = props.spec.has_head && props.model.classifies();
  if (shape.runs_passes()) {
    slots.resize(props.bounds.slots);
    for (std::uint32_t i = 0; cutter.at("slots"); ++i) {
      const auto memory = cutter.buffer(std::to_string(i));
      if (props.bounds.offloads) {
        places.push_back(memory);
      } else {
        slots[i].memory = memory;
      }
    }
    cut_edges(cutter, props.bounds, buffers);
    if (cutter.at("constants")) turns = cutter.floats("turns");
    if (graph.workspace_bytes > 0) workspace = cutter.buffer("values");
    if (predicts) predictions = cutter.integers("predictions");
    for (std::uint32_t i = 0; host_cutter.at("offloaded slots"); ++i) {
      host.slots.push_back(host_cutter.buffer(std::to_string(i)));
    }
  }
  if (shape.updates()) gradient_squares = cutter.doubles("gradient squares");
  if (cutter.at("workspace")) optimizer_sums = cutter.floats("optimizer sums");
  if (shape.runs_passes()) cut_batch(props, predicts, cutter, host_cutter);
  if (shape.updates()) host.gradient_squares = host_cutter.doubles("gradient squares");
}

/// What of a batch is uploaded, and what the host reads of its passes.
void StageMemory::cut_batch(const StageProps& props, bool predicts, ArenaCutter& cutter,
                            ArenaCutter& host_cutter) {
  const auto widths = props.model.batch_widths();
  if (props.spec.has_embedding) tokens = cutter.integers("tokens");
  if (props.spec.has_embedding && widths.segments > 0) segments = cutter.integers("segments");
  if (widths.lengths > 0) lengths = cutter.integers("lengths");
  if (props.spec.has_head) targets = cutter.integers("targets");
  if (props.spec.has_head) host.losses = host_cutter.doubles("losses");
  if (predicts) host.predictions = host_cutter.integers("predictions");
}

/// Joined parameters are one tensor of the list.
std::vector<std::span<float>> StageMemory::cut_each(std::span<const ParameterSpec> specs,
                                                    ArenaCutter& cutter, std::uint32_t copy) {
  std::vector<std::span<float>> pieces;
  std::span<float> rest;
  for (const auto& spec : specs) {
    if (!spec.joined) rest = cutter.floats(name_of_copy(copy, spec.name));
    const auto count = static_cast<std::size_t>(spec.element_count());
    pieces.push_back(rest.first(count));
    rest = rest.subspan(count);
  }
  return pieces;
}

void StageMemory::cut_parameters(const StageShape& shape, const StageGraph& graph,
                                 ArenaCutter& cutter) {
  for (std::uint32_t copy = 0; copy < shape.copy_count(); ++copy) {
    values.push_back(cut_each(graph.parameters, cutter, copy));
  }
  for (const auto& spec : graph.parameters) {
    parameters.push_back({.spec = &spec, .values = {}, .gradients = {}});
  }
  use_values(0);
}

void StageMemory::use_values(std::uint32_t copy) {
  for (std::size_t i = 0; i < parameters.size(); ++i) parameters[i].values = values.at(copy)[i];
}

void StageMemory::use_gradients(std::uint32_t copy) {
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    parameters[i].gradients = gradients.at(copy)[i];
  }
}

void StageMemory::cut_gradients(const StageShape& shape, const StageGraph& graph,
                                ArenaCutter& cutter) {
  const auto in_parts = kept_in_parts(graph, shape.holder, shape.sharding);
  is_kept_in_parts.resize(parameters.size());
  gradient_parts.resize(in_parts.size());
  for (std::uint32_t copy = 0; copy < shape.copy_count(); ++copy) {
    gradients.emplace_back(parameters.size());
    cut_gradients_of_copy(in_parts, graph, cutter, copy);
  }
  use_gradients(0);
}

void StageMemory::cut_gradients_of_copy(const std::vector<bool>& in_parts, const StageGraph& graph,
                                        ArenaCutter& cutter, std::uint32_t copy) {
  for (std::size_t b = 0; b < in_parts.size(); ++b) {
    const auto& [begin, end] = graph.buckets[b];
    if (in_parts[b]) {
      gradient_parts[b] = cutter.floats("part of bucket " + std::to_string(b));
      continue;
    }
    const auto pieces =
        cut_each(std::span{graph.parameters}.subspan(begin, end - begin), cutter, copy);
    std::ranges::copy(pieces, gradients[copy].begin() + begin);
  }
  for (std::uint32_t p = 0; p < gradient_place_count; ++p) {
    std::span<float> place;
    for (auto b = p; b < in_parts.size(); b += gradient_place_count) {
      if (!in_parts[b]) continue;
      if (place.empty()) place = cutter.floats("place " + std::to_string(p));
      const auto& [begin, end] = graph.buckets[b];
      const auto layout = layout_of(graph, graph.buckets[b]);
      for (auto i = begin; i < end; ++i) {
        is_kept_in_parts[i] = true;
        gradients[copy][i] = place.subspan(layout.begins[i - begin], parameters[i].values.size());
      }
    }
  }
}

void StageMemory::cut_updated(const StageShape& shape, const StageGraph& graph,
                              ArenaCutter& cutter) {
  const auto ranges = updated_by(graph, shape.holder, shape.sharding);
  updated.resize(parameters.size());
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    updated[i].values = parameters[i].values.subspan(ranges[i].begin, ranges[i].size());
    updated[i].gradients = parameters[i].gradients.subspan(ranges[i].begin, ranges[i].size());
  }
  for (std::size_t b = 0; b < gradient_parts.size(); ++b) {
    const auto kept = gradient_parts[b];
    if (kept.empty()) continue;
    const auto layout = layout_of(graph, graph.buckets[b]);
    const auto part = part_of_bucket(layout, shape.holder);
    for (auto i = graph.buckets[b].begin; i < graph.buckets[b].end; ++i) {
      if (ranges[i].size() == 0) continue;
      const auto first = layout.begins[i - graph.buckets[b].begin] + ranges[i].begin;
      updated[i].gradients = kept.subspan(first - part.begin, ranges[i].size());
    }
  }
  for (std::size_t array = 0; cutter.at("optimizer state"); ++array) {
    const auto prefix = std::to_string(array) + ' ';
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      updated[i].state.push_back(cutter.floats(prefix + graph.parameters[i].name));
    }
  }
}

}  // namespace troupe::stages
