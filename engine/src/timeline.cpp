#include "troupe/engine/timeline.hpp"

#include <algorithm>
#include <functional>

#include "cost_table.hpp"

namespace troupe {

namespace {

bool ends_use(const Action& action, StepKind kind) noexcept {
  return kind == StepKind::training ? accumulates_weights(action.pass)
                                    : action.pass == Pass::forward;
}

}  // namespace

std::string_view to_string(IdleCause cause) noexcept {
  constexpr std::array<std::string_view, idle_cause_count> names{
      "warm_up",   "send",  "imbalance", "communication",
      "reduction", "drain", "director",  "dispatch"};
  return names[static_cast<std::size_t>(cause)];
}

std::int64_t Timeline::busy_ns() const noexcept {
  return std::accumulate(
      rank_times.begin(), rank_times.end(), std::int64_t{0},
      [](std::int64_t sum, const RankTime& time) { return sum + time.busy_ns(); });
}

std::int64_t Timeline::idle_ns() const noexcept {
  return makespan_ns * static_cast<std::int64_t>(rank_times.size()) - busy_ns();
}

IdleTime Timeline::idle_by_cause() const noexcept {
  IdleTime sum;
  for (const auto& idle : idle_times) {
    std::ranges::transform(sum.ns, idle.ns, sum.ns.begin(), std::plus{});
  }
  return sum;
}

double Timeline::bubble_of_total() const noexcept {
  const auto all_ns = busy_ns() + idle_ns();
  return all_ns == 0 ? 0.0 : static_cast<double>(idle_ns()) / static_cast<double>(all_ns);
}

double Timeline::bubble_of_ideal() const noexcept {
  return busy_ns() == 0 ? 0.0 : static_cast<double>(idle_ns()) / static_cast<double>(busy_ns());
}

std::vector<MemoryLevel> memory_over_time(std::span<const TimelineEntry> rank, StepKind kind,
                                          const std::vector<std::int64_t>& bytes) {
  const auto bytes_of = [&](const Action& action) {
    return bytes.size() == 1 ? bytes.front() : bytes.at(action.stage.value());
  };
  std::vector<MemoryLevel> levels{{}};
  const auto change = [&](std::int64_t at_ns, std::int64_t difference) {
    if (levels.back().from_ns < at_ns) levels.push_back({at_ns, levels.back().bytes});
    levels.back().bytes += difference;
  };
  for (const auto& entry : rank) {
    if (entry.action.pass == Pass::forward) change(entry.begin_ns, bytes_of(entry.action));
    if (ends_use(entry.action, kind)) change(entry.end_ns, -bytes_of(entry.action));
  }
  return levels;
}

std::vector<std::int64_t> memory_max(const Schedule& schedule,
                                     const std::vector<std::int64_t>& bytes) {
  const PerIndex bytes_of_stage{bytes, schedule.stage_count()};
  std::vector<std::int64_t> result;
  result.reserve(schedule.rank_count());
  for (const auto& row : schedule.ranks) {
    std::int64_t now = 0;
    std::int64_t most = 0;
    for (const auto& action : row) {
      if (action.pass == Pass::forward) now += bytes_of_stage[action.stage.value()];
      most = std::max(most, now);
      if (ends_use(action, schedule.kind)) now -= bytes_of_stage[action.stage.value()];
    }
    result.push_back(most);
  }
  return result;
}

}  // namespace troupe
