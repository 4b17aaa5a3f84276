#include "policy_search.hpp"

#include <algorithm>
#include <utility>

#include "troupe/engine/check.hpp"

namespace troupe {

namespace {

/// Choosing an action takes about as long as simulating so many.
constexpr std::size_t choice_work = 8;

/// How many starts the search by stages descends from.
constexpr std::size_t descents_max = 2;

}  // namespace

PolicySearch::PolicySearch(StepProblem& problem, WorkBudget& budget, bool may_be_whole)
    : problem_{problem}, budget_{budget}, may_be_whole_{may_be_whole}, scheduler_{problem} {}

void PolicySearch::search_choices() {
  const auto stage_count = problem_.stages().size();
  const std::vector<std::uint32_t> unlimited(stage_count, problem_.microbatch_count());
  for (const bool by_round_trip : {false, true}) {
    if (by_round_trip && !has_chunks()) continue;
    for (const auto& ahead_by_stage : {ahead(0), ahead(1), unlimited}) {
      for (const bool whole : {false, true}) {
        if (whole && !may_be_whole_) continue;
        if (!starts_.empty() && (budget_.is_spent() || is_done())) continue;
        ListPolicy policy{.slots = slots(by_round_trip),
                          .ahead = ahead_by_stage,
                          .whole = std::vector<bool>(stage_count, whole)};
        const auto cost = try_policy(policy);
        starts_.push_back({std::move(policy), cost});
      }
    }
  }
  std::ranges::stable_sort(starts_, {}, &Scored::cost);
  for (auto& start : starts_) improve_choices(start);
  std::ranges::stable_sort(starts_, {}, &Scored::cost);
}

void PolicySearch::search_stages() {
  starts_.resize(std::min(starts_.size(), descents_max));
  for (auto& start : starts_) {
    while (improve_stages(start)) improve_choices(start);
  }
}

std::vector<std::uint32_t> PolicySearch::slots(bool by_round_trip) const {
  const auto& stages = problem_.stages();
  std::vector<std::uint32_t> result(stages.size(), 1);
  for (const auto& rank : problem_.ranks()) {
    auto left = rank.memory_limit;
    for (const auto s : rank.stages) left -= stages[s].activation_size;
    // One slot after another goes to the stage that has the fewest for its need.
    while (true) {
      const auto need = [&](std::uint32_t s) {
        return static_cast<double>(by_round_trip ? problem_.round_trip_ns(s) + 1 : 1) / result[s];
      };
      const auto can_grow = [&](std::uint32_t s) {
        return stages[s].activation_size <= left && result[s] < problem_.microbatch_count();
      };
      auto neediest = static_cast<std::uint32_t>(stages.size());
      for (const auto s : rank.stages) {
        if (!can_grow(s)) continue;
        if (neediest == stages.size() || need(s) > need(neediest)) neediest = s;
      }
      if (neediest == stages.size()) break;
      ++result[neediest];
      left -= stages[neediest].activation_size;
    }
  }
  return result;
}

std::vector<std::uint32_t> PolicySearch::ahead(std::uint32_t more) const {
  std::vector<std::uint32_t> result;
  for (std::uint32_t s = 0; s < problem_.stages().size(); ++s) {
    // While the first microbatch is on its way and back, the rank runs forward passes.
    std::int64_t forward_ns = 0;
    for (const auto v : problem_.ranks()[problem_.stages()[s].rank].stages) {
      forward_ns += problem_.stages()[v].costs.forward_ns;
    }
    const auto count = problem_.round_trip_ns(s) / std::max<std::int64_t>(forward_ns, 1) + more;
    result.push_back(static_cast<std::uint32_t>(
        std::clamp<std::int64_t>(count, 1, problem_.microbatch_count())));
  }
  return result;
}

StepCost PolicySearch::try_policy(const ListPolicy& policy) {
  const auto& rows = scheduler_.run(policy);
  budget_.spend((choice_work + 1) * action_count(rows));
  const auto cost = problem_.cost_of(rows);
  TROUPE_ASSERT(cost.has_value());
  if (rows_.empty() || *cost < cost_) {
    rows_ = rows;
    cost_ = *cost;
  }
  return *cost;
}

bool PolicySearch::improve(Scored& best, ListPolicy policy) {
  if (budget_.is_spent() || is_done()) return false;
  const auto cost = try_policy(policy);
  if (cost >= best.cost) return false;
  best = {std::move(policy), cost};
  return true;
}

template <class Value>
bool PolicySearch::improve(Scored& best, Value ListPolicy::*member,
                           std::initializer_list<Value> values) {
  bool improved = false;
  for (const auto& value : values) {
    if (best.policy.*member == value) continue;
    auto policy = best.policy;
    policy.*member = value;
    improved = improve(best, std::move(policy)) || improved;
  }
  return improved;
}

bool PolicySearch::improve_choices(Scored& best) {
  bool improved =
      improve(best, &ListPolicy::turn, {Turn::alternate, Turn::backward, Turn::forward});
  improved = improve(best, &ListPolicy::fill_percent, {0U, 25U, 50U, 75U, 100U}) || improved;
  improved = improve(best, &ListPolicy::yield_percent, {0U, 10U, 25U, 50U, 100U}) || improved;
  if (!has_chunks()) return improved;
  const auto depths = {Depth::late_first, Depth::early_first, Depth::oldest};
  improved = improve(best, &ListPolicy::forward_depth, depths) || improved;
  return improve(best, &ListPolicy::backward_depth, depths) || improved;
}

ListPolicy PolicySearch::with_slot_moved(ListPolicy policy, std::uint32_t from,
                                         std::uint32_t to) const {
  const auto& rank = problem_.ranks()[problem_.stages()[to].rank];
  if (policy.slots[from] == 1 || policy.slots[to] == problem_.microbatch_count()) return policy;
  auto left = rank.memory_limit + problem_.stages()[from].activation_size
              - problem_.stages()[to].activation_size;
  for (const auto s : rank.stages) left -= policy.slots[s] * problem_.stages()[s].activation_size;
  if (left < 0) return policy;
  --policy.slots[from];
  ++policy.slots[to];
  return policy;
}

bool PolicySearch::improve_stage(Scored& best, std::uint32_t stage) {
  bool improved = false;
  for (const auto first : {stage, 0U}) {
    for (const int change : {-1, 1}) {
      auto policy = best.policy;
      for (auto s = first; s <= stage; ++s) {
        policy.ahead[s] = static_cast<std::uint32_t>(std::clamp<std::int64_t>(
            std::int64_t{policy.ahead[s]} + change, 1, problem_.microbatch_count()));
      }
      if (policy.ahead == best.policy.ahead) continue;
      improved = improve(best, std::move(policy)) || improved;
    }
  }
  for (const auto other : problem_.ranks()[problem_.stages()[stage].rank].stages) {
    if (other == stage) continue;
    auto policy = with_slot_moved(best.policy, other, stage);
    if (policy.slots == best.policy.slots) continue;
    improved = improve(best, std::move(policy)) || improved;
  }
  if (!may_be_whole_) return improved;
  auto policy = best.policy;
  policy.whole[stage] = !policy.whole[stage];
  return improve(best, std::move(policy)) || improved;
}

bool PolicySearch::improve_stages(Scored& best) {
  bool improved = false;
  for (std::uint32_t s = 0; s < problem_.stages().size(); ++s) {
    if (budget_.is_spent() || is_done()) return improved;
    improved = improve_stage(best, s) || improved;
  }
  return improved;
}

}  // namespace troupe
