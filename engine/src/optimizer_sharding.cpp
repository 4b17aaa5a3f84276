#include "troupe/engine/optimizer_sharding.hpp"

#include <algorithm>

#include "troupe/engine/part.hpp"

namespace troupe {

BucketLayout layout_of(const StageGraph& graph, const Bucket& bucket) {
  constexpr auto alignment = tensor_alignment_bytes / sizeof(float);
  BucketLayout layout;
  for (auto i = bucket.begin; i < bucket.end; ++i) {
    const auto& spec = graph.parameters[i];
    if (!spec.joined) layout.size = (layout.size + alignment - 1) / alignment * alignment;
    layout.begins.push_back(layout.size);
    layout.size += spec.element_count();
  }
  return layout;
}

ElementRange part_of_bucket(const BucketLayout& layout, const Holder& holder) {
  const auto part = part_of(layout.size * sizeof(float), holder.count, holder.index);
  return {part.begin_bytes / sizeof(float), (part.begin_bytes + part.size_bytes) / sizeof(float)};
}

std::vector<ElementRange> updated_by(const StageGraph& graph, const Holder& holder,
                                     OptimizerSharding sharding) {
  std::vector<ElementRange> ranges;
  const bool is_client = holder.has_server && !holder.is_server();
  for (const auto& spec : graph.parameters) {
    ranges.push_back({0, is_client ? 0 : spec.element_count()});
  }
  if (holder.has_server) return ranges;
  if (sharding == OptimizerSharding::none || holder.count == 1) return ranges;
  for (const auto& bucket : graph.buckets) {
    const auto layout = layout_of(graph, bucket);
    const auto [begin, end] = part_of_bucket(layout, holder);
    for (auto i = bucket.begin; i < bucket.end; ++i) {
      const auto first = layout.begins[i - bucket.begin];
      const auto within = [&](std::uint64_t bound) {
        return std::clamp(bound, first, first + ranges[i].end) - first;
      };
      ranges[i] = {within(begin), within(end)};
    }
  }
  return ranges;
}

std::vector<bool> kept_in_parts(const StageGraph& graph, const Holder& holder,
                                OptimizerSharding sharding) {
  const bool keeps_parts = sharding == OptimizerSharding::zero2 && holder.count > 1;
  std::vector<bool> kept(graph.buckets.size(), keeps_parts);
  if (!graph.has_tied_bucket) return kept;
  const auto tied = graph.buckets.back().begin;
  for (std::size_t b = 0; b < kept.size(); ++b) {
    const auto is_here = [&](std::uint32_t parameter) {
      return graph.buckets[b].begin <= parameter && parameter < graph.buckets[b].end;
    };
    if (std::ranges::any_of(graph.operations, [&](const Operation& of) {
          return of.weight == tied && (is_here(of.weight) || is_here(of.bias));
        })) {
      kept[b] = false;
    }
  }
  return kept;
}

}  // namespace troupe
