// cli/src/schedule_source.hpp -- schedules that are files.
#pragma once

#include <string>

#include "troupe/engine/expected.hpp"
#include "troupe/engine/schedule.hpp"

namespace troupe::cli {

/// Reads and validates a schedule file. Weight passes out of microbatch order are brought into
/// order, with a note on stderr.
/// @returns `file_failure` or `invalid_file` naming path, row and column; `invalid_schedule` naming
///          path, rank and the offending action as the file has it.
[[nodiscard]] Expected<Schedule> read_schedule(const std::string& path);

}  // namespace troupe::cli
