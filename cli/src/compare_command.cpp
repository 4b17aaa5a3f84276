#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "troupe/engine/draw.hpp"
#include "troupe/engine/measured_costs.hpp"
#include "troupe/engine/simulate.hpp"
#include "troupe/storage/text_file.hpp"

#include "commands.hpp"
#include "comparison_report.hpp"
#include "recorded_steps.hpp"
#include "step_comparison.hpp"
#include "step_pictures.hpp"

namespace troupe::cli {

namespace {

using actors::StepReport;
using actors::TraceEntry;

/// The means over all recorded steps and replicas.
CostModel measured_costs(const RecordedSteps& recorded) {
  MeasuredCosts costs{recorded.schedule.stage_count()};
  std::vector<std::int64_t> optimizer_ns(recorded.schedule.rank_count());
  for (const auto& step : recorded.steps) {
    for (const auto& rank : step.ranks) {
      for (const auto& entry : rank.trace) {
        const auto duration_ns = entry.end_ns - entry.begin_ns;
        if (entry.kind == TraceEntry::Kind::pass) costs.add(entry.action, duration_ns);
        if (entry.kind != TraceEntry::Kind::optimize) continue;
        optimizer_ns[rank.coordinate.pipeline.value()] += duration_ns;
      }
    }
  }
  const auto replicas = recorded.steps.front().ranks.size() / optimizer_ns.size();
  for (auto& time_ns : optimizer_ns) {
    time_ns /= static_cast<std::int64_t>(recorded.steps.size() * replicas);
  }
  auto model = costs.costs();
  model.optimizer_ns = std::move(optimizer_ns);
  return model;
}

/// @param number 0: the last one.
Expected<const StepReport*> find_step(const RecordedSteps& recorded, std::uint32_t number,
                                      const std::string& path) {
  if (number == 0) return &recorded.steps.back();
  const auto found = std::ranges::find(recorded.steps, number, &StepReport::step);
  if (found != recorded.steps.end()) return &*found;
  std::string numbers;
  for (const auto& step : recorded.steps) numbers += fmt::format(" {}", step.step);
  return Error{Errc::invalid_config,
               fmt::format("--step {}: {} has the steps{}", number, path, numbers)};
}

}  // namespace

Expected<ExitCode> compare(const CompareArguments& arguments) {
  const auto path = (std::filesystem::path{arguments.run} / recorded_steps_name).string();
  const auto text = storage::read_text(path);
  if (!text) return text.error();
  const auto recorded = parse_recorded_steps(*text, path);
  if (!recorded) return recorded.error();
  const auto found = find_step(*recorded, arguments.step, path);
  if (!found) return found.error();
  const auto& step = **found;

  const auto& schedule = recorded->schedule;
  const auto simulated = simulate(schedule, measured_costs(*recorded));
  const ComparisonSubject subject{
      arguments.run, *recorded,
      fmt::format("each pass as long as its mean over {} steps", recorded->steps.size())};
  const auto comparison = compare_step(schedule, step, simulated, arguments.pass_count);
  const auto report = to_report(subject, comparison);
  const auto pictures = pictures_of(schedule, step, simulated, subject.basis);
  if (!arguments.svg_path.empty()) {
    auto written = storage::write_text(arguments.svg_path, draw_svg(pictures));
    if (!written) return written.error();
  }
  if (!arguments.html_path.empty()) {
    auto written = storage::write_text(
        arguments.html_path,
        draw_html(fmt::format("{}, step {}", arguments.run, step.step), report, pictures));
    if (!written) return written.error();
  }
  fmt::print("{}", arguments.json ? to_json(subject, comparison) : report);
  return exit_success;
}

}  // namespace troupe::cli
