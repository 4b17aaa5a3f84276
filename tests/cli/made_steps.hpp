// tests/cli/made_steps.hpp -- steps that took exactly as long as a simulation says.
#pragma once

#include <cstdint>

#include "troupe/actors/step_report.hpp"
#include "troupe/engine/grid.hpp"
#include "troupe/engine/schedule.hpp"
#include "troupe/engine/simulate.hpp"

namespace troupe::cli {

/// The timeline as if it had been measured, in every replica, from `begin_ns` on. A rank's waiting
/// is booked as such, what it does behind its last pass as updates of its first stage, and the rest
/// as waiting for the director.
inline actors::StepReport made_step(const Schedule& schedule, const Timeline& timeline,
                                    std::uint32_t step = 1, std::uint32_t replica_count = 1,
                                    std::int64_t begin_ns = 1000) {
  using actors::TraceEntry;
  actors::StepReport report{
      .step = step, .begin_ns = begin_ns, .end_ns = begin_ns + timeline.makespan_ns, .ranks = {}};
  const GridExtent extent{.data = replica_count, .pipeline = schedule.rank_count()};
  for (std::uint32_t i = 0; i < extent.rank_count(); ++i) {
    const auto where = coordinate_of(extent, i);
    const auto rank = where.pipeline.value();
    const auto& time = timeline.rank_times[rank];
    auto& made = report.ranks.emplace_back();
    made.coordinate = where;
    made.account.begin_ns = begin_ns;
    made.account.end_ns = report.end_ns;
    std::int64_t end_ns = 0;
    for (const auto& entry : timeline.ranks[rank]) {
      const bool forward = entry.action.pass == Pass::forward;
      made.account[forward ? TimeCause::activation : TimeCause::gradient] +=
          entry.begin_ns - end_ns;
      made.account[TimeCause::computing] += entry.end_ns - entry.begin_ns;
      end_ns = entry.end_ns;
      made.trace.push_back({TraceEntry::Kind::pass, entry.action, begin_ns + entry.begin_ns,
                            begin_ns + entry.end_ns});
    }
    made.account[TimeCause::optimizer] = time.optimizer_ns;
    made.account[TimeCause::director] = timeline.makespan_ns - end_ns - time.optimizer_ns;
    made.trace.push_back({TraceEntry::Kind::optimize,
                          {schedule.stages_of(where.pipeline).front(), {}, {}},
                          begin_ns + end_ns,
                          begin_ns + end_ns + time.optimizer_ns});
  }
  return report;
}

}  // namespace troupe::cli
