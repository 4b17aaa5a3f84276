// engine/src/transfers.hpp -- which transfers belong to the passes of a schedule.
#pragma once

#include <cstddef>
#include <optional>

#include "troupe/engine/communication.hpp"
#include "troupe/engine/schedule.hpp"

#include "dependency_order.hpp"

namespace troupe {

/// The other end of `transfer`, for a wait the receive; nothing if there is no stage at it. Stages
/// in range.
[[nodiscard]] inline std::optional<Transfer> counterpart_of(const Schedule& schedule,
                                                            const Transfer& transfer) {
  const auto [stage, step, cargo, microbatch] = transfer;
  const bool receives = step == TransferStep::receive;
  const bool is_behind = (cargo == Cargo::activations) != receives;
  if (is_behind ? schedule.is_last(stage) : schedule.is_first(stage)) return std::nullopt;
  return Transfer{StageIndex{is_behind ? stage.value() + 1 : stage.value() - 1},
                  receives ? TransferStep::send : TransferStep::receive, cargo, microbatch};
}

/// Whether `transfer` leads from one rank to another.
[[nodiscard]] inline bool leaves_its_rank(const Schedule& schedule, const Transfer& transfer) {
  const auto other = counterpart_of(schedule, transfer);
  return other
         && schedule.rank_of_stage[other->stage.value()]
                != schedule.rank_of_stage[transfer.stage.value()];
}

/// The transfer at `step` of what `action` makes or needs, if that comes from or goes to another
/// rank.
[[nodiscard]] inline std::optional<Transfer> transfer_of(const Schedule& schedule,
                                                         const Action& action, TransferStep step) {
  if (action.pass == Pass::backward_weight) return std::nullopt;
  const auto cargo = action.pass == Pass::forward ? Cargo::activations : Cargo::gradient;
  const Transfer transfer{action.stage, step, cargo, action.microbatch};
  if (!leaves_its_rank(schedule, transfer)) return std::nullopt;
  return transfer;
}

/// Which of the outputs of a schedule `transfer` carries, by the numbers of `OutputNumbers`.
[[nodiscard]] inline std::size_t output_of(const OutputNumbers& outputs, const Schedule& schedule,
                                           const Transfer& transfer) {
  const bool receives = transfer.step == TransferStep::receive;
  const auto maker = receives ? counterpart_of(schedule, transfer)->stage : transfer.stage;
  const auto pass = transfer.cargo == Cargo::activations ? Pass::forward : Pass::backward;
  return outputs.made_by({maker, pass, transfer.microbatch});
}

}  // namespace troupe
