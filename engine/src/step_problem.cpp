#include "step_problem.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "troupe/engine/check.hpp"

namespace troupe {

namespace {

constexpr std::int64_t never_ns = std::numeric_limits<std::int64_t>::max();
constexpr std::size_t nothing = std::numeric_limits<std::size_t>::max();

template <class Value>
const Value& value_at(const std::vector<Value>& values, std::size_t i) {
  return values[values.size() == 1 ? 0 : i];
}

/// The least time until the gradient of the input, and of the weights too, is there.
std::int64_t gradient_ns(const PassCosts& costs) {
  return std::min(costs.backward_ns, costs.backward_input_ns);
}
std::int64_t both_gradients_ns(const PassCosts& costs) {
  return std::min(costs.backward_ns, costs.backward_input_ns + costs.backward_weight_ns);
}

}  // namespace

std::size_t action_count(const Rows& rows) {
  return std::accumulate(rows.begin(), rows.end(), std::size_t{0},
                         [](std::size_t sum, const auto& row) { return sum + row.size(); });
}

StepProblem::StepProblem(const AutomaticRequest& request)
    : microbatch_count_{request.microbatch_count},
      step_time_{request.step_time},
      stages_(request.rank_of_stage.size()),
      ranks_(std::ranges::max(request.rank_of_stage).value() + 1) {
  const auto& costs = request.costs;
  const auto hop_ns = [&](std::size_t s) {
    const bool is_local = request.rank_of_stage[s] == request.rank_of_stage[s + 1];
    return is_local ? 0 : value_at(costs.link_ns, s);
  };
  for (std::uint32_t s = 0; s < stages_.size(); ++s) {
    auto& stage = stages_[s];
    stage.rank = request.rank_of_stage[s].value();
    stage.costs = value_at(costs.stages, s);
    if (s + 1 < stages_.size()) stage.forward_hop_ns = hop_ns(s);
    if (s > 0) stage.backward_hop_ns = hop_ns(s - 1);
    stage.activation_size = value_at(request.activation_sizes, s);
    stage.kept_size =
        request.kept_sizes.empty() ? stage.activation_size : value_at(request.kept_sizes, s);
    TROUPE_ASSERT(stage.kept_size >= 1 && stage.kept_size <= stage.activation_size);
    ranks_[stage.rank].stages.push_back(s);
  }
  for (std::uint32_t r = 0; r < ranks_.size(); ++r) {
    ranks_[r].start_ns = value_at(costs.rank_start_ns, r);
    ranks_[r].optimizer_ns = value_at(costs.optimizer_ns, r);
    ranks_[r].memory_limit =
        request.memory_limits.empty() ? never_ns : value_at(request.memory_limits, r);
  }
  here_ns_.resize(stages_.size() * 2 * microbatch_count_);
  waits_for_.resize(ranks_.size());
  times_.begin_ns.resize(ranks_.size());
  times_.end_ns.resize(ranks_.size());
  round_trip_ns_ = find_round_trips();
  step_ns_min_ = find_step_min();
}

std::int64_t StepProblem::memory_of(const std::vector<Action>& row) const {
  std::int64_t memory = 0;
  std::vector<std::pair<std::int64_t, std::int64_t>> held(stages_.size());  // Now, and at most.
  for (const auto& action : row) {
    const auto& stage = stages_[action.stage.value()];
    auto& [now, max] = held[action.stage.value()];
    if (action.pass == Pass::forward) now += stage.activation_size;
    if (makes_input_gradient(action.pass)) now -= stage.activation_size - stage.kept_size;
    if (accumulates_weights(action.pass)) now -= stage.kept_size;
    memory += std::max(std::int64_t{0}, now - max);
    max = std::max(max, now);
  }
  return memory;
}

bool StepProblem::fits(const Rows& rows) const {
  for (std::uint32_t r = 0; r < ranks_.size(); ++r) {
    if (memory_of(rows[r]) > ranks_[r].memory_limit) return false;
  }
  return true;
}

std::optional<StepCost> StepProblem::cost_of(const Rows& rows) {
  std::ranges::fill(here_ns_, never_ns);
  std::fill_n(here_ns_.begin(), microbatch_count_, std::int64_t{0});
  std::ranges::fill(waits_for_, nothing);
  for (std::uint32_t r = 0; r < ranks_.size(); ++r) {
    times_.begin_ns[r].clear();
    times_.end_ns[r].clear();
    runnable_.push_back(r);
  }
  while (!runnable_.empty()) {
    const auto rank = runnable_.back();
    runnable_.pop_back();
    run_until_wait(rank, rows[rank]);
  }
  StepCost cost;
  for (std::uint32_t r = 0; r < ranks_.size(); ++r) {
    if (times_.end_ns[r].size() != rows[r].size()) return std::nullopt;
    cost.step_ns = std::max(cost.step_ns, rank_ns(r, times_));
    cost.sum_ns += rank_ns(r, times_);
  }
  return cost;
}

void StepProblem::run_until_wait(std::uint32_t rank, const std::vector<Action>& row) {
  auto& begin_ns = times_.begin_ns[rank];
  auto& end_ns = times_.end_ns[rank];
  auto free_ns = end_ns.empty() ? ranks_[rank].start_ns : end_ns.back();
  while (end_ns.size() < row.size()) {
    const auto& action = row[end_ns.size()];
    auto now_ns = free_ns;
    if (action.pass != Pass::backward_weight) {
      const auto input = input_of(action.stage.value(), action.pass) + action.microbatch.value();
      if (here_ns_[input] == never_ns) {
        waits_for_[rank] = input;
        return;
      }
      now_ns = std::max(now_ns, here_ns_[input]);
    }
    free_ns = now_ns + stages_[action.stage.value()].costs.of(action.pass);
    begin_ns.push_back(now_ns);
    end_ns.push_back(free_ns);
    send_output(action, free_ns);
  }
}

void StepProblem::send_output(const Action& action, std::int64_t end_ns) {
  const auto s = action.stage.value();
  const auto send = [&](std::uint32_t stage, Pass pass, std::int64_t hop_ns) {
    const auto output = input_of(stage, pass) + action.microbatch.value();
    const auto reader = stages_[stage].rank;
    here_ns_[output] = end_ns + hop_ns;
    if (waits_for_[reader] != output) return;
    waits_for_[reader] = nothing;
    runnable_.push_back(reader);
  };
  if (action.pass == Pass::forward) {
    const bool turns_round = s + 1 == stages_.size();
    if (turns_round) return send(s, Pass::backward, 0);
    return send(s + 1, Pass::forward, stages_[s].forward_hop_ns);
  }
  if (makes_input_gradient(action.pass) && s > 0) {
    send(s - 1, Pass::backward, stages_[s].backward_hop_ns);
  }
}

std::int64_t StepProblem::rank_ns(std::uint32_t rank, const Times& times) const {
  const auto end_ns = times.end_ns[rank].back() + ranks_[rank].optimizer_ns;
  return step_time_ == StepTime::makespan ? end_ns : end_ns - times.begin_ns[rank].front();
}

std::uint32_t StepProblem::last_rank(const Times& times) const {
  std::uint32_t last = 0;
  for (std::uint32_t r = 1; r < ranks_.size(); ++r) {
    if (rank_ns(r, times) > rank_ns(last, times)) last = r;
  }
  return last;
}

std::vector<std::int64_t> StepProblem::find_round_trips() const {
  std::vector<std::int64_t> round_trip_ns(stages_.size());
  std::int64_t trip_ns = 0;
  for (auto s = stages_.size(); s-- > 0;) {
    const auto& stage = stages_[s];
    round_trip_ns[s] = trip_ns += stage.costs.forward_ns;
    if (s == 0) break;
    trip_ns += gradient_ns(stage.costs) + stage.backward_hop_ns + stages_[s - 1].forward_hop_ns;
  }
  return round_trip_ns;
}

std::uint32_t StepProblem::weight_passes_before_last_forward(std::uint32_t stage) const {
  const auto& rank = ranks_[stages_[stage].rank];
  auto room = rank.memory_limit;
  for (const auto s : rank.stages) room -= stages_[s].activation_size;
  const auto before = std::int64_t{microbatch_count_} - 1;
  const auto waiting = std::min(before, room / stages_[stage].kept_size);
  return static_cast<std::uint32_t>(before - waiting);
}

std::int64_t StepProblem::find_step_min() const {
  const auto m = std::int64_t{microbatch_count_};
  const bool is_shared = step_time_ == StepTime::makespan;
  std::int64_t step_ns = 0;
  std::int64_t here_ns = 0;  // The first microbatch's activations are here,
  std::int64_t back_ns = ranks_[stages_[0].rank].optimizer_ns;  // the last one's gradient is done.
  for (std::uint32_t s = 0; s < stages_.size(); ++s) {
    const auto& stage = stages_[s];
    const auto& rank = ranks_[stage.rank];
    if (is_shared) here_ns = std::max(here_ns, rank.start_ns);
    if (rank.stages.front() == s) {
      std::int64_t all_ns = rank.optimizer_ns;
      std::int64_t urgent_ns = 0;  // What a rank does before its last gradient goes back.
      for (const auto v : rank.stages) {
        const auto& costs = stages_[v].costs;
        const auto weight_ns = both_gradients_ns(costs) - gradient_ns(costs);
        all_ns += m * (costs.forward_ns + both_gradients_ns(costs));
        urgent_ns += m * (costs.forward_ns + gradient_ns(costs))
                     + weight_passes_before_last_forward(v) * weight_ns;
      }
      step_ns =
          std::max({step_ns, all_ns + (is_shared ? here_ns : 0), here_ns + urgent_ns + back_ns});
    }
    here_ns += stage.costs.forward_ns + stage.forward_hop_ns;
    back_ns += s == 0 ? both_gradients_ns(stage.costs) : gradient_ns(stage.costs);
    if (s + 1 < stages_.size()) back_ns += stages_[s + 1].backward_hop_ns;
  }
  return step_ns;
}

}  // namespace troupe
