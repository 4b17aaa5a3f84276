#include "list_scheduler.hpp"

#include <algorithm>

#include "troupe/engine/check.hpp"

namespace troupe {

namespace {

constexpr std::int64_t never_ns = std::numeric_limits<std::int64_t>::max();

}  // namespace

ListScheduler::ListScheduler(const StepProblem& problem)
    : problem_{problem},
      stages_(problem.stages().size()),
      ranks_(problem.ranks().size()),
      forward_here_ns_(stages_.size() * problem.microbatch_count()),
      gradient_here_ns_(stages_.size() * problem.microbatch_count()),
      rows_(ranks_.size()) {}

const Rows& ListScheduler::run(const ListPolicy& policy) {
  start_again();
  while (!events_.empty()) {
    const auto [now_ns, rank] = events_.top();
    events_.pop();
    if (ranks_[rank].free_ns <= now_ns) decide(rank, now_ns, policy);
  }
  // A slot for every stage is enough: the oldest microbatch that is not done can always go on.
  for (const auto& stage : stages_) {
    TROUPE_ASSERT(stage.weight_count == problem_.microbatch_count());
  }
  return rows_;
}

void ListScheduler::start_again() {
  std::ranges::fill(stages_, StageState{});
  std::ranges::fill(forward_here_ns_, never_ns);
  std::ranges::fill(gradient_here_ns_, never_ns);
  std::fill_n(forward_here_ns_.begin(), problem_.microbatch_count(), std::int64_t{0});
  for (std::uint32_t r = 0; r < ranks_.size(); ++r) {
    ranks_[r] = {.free_ns = problem_.ranks()[r].start_ns};
    rows_[r].clear();
    events_.emplace(ranks_[r].free_ns, r);
  }
}

bool ListScheduler::has_slot(std::uint32_t stage, const ListPolicy& policy) const {
  const auto& state = stages_[stage];
  const auto& sizes = problem_.stages()[stage];
  const auto held = (state.forward_count - state.backward_count) * sizes.activation_size
                    + (state.backward_count - state.weight_count) * sizes.kept_size;
  return held + sizes.activation_size <= policy.slots[stage] * sizes.activation_size;
}

ListScheduler::Choices ListScheduler::choices_of(std::uint32_t rank, std::int64_t now_ns,
                                                 const ListPolicy& policy) const {
  const auto m = problem_.microbatch_count();
  const auto take_first = [now_ns](Candidate& best, const Candidate& other, Depth depth) {
    if (other.ready_ns == never_ns) return;
    const auto best_ns = std::max(best.ready_ns, now_ns);
    const auto other_ns = std::max(other.ready_ns, now_ns);
    const bool is_nearer = depth == Depth::early_first ? other.stage < best.stage
                           : depth == Depth::oldest && other.microbatch != best.microbatch
                               ? other.microbatch < best.microbatch
                               : other.stage > best.stage;
    if (other_ns < best_ns || (other_ns == best_ns && is_nearer)) best = other;
  };
  Choices choices;
  for (const auto s : problem_.ranks()[rank].stages) {
    const auto& state = stages_[s];
    const auto row = std::size_t{s} * m;
    auto needed_ns = never_ns;
    if (state.forward_count < m && state.forward_count - state.backward_count < policy.ahead[s]) {
      const auto here_ns = forward_here_ns_[row + state.forward_count];
      if (has_slot(s, policy)) {
        take_first(choices.forward, {s, state.forward_count, here_ns}, policy.forward_depth);
      } else {
        needed_ns = here_ns;
      }
    }
    if (state.backward_count < state.forward_count) {
      take_first(choices.backward,
                 {s, state.backward_count, gradient_here_ns_[row + state.backward_count]},
                 policy.backward_depth);
    }
    if (state.weight_count < state.backward_count) {
      const Candidate weight{s, state.weight_count, needed_ns};
      const auto& best = choices.weight;
      if (!choices.has_weight || weight.ready_ns < best.ready_ns
          || (weight.ready_ns == best.ready_ns && weight.microbatch < best.microbatch)) {
        choices.weight = weight;
        choices.has_weight = true;
      }
    }
  }
  return choices;
}

void ListScheduler::decide(std::uint32_t rank, std::int64_t now_ns, const ListPolicy& policy) {
  const auto choices = choices_of(rank, now_ns, policy);
  const auto& [forward, backward, weight, has_weight] = choices;
  const auto begin_weight = [&] { begin(choices.weight.stage, Pass::backward_weight, now_ns); };
  const bool forward_here = forward.ready_ns <= now_ns;
  const bool slot_needed = has_weight && weight.ready_ns <= now_ns;
  if (backward.ready_ns <= now_ns) {
    const bool wants_forward = policy.turn == Turn::forward
                               || (policy.turn == Turn::alternate && !ranks_[rank].was_forward);
    if (wants_forward && forward_here) return begin(forward.stage, Pass::forward, now_ns);
    if (wants_forward && slot_needed) return begin_weight();
    const auto pass = policy.whole[backward.stage] ? Pass::backward : Pass::backward_input;
    return begin(backward.stage, pass, now_ns);
  }
  auto next_ns = std::min(forward.ready_ns, backward.ready_ns);
  if (forward_here) {
    const auto yield_ns =
        problem_.stages()[forward.stage].costs.forward_ns * policy.yield_percent / 100;
    if (backward.ready_ns == never_ns || backward.ready_ns - now_ns >= yield_ns) {
      return begin(forward.stage, Pass::forward, now_ns);
    }
    next_ns = backward.ready_ns;
  }
  if (!has_weight) return;
  const auto fill_ns =
      problem_.stages()[weight.stage].costs.backward_weight_ns * policy.fill_percent / 100;
  if (next_ns == never_ns || slot_needed || next_ns - now_ns >= fill_ns) begin_weight();
}

void ListScheduler::begin(std::uint32_t stage, Pass pass, std::int64_t now_ns) {
  const auto& fixed = problem_.stages()[stage];
  auto& state = stages_[stage];
  auto& rank = ranks_[fixed.rank];
  const auto m = std::size_t{problem_.microbatch_count()};
  const auto end_ns = now_ns + fixed.costs.of(pass);
  auto microbatch = state.weight_count;
  if (pass == Pass::forward) microbatch = state.forward_count++;
  if (makes_input_gradient(pass)) microbatch = state.backward_count++;
  if (accumulates_weights(pass)) ++state.weight_count;
  if (pass != Pass::backward_weight) rank.was_forward = pass == Pass::forward;
  rank.free_ns = end_ns;
  rows_[fixed.rank].push_back({StageIndex{stage}, pass, MicrobatchIndex{microbatch}});
  events_.emplace(end_ns, fixed.rank);
  if (pass == Pass::forward && stage + 1 == stages_.size()) {
    gradient_here_ns_[stage * m + microbatch] = end_ns;
  } else if (pass == Pass::forward) {
    const auto here_ns = end_ns + fixed.forward_hop_ns;
    forward_here_ns_[(stage + 1) * m + microbatch] = here_ns;
    arrive(problem_.stages()[stage + 1].rank, here_ns);
  } else if (makes_input_gradient(pass) && stage > 0) {
    const auto here_ns = end_ns + fixed.backward_hop_ns;
    gradient_here_ns_[(stage - 1) * m + microbatch] = here_ns;
    arrive(problem_.stages()[stage - 1].rank, here_ns);
  }
}

void ListScheduler::arrive(std::uint32_t rank, std::int64_t at_ns) {
  if (at_ns > ranks_[rank].free_ns) events_.emplace(at_ns, rank);
}

}  // namespace troupe
