// troupe/engine/communication.hpp -- a schedule that also says when ranks send and receive.
//
// troupe runs a `Schedule` and lets tags match what ranks send each other. PyTorch's pipelining
// runs a list of instructions in which sends and receives have their places too, its
// "compute_comms" format. This is that list, as plain data: to be read, validated, made from a
// schedule, written.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "troupe/engine/index.hpp"
#include "troupe/engine/schedule.hpp"

namespace troupe {

/// What stages hand to each other.
enum class Cargo : std::uint8_t {
  activations,  ///< F: from a stage to the one behind it.
  gradient,     ///< B: from a stage to the one before it.
};

enum class TransferStep : std::uint8_t {
  send,
  receive,
  wait,  ///< Until what was sent has been received.
};

/// One end of a transfer: `1SEND_F3` is "stage 1 sends the activations of microbatch 3".
struct Transfer {
  StageIndex stage;  ///< The one at this end.
  TransferStep step = TransferStep::send;
  Cargo cargo = Cargo::activations;
  MicrobatchIndex microbatch;

  friend constexpr bool operator==(const Transfer&, const Transfer&) = default;
};

/// What replicas that share out the weights of a stage do about them.
enum class WeightStep : std::uint8_t {
  unshard,       ///< Gathers the weights.
  reshard,       ///< Gives up the parts of the others.
  reduce,        ///< Begins to sum the gradients.
  wait_reduced,  ///< Until they are summed.
};

/// For example `0UNSHARD`.
struct WeightExchange {
  StageIndex stage;
  WeightStep step = WeightStep::unshard;

  friend constexpr bool operator==(const WeightExchange&, const WeightExchange&) = default;
};

/// Two passes that begin together and may overlap: `(0F1;3B0)OVERLAP_F_B`.
struct OverlappedPasses {
  std::array<Action, 2> passes;

  friend constexpr bool operator==(const OverlappedPasses&, const OverlappedPasses&) = default;
};

using Instruction = std::variant<Action, OverlappedPasses, Transfer, WeightExchange>;

/// The passes of `instruction`: one, two that overlap, or none. They lie in it.
[[nodiscard]] std::span<const Action> passes_of(const Instruction& instruction);

/// Returns PyTorch's text form of `instruction`.
[[nodiscard]] std::string to_string(const Instruction& instruction);

/// The ordered instructions of every pipeline rank for one step of one replica. The fields are
/// those of `Schedule`; `validate` in communication_validation.hpp says what makes one valid.
struct CommunicationSchedule {
  std::string name;
  StepKind kind = StepKind::training;
  std::uint32_t microbatch_count = 1;
  std::uint32_t copy_count = 1;
  std::vector<RankIndex> rank_of_stage;
  std::vector<std::vector<Instruction>> ranks;

  friend bool operator==(const CommunicationSchedule&, const CommunicationSchedule&) = default;
};

/// Inserts a send behind every pass whose output another rank needs, and the receive before the
/// pass that needs it. Nothing travels within a rank. Both ends have their place behind the passes
/// of the step in which the output is made, if every pass takes one (see `to_csv`), in the order of
/// the sending ranks. So there is one order of all passes and transfers that every row follows, and
/// the result ends under every matching, also if a send holds up its rank until it is received.
/// @param schedule a validated schedule.
[[nodiscard]] CommunicationSchedule with_communication(const Schedule& schedule);

/// The passes alone, those that overlap one behind the other.
[[nodiscard]] Schedule without_communication(const CommunicationSchedule& schedule);

/// Whether there is anything but passes.
[[nodiscard]] bool has_communication(const CommunicationSchedule& schedule);

}  // namespace troupe
