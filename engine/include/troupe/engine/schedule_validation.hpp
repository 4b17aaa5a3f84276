// troupe/engine/schedule_validation.hpp -- says whether a schedule can be trusted, or where not.
#pragma once

#include <cstdint>
#include <vector>

#include "troupe/engine/expected.hpp"
#include "troupe/engine/schedule.hpp"

namespace troupe {

/// Checks, in this order, the rules that make `schedule` safe to execute:
///
///   - shape: there are ranks, stages and microbatches, which copies of the model share equally;
///   every stage is on a rank, every rank has one.
///   - range: stages and microbatches of all actions exist.
///   - copy: a stage runs microbatches of its own copy of the model.
///   - placement: every action is on the rank that holds its stage.
///   - kind: an evaluation step has forward passes only.
///   - once: no pass runs twice; B counts as I and W.
///   - completeness: every stage runs every pass of every microbatch.
///   - order: the forward pass before B or I, I before W.
///   - weight order: the weight passes of a stage in microbatch order (see `accumulates_weights`).
///   - deadlock: no ranks wait for each other in a circle.
///
/// Time and memory grow linearly with the actions, whatever the counts in `schedule` claim.
///
/// @returns `invalid_schedule` with one line that begins with the rule's name, says which rank
/// breaks
///          it and why, and shows a part of the rank's row with the offending action as `>1B1<`.
[[nodiscard]] Expected<Done> validate(const Schedule& schedule);

/// Checks that no rank ever needs more slots than it has. A microbatch takes one on a stage with
/// its forward pass, and gives it back behind the weight pass; in an evaluation, behind the forward
/// pass.
/// @param schedule one that `validate` accepts.
/// @param slots_max by rank, or one value for all.
/// @returns `invalid_schedule` with the first action that lacks a slot, marked as above, and how
/// many
///          the rank needs in all.
[[nodiscard]] Expected<Done> validate_memory(const Schedule& schedule,
                                             const std::vector<std::uint32_t>& slots_max);

}  // namespace troupe
