#include "troupe/engine/simulate.hpp"

#include <algorithm>
#include <cstddef>
#include <numeric>

#include "troupe/engine/check.hpp"

#include "dependency_order.hpp"

namespace troupe {

namespace {

/// A list in which one value stands for `count` equal ones.
template <class Value>
class PerIndex {
public:
  PerIndex(const std::vector<Value>& values, std::size_t count)
      : values_{values.data()}, is_list_{values.size() != 1} {
    TROUPE_ASSERT(values.size() == 1 || values.size() == count);
  }
  const Value& operator[](std::size_t i) const noexcept { return values_[is_list_ ? i : 0]; }

private:
  const Value* values_;
  bool is_list_;
};

/// How long the input of `action` travels.
class Travel {
public:
  Travel(const Schedule& schedule, const CostModel& costs)
      : rank_of_stage_{schedule.rank_of_stage},
        link_ns_{costs.link_ns, schedule.stage_count() - 1} {}

  [[nodiscard]] std::int64_t to(const Action& action) const noexcept {
    const auto stage = action.stage.value();
    const bool forward = action.pass == Pass::forward;
    const auto source = forward ? stage - 1 : stage + 1;
    if (rank_of_stage_[source] == rank_of_stage_[stage]) return 0;
    return link_ns_[std::min(source, stage)];
  }

private:
  const std::vector<RankIndex>& rank_of_stage_;
  PerIndex<std::int64_t> link_ns_;
};

}  // namespace

std::int64_t Timeline::busy_ns() const noexcept {
  return std::accumulate(
      rank_times.begin(), rank_times.end(), std::int64_t{0},
      [](std::int64_t sum, const RankTime& time) { return sum + time.busy_ns(); });
}

std::int64_t Timeline::idle_ns() const noexcept {
  return makespan_ns * static_cast<std::int64_t>(rank_times.size()) - busy_ns();
}

double Timeline::bubble_of_total() const noexcept {
  const auto all_ns = busy_ns() + idle_ns();
  return all_ns == 0 ? 0.0 : static_cast<double>(idle_ns()) / static_cast<double>(all_ns);
}

double Timeline::bubble_of_ideal() const noexcept {
  return busy_ns() == 0 ? 0.0 : static_cast<double>(idle_ns()) / static_cast<double>(busy_ns());
}

Timeline simulate(const Schedule& schedule, const CostModel& costs) {
  TROUPE_ASSERT(schedule.stage_count() >= 1);
  const auto rank_count = schedule.rank_count();
  const PerIndex stage_costs{costs.stages, schedule.stage_count()};
  const PerIndex rank_start_ns{costs.rank_start_ns, rank_count};
  const PerIndex optimizer_ns{costs.optimizer_ns, rank_count};
  const Travel travel{schedule, costs};

  Timeline timeline{.ranks = std::vector<std::vector<TimelineEntry>>(rank_count),
                    .rank_times = std::vector<RankTime>(rank_count),
                    .in_flight_max = in_flight_max(schedule, Pass::backward_weight)};
  for (std::uint32_t r = 0; r < rank_count; ++r) {
    timeline.ranks[r].reserve(schedule.ranks[r].size());
    timeline.rank_times[r].end_ns = rank_start_ns[r];
  }
  std::vector<std::int64_t> made_ns(OutputNumbers{schedule}.count());
  const auto stopped = visit_in_dependency_order(
      schedule, [&](RankIndex rank, const Action& action, std::size_t needed, std::size_t made) {
        auto& time = timeline.rank_times[rank.value()];
        auto begin_ns = time.end_ns;
        if (needed != no_output) begin_ns = std::max(begin_ns, made_ns[needed] + travel.to(action));
        const auto duration_ns = stage_costs[action.stage.value()].of(action.pass);
        time.end_ns = begin_ns + duration_ns;
        time.passes_ns += duration_ns;
        if (made != no_output) made_ns[made] = time.end_ns;
        timeline.ranks[rank.value()].push_back({action, begin_ns, time.end_ns});
      });

  for (std::uint32_t r = 0; r < rank_count; ++r) {
    TROUPE_ASSERT(stopped[r] == schedule.ranks[r].size());
    auto& time = timeline.rank_times[r];
    if (!timeline.ranks[r].empty()) time.begin_ns = timeline.ranks[r].front().begin_ns;
    time.optimizer_ns = optimizer_ns[r];
    timeline.makespan_ns = std::max(timeline.makespan_ns, time.end_ns + time.optimizer_ns);
  }
  return timeline;
}

}  // namespace troupe
