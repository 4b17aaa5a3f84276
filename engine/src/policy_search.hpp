// engine/src/policy_search.hpp -- finds out how ranks should choose what to begin.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "list_scheduler.hpp"
#include "step_problem.hpp"

namespace troupe {

/// Searches for the policy of `ListScheduler` whose programs are short: descends from several
/// starts, one choice at a time, and then stage by stage.
class PolicySearch {
public:
  /// @param may_be_whole whether backward passes may stay whole.
  PolicySearch(StepProblem& problem, WorkBudget& budget, bool may_be_whole);

  /// Descends with what holds for all stages, from every start.
  void search_choices();
  /// Descends from the best starts with what holds for one stage, or for it and those before it.
  void search_stages();

  [[nodiscard]] const Rows& rows() const noexcept { return rows_; }
  [[nodiscard]] const StepCost& cost() const noexcept { return cost_; }

private:
  struct Scored {
    ListPolicy policy;
    StepCost cost;
  };

  /// Whether no schedule can be shorter than the best one found.
  [[nodiscard]] bool is_done() const { return cost_.step_ns <= problem_.step_ns_min(); }
  [[nodiscard]] bool has_chunks() const {
    return problem_.stages().size() > problem_.ranks().size();
  }
  [[nodiscard]] std::vector<std::uint32_t> slots(bool by_round_trip) const;
  [[nodiscard]] std::vector<std::uint32_t> ahead(std::uint32_t more) const;
  /// The policy with one slot more on `to` and one less on `from`, or the same if none may move.
  [[nodiscard]] ListPolicy with_slot_moved(ListPolicy policy, std::uint32_t from,
                                           std::uint32_t to) const;
  StepCost try_policy(const ListPolicy& policy);
  bool improve(Scored& best, ListPolicy policy);
  template <class Value>
  bool improve(Scored& best, Value ListPolicy::*member, std::initializer_list<Value> values);
  bool improve_choices(Scored& best);
  bool improve_stage(Scored& best, std::uint32_t stage);
  bool improve_stages(Scored& best);

  StepProblem& problem_;
  WorkBudget& budget_;
  bool may_be_whole_;
  ListScheduler scheduler_;
  std::vector<Scored> starts_;  ///< Once searched, the shortest step first.
  Rows rows_;
  StepCost cost_;
};

}  // namespace troupe
