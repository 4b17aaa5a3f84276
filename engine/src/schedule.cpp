#include "troupe/engine/schedule.hpp"

#include <algorithm>
#include <numeric>

#include "troupe/engine/check.hpp"

namespace troupe {

namespace {

/// How `pass` changes the number of microbatches in flight until `until`.
int in_flight_change(Pass pass, Pass until) noexcept {
  if (pass == Pass::forward) return 1;
  const bool ends =
      until == Pass::backward_input ? makes_input_gradient(pass) : accumulates_weights(pass);
  return ends ? -1 : 0;
}

/// Follows the microbatches in flight on one stage.
struct InFlight {
  std::int64_t now = 0;
  std::int64_t max = 0;

  void add(int change) noexcept {
    now += change;
    max = std::max(max, now);
  }
};

}  // namespace

char to_letter(Pass pass) noexcept {
  switch (pass) {
    case Pass::forward:
      return 'F';
    case Pass::backward:
      return 'B';
    case Pass::backward_input:
      return 'I';
    case Pass::backward_weight:
      return 'W';
  }
  return '?';
}

std::string to_string(const Action& action) {
  return std::to_string(action.stage.value()) + to_letter(action.pass)
         + std::to_string(action.microbatch.value());
}

std::size_t Schedule::action_count() const noexcept {
  return std::accumulate(ranks.begin(), ranks.end(), std::size_t{0},
                         [](std::size_t sum, const auto& row) { return sum + row.size(); });
}

std::optional<StageIndex> Schedule::source_of(const Action& action) const noexcept {
  const auto stage = action.stage.value();
  if (action.pass == Pass::forward) {
    if (is_first(action.stage)) return std::nullopt;
    return StageIndex{stage - 1};
  }
  if (action.pass == Pass::backward_weight || is_last(action.stage)) return std::nullopt;
  return StageIndex{stage + 1};
}

std::vector<StageIndex> Schedule::stages_of(RankIndex rank) const {
  std::vector<StageIndex> stages;
  for (std::uint32_t s = 0; s < stage_count(); ++s) {
    if (rank_of_stage[s] == rank) stages.emplace_back(s);
  }
  return stages;
}

std::vector<RankIndex> make_stage_map(StageMap map, std::uint32_t rank_count,
                                      std::uint32_t chunk_count) {
  TROUPE_ASSERT(rank_count >= 1 && chunk_count >= 1);
  std::vector<RankIndex> rank_of_stage;
  rank_of_stage.reserve(std::size_t{rank_count} * chunk_count);
  for (std::uint32_t chunk = 0; chunk < chunk_count; ++chunk) {
    const bool upwards = map == StageMap::v_shaped && chunk % 2 == 1;
    for (std::uint32_t r = 0; r < rank_count; ++r) {
      rank_of_stage.emplace_back(upwards ? rank_count - 1 - r : r);
    }
  }
  return rank_of_stage;
}

std::uint32_t in_flight_max(const Schedule& schedule, StageIndex stage, Pass until) {
  TROUPE_ASSERT(stage.value() < schedule.stage_count());
  if (schedule.kind == StepKind::evaluation) return 1;
  InFlight in_flight;
  for (const auto& action : schedule.ranks[schedule.rank_of_stage[stage.value()].value()]) {
    if (action.stage == stage) in_flight.add(in_flight_change(action.pass, until));
  }
  return static_cast<std::uint32_t>(in_flight.max);
}

std::vector<std::uint32_t> in_flight_max(const Schedule& schedule, Pass until) {
  std::vector<std::uint32_t> result(schedule.stage_count(), 1);
  if (schedule.kind == StepKind::evaluation) return result;
  std::vector<InFlight> in_flight(schedule.stage_count());
  for (const auto& row : schedule.ranks) {
    for (const auto& action : row) {
      in_flight[action.stage.value()].add(in_flight_change(action.pass, until));
    }
  }
  std::transform(in_flight.begin(), in_flight.end(), result.begin(),
                 [](const InFlight& stage) { return static_cast<std::uint32_t>(stage.max); });
  return result;
}

}  // namespace troupe
