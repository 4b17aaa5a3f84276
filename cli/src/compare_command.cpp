#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "troupe/engine/draw.hpp"
#include "troupe/engine/simulate.hpp"
#include "troupe/storage/text_file.hpp"

#include "commands.hpp"
#include "comparison_report.hpp"
#include "counted.hpp"
#include "recorded_steps.hpp"
#include "step_comparison.hpp"
#include "step_pictures.hpp"

namespace troupe::cli {

namespace {

using actors::StepReport;

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
      "each pass as long as its mean over " + counted(recorded->steps.size(), "step")};
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
