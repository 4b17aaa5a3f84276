#include "step_pictures.hpp"

#include <algorithm>
#include <array>
#include <cstdint>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

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

std::string name_of(const TraceEntry& entry) {
  switch (entry.kind) {
    case TraceEntry::Kind::pass:
      return to_string(entry.action);
    case TraceEntry::Kind::reduce:
      return fmt::format("{} reduce", entry.action.stage.value());
    case TraceEntry::Kind::optimize:
      return fmt::format("{} optimize", entry.action.stage.value());
  }
  return {};
}

std::string actor_name(const Plan& plan, const RankReport& rank) {
  if (plan.config.parallel.data == 1)
    return fmt::format("rank {}", rank.coordinate.pipeline.value());
  return fmt::format("replica {} rank {}", rank.coordinate.replica,
                     rank.coordinate.pipeline.value());
}

std::uint32_t chunk_of(const Plan& plan, const TraceEntry& entry) {
  const auto rank = plan.training.rank_of_stage[entry.action.stage.value()];
  const auto stages = plan.training.stages_of(rank);
  return static_cast<std::uint32_t>(std::ranges::find(stages, entry.action.stage) - stages.begin());
}

/// Device work of one actor in order of time. Reductions of several buckets overlap: together they
/// make one box as long as any is under way.
std::vector<Box> boxes_of(const Plan& plan, const RankReport& rank, bool reductions,
                          std::int64_t zero_ns) {
  std::vector<Box> boxes;
  for (const auto& entry : rank.trace) {
    if ((entry.kind == TraceEntry::Kind::reduce) != reductions) continue;
    const bool is_pass = entry.kind == TraceEntry::Kind::pass;
    boxes.push_back({.kind = box_kind(entry),
                     .begin_ns = entry.begin_ns - zero_ns,
                     .end_ns = entry.end_ns - zero_ns,
                     .chunk = chunk_of(plan, entry),
                     .label = is_pass ? std::to_string(entry.action.microbatch.value()) : "",
                     .name = name_of(entry)});
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

}  // namespace

Picture picture_of(const Plan& plan, const StepReport& report) {
  Picture picture{.title = fmt::format("measured, step {}", report.step),
                  .note = fmt::format("{:.1f} ms, bubble {:.1f} %",
                                      static_cast<double>(report.end_ns - report.begin_ns) / 1e6,
                                      100.0 * report.bubble_fraction()),
                  .lanes = {}};
  const auto zero_ns = first_begin_ns(report);
  for (const auto& rank : report.ranks) {
    const auto name = actor_name(plan, rank);
    picture.lanes.push_back({name, boxes_of(plan, rank, false, zero_ns)});
    auto reductions = boxes_of(plan, rank, true, zero_ns);
    if (!reductions.empty()) picture.lanes.push_back({"reduce", std::move(reductions)});
  }
  return picture;
}

std::string draw_timeline(const Plan& plan, const StepReport& report, const Timeline& predicted) {
  return draw_svg(std::array{picture_of(plan, report),
                             make_picture("simulated, " + plan.training.name
                                              + ", each pass as long as in the steps before",
                                          plan.training, predicted)});
}

std::string to_chrome_trace(const Plan& plan, const StepReport& report) {
  using Json = nlohmann::ordered_json;
  auto events = Json::array();
  const auto zero_ns = first_begin_ns(report);
  const auto microseconds = [](std::int64_t ns) { return static_cast<double>(ns) / 1e3; };
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
    const auto reductions = thread + plan.training.rank_count();
    name_thread(thread, actor_name(plan, rank));
    if (plan.config.parallel.data > 1) name_thread(reductions, actor_name(plan, rank) + " reduce");
    for (const auto& entry : rank.trace) {
      const bool is_reduction = entry.kind == TraceEntry::Kind::reduce;
      events.push_back({{"name", name_of(entry)},
                        {"ph", "X"},
                        {"ts", microseconds(entry.begin_ns - zero_ns)},
                        {"dur", microseconds(entry.end_ns - entry.begin_ns)},
                        {"pid", replica},
                        {"tid", is_reduction ? reductions : thread}});
    }
  }
  return Json{{"traceEvents", std::move(events)}, {"displayTimeUnit", "ms"}}.dump() + "\n";
}

}  // namespace troupe::cli
