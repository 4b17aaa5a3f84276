// cli/src/run_inputs.hpp -- everything `train` and `plan` read before they begin.
#pragma once

#include <cstdint>
#include <string_view>

#include "troupe/engine/plan.hpp"

#include "commands.hpp"

namespace troupe::cli {

/// Reads and checks the configuration and, if it names one, the schedule file; decides the plan.
/// @returns one error naming file, line or key and what to do.
[[nodiscard]] Expected<Plan> load_plan(const RunArguments& arguments);

/// Whether the device of this machine that the configuration names can do what the plan wants.
/// @returns `invalid_config` with what to change.
[[nodiscard]] Expected<Done> check_device(const Plan& plan);

/// Checks what so many processes of this machine need together against what is available to them.
/// @returns `out_of_memory` with both numbers and what to make smaller.
[[nodiscard]] Expected<Done> check_memory(const Plan& plan, std::uint32_t process_count);

/// What a predicted step of the plan leaves out, as a sentence for a person; empty if nothing.
[[nodiscard]] std::string_view left_out_of_prediction(const Plan& plan,
                                                      std::uint32_t process_count);

/// How many streams can compute at once if this machine performs the whole grid.
[[nodiscard]] std::uint32_t concurrent_streams(const Plan& plan);

}  // namespace troupe::cli
