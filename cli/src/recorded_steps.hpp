// cli/src/recorded_steps.hpp -- what a run keeps of its last steps: the file steps.jsonl.
//
// The first line says what every replica was to do, as `to_csv` writes it; each other line says
// what was done in a step, by rank of the grid (broken here for reading):
//
//   {"schedule":"1f1b","csv":"0F0,0F1,,0B0,0B1\r\n,1F0,1B0,1F1,1B1\r\n"}
//   {"step":6,"duration_ns":4012345,"ranks":[{"replica":0,"rank":0,
//     "account":{"begin_ns":-8200,"computing":3100200,"dispatch":41000, ... },
//     "trace":[["0F0",15300,402100], ... ,["0 reduce",3100900,3400100],["0
//     optimize",3500000,3900000]]},
//     ... ]}
//
// Times are nanoseconds since the step began. A trace names what a device did, when it began and
// when it ended: passes, then sums over replicas and updates, of the stage whose number stands
// before the word. An account gives the time spent by cause, from `begin_ns` on, without a
// remainder.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "troupe/actors/step_report.hpp"
#include "troupe/engine/cost_model.hpp"
#include "troupe/engine/expected.hpp"
#include "troupe/engine/schedule.hpp"

namespace troupe::cli {

/// The file's name in the folder of a run.
inline constexpr std::string_view recorded_steps_name = "steps.jsonl";

/// How many of its last steps a run records.
inline constexpr std::size_t recorded_steps_max = 8;

/// Training steps of one run, in their order.
struct RecordedSteps {
  Schedule schedule;
  std::vector<actors::StepReport> steps;  ///< Without loss, norm and learning rate, if read.
};

/// How a trace names what a device did: `2F0`, `2 reduce`, `2 optimize`.
[[nodiscard]] std::string to_string(const actors::TraceEntry& entry);

/// The text of steps.jsonl.
[[nodiscard]] std::string to_jsonl(const RecordedSteps& recorded);

/// What each pass and update took, as the mean over all steps and replicas.
[[nodiscard]] CostModel measured_costs(const RecordedSteps& recorded);

/// Reads such a text. What it returns is safe to compute with: the schedule is a valid one that
/// trains; there is at least one step; the steps have the same grid and rising numbers; each rank
/// ran its passes once each, one after the other, in an order in which all could run, and updated
/// a stage at most once; all times together are less than three years.
///
/// Any bytes are safe to read, and memory grows linearly with them.
/// @param source_name names the text in errors, usually a path.
/// @returns `invalid_file` with source, line, place in the line, what was found and what was
/// expected.
[[nodiscard]] Expected<RecordedSteps> parse_recorded_steps(std::string_view text,
                                                           std::string_view source_name);

}  // namespace troupe::cli
