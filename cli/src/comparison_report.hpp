// cli/src/comparison_report.hpp -- a compared step in words, as tables, and as JSON.
#pragma once

#include <cstddef>
#include <string>

#include "recorded_steps.hpp"
#include "step_comparison.hpp"

namespace troupe::cli {

/// What was compared, for the report's head.
struct ComparisonSubject {
  std::string run;  ///< The folder.
  const RecordedSteps& recorded;
  std::string basis;  ///< What the simulation rests on.
};

/// One sentence: how much longer the step took than simulated, and where most of it went.
[[nodiscard]] std::string verdict_of(const StepComparison& comparison);

/// The step and its ranks, their time by cause, the passes that were furthest off, and the verdict.
[[nodiscard]] std::string to_report(const ComparisonSubject& subject,
                                    const StepComparison& comparison);

/// Everything as one JSON object, for programs.
[[nodiscard]] std::string to_json(const ComparisonSubject& subject,
                                  const StepComparison& comparison);

}  // namespace troupe::cli
