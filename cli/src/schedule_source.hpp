// cli/src/schedule_source.hpp -- schedules that are files.
#pragma once

#include <string>

#include "troupe/engine/communication_validation.hpp"
#include "troupe/engine/expected.hpp"
#include "troupe/engine/schedule.hpp"

namespace troupe::cli {

/// How a file with communication is read, and what becomes of a file that is refused.
struct ScheduleReading {
  Matching matching = Matching::tagged;
  std::string counterexample_path;  ///< Where it is drawn, as SVG or text; empty: nowhere.
};

/// Reads and validates a schedule file. Weight passes out of microbatch order are brought into
/// order, with a note on stderr; sends, receives and the like are validated and left out.
/// @returns `file_failure` or `invalid_file` naming path, row and column; `invalid_schedule` naming
///          path, rank and the offending action as the file has it.
[[nodiscard]] Expected<Schedule> read_schedule(const std::string& path,
                                               const ScheduleReading& reading = {});

}  // namespace troupe::cli
