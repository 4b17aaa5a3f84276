// troupe/engine/schedule.hpp -- which rank runs which pass of which microbatch, and in what order.
//
// A schedule is plain data. It performs nothing: `StageMachine` walks one rank of it at run time
// and `simulate` walks all of them without hardware. The text form of an action is the virtual
// stage, the pass and the microbatch, so `2F0` is "stage 2 runs the forward pass of microbatch 0".
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "troupe/engine/index.hpp"

namespace troupe {

/// What a stage does with a microbatch.
enum class Pass : std::uint8_t {
  forward,          ///< F: activations in, activations (or the loss) out.
  backward,         ///< B: output gradient in, input gradient out; weight gradients accumulate.
  backward_input,   ///< I: the part of B that makes the input gradient.
  backward_weight,  ///< W: the part of B that accumulates the weight gradients.
};

/// Returns the pass's letter: F, B, I or W.
[[nodiscard]] char to_letter(Pass pass) noexcept;

/// Whether the pass makes the gradient that the stage before it waits for: B and I.
[[nodiscard]] constexpr bool makes_input_gradient(Pass pass) noexcept {
  return pass == Pass::backward || pass == Pass::backward_input;
}

/// Whether the pass adds to the weight gradients, and thereby ends the use of the activations of
/// its microbatch: B and W. The weight passes of a stage run in microbatch order, because the
/// gradients are sums of floats: one order is what gives every schedule the same bits.
[[nodiscard]] constexpr bool accumulates_weights(Pass pass) noexcept {
  return pass == Pass::backward || pass == Pass::backward_weight;
}

/// One unit of work: a pass of a microbatch on a virtual stage.
struct Action {
  StageIndex stage;
  Pass pass = Pass::forward;
  MicrobatchIndex microbatch;

  friend constexpr auto operator<=>(const Action&, const Action&) = default;
};

/// Returns the text form of `action`, for example `"2F0"`.
[[nodiscard]] std::string to_string(const Action& action);

/// Consecutive microbatches: `begin` and what follows, up to but not including `end`.
struct MicrobatchRange {
  std::uint32_t begin = 0;
  std::uint32_t end = 0;

  [[nodiscard]] constexpr bool contains(MicrobatchIndex microbatch) const noexcept {
    return microbatch.value() >= begin && microbatch.value() < end;
  }
  friend constexpr bool operator==(const MicrobatchRange&, const MicrobatchRange&) = default;
};

/// What a step of the schedule is for.
enum class StepKind : std::uint8_t {
  training,    ///< Every microbatch goes forward and backward through every stage.
  evaluation,  ///< Forward passes only; the loss is measured and nothing is kept.
};

/// The ordered work of every pipeline rank for one step of one replica.
///
/// A schedule may run several copies of the model, each on stages of its own and with an equal
/// share of the microbatches: copy c has the stages from c S on, S being the stages of one copy,
/// and the c-th share. A pipeline in two directions has two.
///
/// Invariant (established by `validate`): every stage runs, on the rank that holds it, each pass of
/// every microbatch of its copy exactly once, inputs before outputs, and no rank waits for work
/// that no other rank will do.
struct Schedule {
  std::string name;
  StepKind kind = StepKind::training;
  std::uint32_t microbatch_count = 1;      ///< Of all copies.
  std::uint32_t copy_count = 1;            ///< Divides the microbatches and the stages.
  std::vector<RankIndex> rank_of_stage;    ///< By virtual stage: the rank that holds it.
  std::vector<std::vector<Action>> ranks;  ///< By rank: its program, in order.

  [[nodiscard]] std::uint32_t stage_count() const noexcept {
    return static_cast<std::uint32_t>(rank_of_stage.size());
  }
  [[nodiscard]] std::uint32_t rank_count() const noexcept {
    return static_cast<std::uint32_t>(ranks.size());
  }
  [[nodiscard]] std::uint32_t stages_per_copy() const noexcept {
    return stage_count() / copy_count;
  }
  /// The copy of the model that `stage` belongs to.
  [[nodiscard]] std::uint32_t copy_of(StageIndex stage) const noexcept {
    return stage.value() / stages_per_copy();
  }
  /// Whether `stage` reads tokens.
  [[nodiscard]] bool is_first(StageIndex stage) const noexcept {
    return stage.value() % stages_per_copy() == 0;
  }
  /// Whether `stage` computes the loss.
  [[nodiscard]] bool is_last(StageIndex stage) const noexcept {
    return (stage.value() + 1) % stages_per_copy() == 0;
  }
  /// The stage whose output `action` needs: the activation of the stage before, or the gradient of
  /// the one behind. None for tokens, for the loss, and for a weight pass.
  [[nodiscard]] std::optional<StageIndex> source_of(const Action& action) const noexcept;
  /// The microbatches that pass through `stage`.
  [[nodiscard]] MicrobatchRange microbatches_of(StageIndex stage) const noexcept {
    const auto share = microbatch_count / copy_count;
    return {copy_of(stage) * share, (copy_of(stage) + 1) * share};
  }
  /// The passes of all ranks together.
  [[nodiscard]] std::size_t action_count() const noexcept;
  /// The virtual stages that `rank` holds, in ascending order.
  [[nodiscard]] std::vector<StageIndex> stages_of(RankIndex rank) const;

  friend bool operator==(const Schedule&, const Schedule&) = default;
};

/// The sizes up to which schedules are made and read; beyond them a number is a mistake.
struct ScheduleLimits {
  static constexpr std::uint32_t rank_count_max = 1U << 16U;
  static constexpr std::uint32_t stage_count_max = 1U << 20U;
  static constexpr std::uint32_t microbatch_count_max = 1U << 20U;
  static constexpr std::size_t action_count_max = std::size_t{1} << 27U;  ///< 1.6 GB of actions.
};

/// How virtual stages are dealt to ranks.
enum class StageMap : std::uint8_t {
  looped,    ///< Stage v on rank v mod P; with one chunk, one stage per rank.
  v_shaped,  ///< Down the ranks and up again: with two chunks, stage v on min(v, 2P - 1 - v). A
             ///< third chunk goes down again, and so on.
};

/// Returns the map of `chunk_count` virtual stages per rank; all counts at least 1.
[[nodiscard]] std::vector<RankIndex> make_stage_map(StageMap map, std::uint32_t rank_count,
                                                    std::uint32_t chunk_count);

/// The most microbatches in flight on `stage` at once: between a microbatch's forward pass and the
/// end of `until`, which is `Pass::backward_input` (its gradient has gone on) or
/// `Pass::backward_weight` (its activations are no longer needed). A whole backward pass is both.
/// For an evaluation schedule a microbatch is in flight only during its forward pass.
[[nodiscard]] std::uint32_t in_flight_max(const Schedule& schedule, StageIndex stage, Pass until);

/// The same for every stage at once, by stage, in one walk over the schedule.
[[nodiscard]] std::vector<std::uint32_t> in_flight_max(const Schedule& schedule, Pass until);

}  // namespace troupe
