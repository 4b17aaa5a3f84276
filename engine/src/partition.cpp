#include "troupe/engine/partition.hpp"

#include <algorithm>
#include <numeric>
#include <string>

namespace troupe {
namespace {

Partition cut(std::span<const std::uint32_t> layers_per_stage) {
  Partition partition;
  std::uint32_t begin = 0;
  for (const auto count : layers_per_stage) {
    partition.push_back({.layer_begin = begin, .layer_end = begin + count});
    begin += count;
  }
  partition.front().has_embedding = true;
  partition.back().has_head = true;
  return partition;
}

std::string join(std::span<const std::uint32_t> counts) {
  std::string text;
  for (const auto count : counts) {
    if (!text.empty()) text += ", ";
    text += std::to_string(count);
  }
  return '[' + text + ']';
}

Expected<Done> check_counts(const ModelSpec& model, std::uint32_t stage_count) {
  if (stage_count == 0) return Error{Errc::invalid_config, "a model needs at least one stage"};
  if (model.layers < stage_count) {
    return Error{Errc::invalid_config,
                 "the model has " + std::to_string(model.layers) + " layers, too few for "
                     + std::to_string(stage_count)
                     + " virtual stages of at least one layer each: use fewer stages or chunks, or "
                       "more layers"};
  }
  return Done{};
}

}  // namespace

// Each layer goes where the stage's cost afterwards is least. Any other split moves some layer from
// where this rule put it to a stage that ends at least as costly, so none has a cheaper costliest
// stage, nor, where layers cost the same, a smaller sum of squares.
Expected<Partition> balance(const ModelSpec& model, std::span<const PartCosts> costs) {
  const auto stage_count = static_cast<std::uint32_t>(costs.size());
  if (const auto checked = check_counts(model, stage_count); !checked) return checked.error();

  std::vector<std::uint32_t> counts(stage_count, 1);
  const auto cost_with_one_more = [&](std::uint32_t stage) {
    return (stage == 0 ? costs[stage].embedding : 0.0)
           + (stage + 1 == stage_count ? costs[stage].head : 0.0)
           + costs[stage].layer * (counts[stage] + 1);
  };
  for (auto left = model.layers - stage_count; left > 0; --left) {
    std::uint32_t cheapest = 0;
    for (std::uint32_t stage = 1; stage < stage_count; ++stage) {
      if (cost_with_one_more(stage) < cost_with_one_more(cheapest)) cheapest = stage;
    }
    ++counts[cheapest];
  }
  return cut(counts);
}

Expected<Partition> partition_of(const ModelSpec& model, std::uint32_t stage_count,
                                 std::span<const std::uint32_t> layers_per_stage) {
  if (const auto checked = check_counts(model, stage_count); !checked) return checked.error();

  const auto list = "layers_per_stage = " + join(layers_per_stage);
  if (layers_per_stage.size() != stage_count) {
    return Error{Errc::invalid_config, list + " has " + std::to_string(layers_per_stage.size())
                                           + " entries; give one for each of the "
                                           + std::to_string(stage_count) + " virtual stages"};
  }
  if (const auto zero = std::ranges::find(layers_per_stage, 0U); zero != layers_per_stage.end()) {
    return Error{Errc::invalid_config, list + " gives virtual stage "
                                           + std::to_string(zero - layers_per_stage.begin())
                                           + " no layer; every stage needs at least one"};
  }
  const auto sum =
      std::accumulate(layers_per_stage.begin(), layers_per_stage.end(), std::uint64_t{0});
  if (sum != model.layers) {
    return Error{Errc::invalid_config, list + " adds up to " + std::to_string(sum)
                                           + " layers; the model has "
                                           + std::to_string(model.layers)};
  }
  return cut(layers_per_stage);
}

}  // namespace troupe
