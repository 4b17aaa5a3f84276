#include "troupe/engine/measured_costs.hpp"

#include <algorithm>

#include "troupe/engine/check.hpp"

namespace troupe {

void MeasuredCosts::add(const Action& action, std::int64_t duration_ns) {
  auto& mean = stages_.at(action.stage.value())[static_cast<std::size_t>(action.pass)];
  mean.sum_ns += static_cast<double>(duration_ns);
  mean.weight += 1.0;
}

void MeasuredCosts::fade(double share) {
  TROUPE_ASSERT(share > 0.0 && share <= 1.0);
  for (auto& means : stages_) {
    for (auto& mean : means) {
      mean.sum_ns *= share;
      mean.weight *= share;
    }
  }
}

bool MeasuredCosts::is_complete() const {
  return std::ranges::all_of(stages_, [](const StageMeans& means) {
    const bool has_whole = of(means, Pass::backward).was_seen();
    const bool has_parts =
        of(means, Pass::backward_input).was_seen() && of(means, Pass::backward_weight).was_seen();
    return of(means, Pass::forward).was_seen() && (has_whole || has_parts);
  });
}

CostModel MeasuredCosts::costs() const {
  TROUPE_ASSERT(is_complete());
  CostModel costs{.stages = {}};
  for (const auto& means : stages_) {
    const auto forward_ns = of(means, Pass::forward).value_ns();
    const auto whole_ns = of(means, Pass::backward).value_ns();
    const auto input_ns = of(means, Pass::backward_input).value_ns();
    const auto weight_ns = of(means, Pass::backward_weight).value_ns();
    const bool has_whole = of(means, Pass::backward).was_seen();
    const bool has_parts = of(means, Pass::backward_input).was_seen();
    costs.stages.push_back({.forward_ns = forward_ns,
                            .backward_ns = has_whole ? whole_ns : input_ns + weight_ns,
                            .backward_input_ns = has_parts ? input_ns : whole_ns / 2,
                            .backward_weight_ns = has_parts ? weight_ns : whole_ns - whole_ns / 2});
  }
  return costs;
}

}  // namespace troupe
