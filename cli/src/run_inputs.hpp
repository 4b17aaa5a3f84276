// cli/src/run_inputs.hpp -- everything `train` and `plan` read before they begin.
#pragma once

#include <cstdint>
#include <string>

#include "troupe/engine/plan.hpp"

#include "commands.hpp"

namespace troupe::cli {

/// Reads and checks the configuration and, if it names one, the schedule file; decides the plan.
/// @returns one error naming file, line or key and what to do.
[[nodiscard]] Expected<Plan> load_plan(const RunArguments& arguments);

/// What a process needs beyond the plan's lines and the batches: program and libraries, actors, the
/// streams' scratch memory.
inline constexpr std::uint64_t runtime_bytes = std::uint64_t{64} << 20U;

/// The bytes of the batches that a process keeps for the whole grid.
[[nodiscard]] std::uint64_t batch_bytes(const Plan& plan);

/// The bytes of a process that holds the whole grid.
[[nodiscard]] std::uint64_t process_bytes(const Plan& plan);

/// Checks `process_bytes` against the memory of this machine.
/// @returns `out_of_memory` with both numbers and what to make smaller.
[[nodiscard]] Expected<Done> check_memory(const Plan& plan);

/// How many streams can compute at once: the ranks of the grid, or as many as there are cores.
[[nodiscard]] std::uint32_t concurrent_streams(const Plan& plan);

/// Formats bytes for a person, for example "1.50 GiB".
[[nodiscard]] std::string format_bytes(std::uint64_t bytes);

}  // namespace troupe::cli
