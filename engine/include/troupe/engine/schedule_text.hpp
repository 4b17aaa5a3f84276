// troupe/engine/schedule_text.hpp -- schedules as text: actions, rows, and files that PyTorch
// reads.
#pragma once

#include <string>
#include <string_view>

#include "troupe/engine/communication.hpp"
#include "troupe/engine/expected.hpp"
#include "troupe/engine/schedule.hpp"

namespace troupe {

/// Reads the text form of an action, for example `2F0`; the inverse of `to_string(Action)`. Nothing
/// may stand around it.
/// @returns `invalid_file` with the text found and the form expected, also for a stage or
/// microbatch
///          beyond `ScheduleLimits`.
[[nodiscard]] Expected<Action> parse_action(std::string_view text);

/// Reads the text form of an instruction, for example `1SEND_F0`; the inverse of
/// `to_string(Instruction)`. Spaces may stand around the passes of an overlapping pair.
/// @returns `invalid_file` as `parse_action` does.
[[nodiscard]] Expected<Instruction> parse_instruction(std::string_view text);

/// The schedule as one line per rank, `rank 0: 0F0 0F1 0B0 0B1`. Columns line up from rank to rank;
/// in the n-th column every rank runs its n-th pass.
[[nodiscard]] std::string to_text(const Schedule& schedule);

/// The schedule as the "compute only" CSV of PyTorch's torch.distributed.pipelining: one row per
/// rank, rows end in CR LF, a cell holds an action in its text form or nothing while the rank is
/// idle. In one column stands what the ranks do in the same step if every pass takes one, so the
/// file also runs where ranks advance column by column.
/// @param schedule a validated schedule.
[[nodiscard]] std::string to_csv(const Schedule& schedule);

/// The schedule as the "compute_comms" CSV of PyTorch's torch.distributed.pipelining: one row per
/// rank, rows end in CR LF, a cell holds an instruction, none is empty.
[[nodiscard]] std::string to_csv(const CommunicationSchedule& schedule);

/// Reads a CSV of either kind, whose cells may stand in double quotes and between spaces, or empty;
/// rows end in LF or CR LF, empty rows at the end are ignored. That and the spaces in a cell are
/// all that is lost. Row n becomes rank n; a stage is on the rank whose row runs it; the largest
/// microbatch gives their number; a schedule without backward passes evaluates; there are two
/// copies of the model if one half of the stages runs one half of the microbatches and the other
/// the other. Only passes count for that. The result is as complete as the file: `validate` it.
///
/// Any bytes are safe to read, and memory grows linearly with them.
/// @param source_name names the text in errors and becomes the schedule's name, usually a path.
/// @returns `invalid_file` with source, row (a line counted from 1), column (a cell counted from 1)
///          and cell; for a text without passes, a cell that is no instruction, an open quote, a
///          stage on two ranks, a rank without passes, a stage that no row runs, or sizes beyond
///          `ScheduleLimits`.
[[nodiscard]] Expected<CommunicationSchedule> communication_from_csv(std::string_view text,
                                                                     std::string_view source_name);

/// The same, without the communication.
[[nodiscard]] Expected<Schedule> from_csv(std::string_view text, std::string_view source_name);

}  // namespace troupe
