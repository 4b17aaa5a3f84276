#include "step_pictures.hpp"

#include <algorithm>
#include <cstdint>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "recorded_steps.hpp"

namespace troupe::cli {

namespace {

using actors::RankReport;
using actors::StepReport;
using actors::TraceEntry;

std::int64_t first_begin_ns(const StepReport& report) {
  auto begin_ns = report.end_ns;
  for (const auto& rank : report.ranks) {
    for (const auto& entry : rank.trace) begin_ns = std::min(begin_ns, entry.begin_ns);
  }
  return begin_ns;
}

BoxKind box_kind(const TraceEntry& entry) {
  switch (entry.kind) {
    case TraceEntry::Kind::pass:
      return to_box_kind(entry.action.pass);
    case TraceEntry::Kind::reduce:
      return BoxKind::reduce;
    case TraceEntry::Kind::optimize:
      return BoxKind::optimizer;
  }
  return BoxKind::forward;
}

/// Replicas of the grid that the report is of.
std::uint32_t replica_count(const Schedule& schedule, const StepReport& report) {
  return static_cast<std::uint32_t>(report.ranks.size()) / schedule.rank_count();
}

std::uint32_t chunk_of(const Schedule& schedule, const TraceEntry& entry) {
  const auto rank = schedule.rank_of_stage[entry.action.stage.value()];
  const auto stages = schedule.stages_of(rank);
  return static_cast<std::uint32_t>(std::ranges::find(stages, entry.action.stage) - stages.begin());
}

/// Device work of one actor in order of time. Reductions of several buckets overlap: together they
/// make one box as long as any is under way.
std::vector<Box> boxes_of(const Schedule& schedule, const RankReport& rank, bool reductions,
                          std::int64_t zero_ns) {
  std::vector<Box> boxes;
  for (const auto& entry : rank.trace) {
    if ((entry.kind == TraceEntry::Kind::reduce) != reductions) continue;
    const bool is_pass = entry.kind == TraceEntry::Kind::pass;
    boxes.push_back({.kind = box_kind(entry),
                     .begin_ns = entry.begin_ns - zero_ns,
                     .end_ns = entry.end_ns - zero_ns,
                     .chunk = chunk_of(schedule, entry),
                     .label = is_pass ? std::to_string(entry.action.microbatch.value()) : "",
                     .name = to_string(entry)});
  }
  std::ranges::sort(boxes, {}, &Box::begin_ns);
  if (!reductions) return boxes;
  std::vector<Box> merged;
  for (auto& box : boxes) {
    if (!merged.empty() && box.begin_ns <= merged.back().end_ns) {
      merged.back().end_ns = std::max(merged.back().end_ns, box.end_ns);
      merged.back().name = "reduce";
    } else {
      merged.push_back(std::move(box));
    }
  }
  return merged;
}

Picture picture_of(const Schedule& schedule, const StepReport& report) {
  Picture picture{.title = fmt::format("measured, step {}", report.step),
                  .note = fmt::format("{:.1f} ms, bubble {:.1f} %",
                                      static_cast<double>(report.end_ns - report.begin_ns) / 1e6,
                                      100.0 * report.bubble_fraction()),
                  .lanes = {}};
  const auto zero_ns = first_begin_ns(report);
  for (const auto& rank : report.ranks) {
    const auto name = actor_name(rank.coordinate, replica_count(schedule, report));
    picture.lanes.push_back({name, boxes_of(schedule, rank, false, zero_ns)});
    auto reductions = boxes_of(schedule, rank, true, zero_ns);
    if (!reductions.empty()) picture.lanes.push_back({"reduce", std::move(reductions)});
  }
  return picture;
}

}  // namespace

std::string actor_name(const Coordinate& coordinate, std::uint32_t replica_count) {
  const auto rank = coordinate.pipeline.value();
  if (replica_count == 1) return fmt::format("rank {}", rank);
  return fmt::format("replica {} rank {}", coordinate.replica, rank);
}

std::array<Picture, 2> pictures_of(const Schedule& schedule, const StepReport& report,
                                   const Timeline& simulated, const std::string& basis) {
  return {picture_of(schedule, report),
          make_picture("simulated, " + schedule.name + ", " + basis, schedule, simulated)};
}

std::string to_chrome_trace(const Schedule& schedule, const StepReport& report,
                            const HeldActivations& activations) {
  using Json = nlohmann::ordered_json;
  auto events = Json::array();
  const auto zero_ns = first_begin_ns(report);
  const auto microseconds = [](std::int64_t ns) { return static_cast<double>(ns) / 1e3; };
  std::size_t row = 0;
  for (const auto& rank : report.ranks) {
    const auto replica = rank.coordinate.replica;
    const auto thread = rank.coordinate.pipeline.value();
    const auto name_thread = [&](std::uint32_t id, const std::string& name) {
      events.push_back({{"name", "thread_name"},
                        {"ph", "M"},
                        {"pid", replica},
                        {"tid", id},
                        {"args", {{"name", name}}}});
    };
    const auto reductions = thread + schedule.rank_count();
    const auto replicas = replica_count(schedule, report);
    const auto name = actor_name(rank.coordinate, replicas);
    name_thread(thread, name);
    if (replicas * schedule.copy_count > 1) name_thread(reductions, name + " reduce");
    for (const auto& entry : rank.trace) {
      const bool is_reduction = entry.kind == TraceEntry::Kind::reduce;
      events.push_back({{"name", to_string(entry)},
                        {"ph", "X"},
                        {"ts", microseconds(entry.begin_ns - zero_ns)},
                        {"dur", microseconds(entry.end_ns - entry.begin_ns)},
                        {"pid", replica},
                        {"tid", is_reduction ? reductions : thread}});
    }
    if (activations.levels.empty()) continue;
    for (const auto& level : activations.levels[row++]) {
      events.push_back({{"name", "activations of rank " + std::to_string(thread)},
                        {"ph", "C"},
                        {"ts", microseconds(level.from_ns)},
                        {"pid", replica},
                        {"args", {{activations.unit, level.bytes}}}});
    }
  }
  return Json{{"traceEvents", std::move(events)}, {"displayTimeUnit", "ms"}}.dump() + "\n";
}

StepReport report_of(const Schedule& schedule, const Timeline& timeline) {
  StepReport report{.step = 1, .end_ns = timeline.makespan_ns, .ranks = {}};
  for (std::uint32_t row = 0; row < timeline.ranks.size(); ++row) {
    const RankIndex r{row % schedule.rank_count()};
    auto& rank = report.ranks.emplace_back();
    rank.coordinate = {.replica = row / schedule.rank_count(), .pipeline = r};
    for (const auto& [action, begin_ns, end_ns] : timeline.ranks[row]) {
      rank.trace.push_back({.action = action, .begin_ns = begin_ns, .end_ns = end_ns});
    }
    if (!timeline.reductions.empty()) {
      for (const auto& sum : timeline.reductions[r.value()]) {
        rank.trace.push_back({.kind = TraceEntry::Kind::reduce,
                              .action = {sum.stage, {}, {}},
                              .begin_ns = sum.begin_ns,
                              .end_ns = sum.end_ns});
      }
    }
    const auto& time = timeline.rank_times[row];
    if (time.optimizer_ns == 0) continue;
    rank.trace.push_back({.kind = TraceEntry::Kind::optimize,
                          .action = {schedule.stages_of(r).front(), {}, {}},
                          .begin_ns = time.optimizer_begin_ns,
                          .end_ns = time.optimizer_begin_ns + time.optimizer_ns});
  }
  return report;
}

}  // namespace troupe::cli
