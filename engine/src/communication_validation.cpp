#include "troupe/engine/communication_validation.hpp"

#include <string>
#include <variant>

#include "instruction_walk.hpp"
#include "rejection.hpp"
#include "transfers.hpp"

namespace troupe {

namespace {

using InstructionPlace = Place<CommunicationSchedule>;

std::string text_of(StageIndex stage) {
  return "stage " + std::to_string(stage.value());
}

// -- rules of one instruction ---------------------------------------------------------------------

/// Checks range, copy, placement, kind and transfer.
class PlaceRules {
public:
  explicit PlaceRules(const Schedule& passes) : passes_{passes} {}

  Verdict operator()(const InstructionPlace& place) const {
    if (const auto* exchange = std::get_if<WeightExchange>(&place.action())) {
      const bool reduces =
          exchange->step == WeightStep::reduce || exchange->step == WeightStep::wait_reduced;
      if (auto verdict = check_stage(place, exchange->stage)) return verdict;
      return reduces ? check_has_gradients(place) : std::nullopt;
    }
    const auto* transfer = std::get_if<Transfer>(&place.action());
    if (transfer == nullptr) return std::nullopt;  // `validate` has looked at passes.
    if (auto verdict = check_stage(place, transfer->stage)) return verdict;
    if (auto verdict = check_microbatch(place, *transfer)) return verdict;
    if (transfer->cargo == Cargo::gradient) {
      if (auto verdict = check_has_gradients(place)) return verdict;
    }
    return check_ends(place, *transfer);
  }

private:
  [[nodiscard]] Verdict check_stage(const InstructionPlace& place, StageIndex stage) const {
    if (stage.value() >= passes_.stage_count()) {
      return broken_at("range", place,
                       ", a stage that does not exist: " + to_range(passes_.stage_count()));
    }
    const auto home = passes_.rank_of_stage[stage.value()].value();
    if (home == place.rank) return std::nullopt;
    return broken_at("placement", place, ", but " + text_of(stage) + " is on " + name_of(home));
  }
  [[nodiscard]] Verdict check_microbatch(const InstructionPlace& place,
                                         const Transfer& transfer) const {
    if (transfer.microbatch.value() >= passes_.microbatch_count) {
      return broken_at("range", place,
                       ", a microbatch that does not exist: " + to_range(passes_.microbatch_count));
    }
    if (passes_.microbatches_of(transfer.stage).contains(transfer.microbatch)) return std::nullopt;
    return broken_at("copy", place, ", a microbatch of another copy of the model");
  }
  [[nodiscard]] Verdict check_has_gradients(const InstructionPlace& place) const {
    if (passes_.kind == StepKind::training) return std::nullopt;
    return broken_at("kind", place, ", but an evaluation step has no gradients");
  }
  [[nodiscard]] Verdict check_ends(const InstructionPlace& place, const Transfer& transfer) const {
    const auto counterpart = counterpart_of(passes_, transfer);
    if (!counterpart) {
      const bool receives = transfer.step == TransferStep::receive;
      const bool is_ahead = (transfer.cargo == Cargo::activations) == receives;
      return broken_at("transfer", place,
                       ", but " + text_of(transfer.stage) + " is the "
                           + (is_ahead ? "first" : "last") + " of the model");
    }
    if (leaves_its_rank(passes_, transfer)) return std::nullopt;
    return broken_at(
        "transfer", place,
        ", but " + text_of(counterpart->stage) + " is on the same rank, where nothing is sent");
  }

  const Schedule& passes_;
};

// -- rules of rows --------------------------------------------------------------------------------

/// What has happened to the outputs and stages of a schedule, row by row. Checks once, order, shard
/// and completeness.
class CommunicationLedger {
public:
  CommunicationLedger(const CommunicationSchedule& schedule, const Schedule& passes)
      : schedule_{schedule},
        passes_{passes},
        outputs_{passes},
        happened_(outputs_.count(), 0),
        stages_(passes.stage_count()) {
    for (const auto& row : schedule.ranks) {
      for (const auto& instruction : row) {
        const auto* exchange = std::get_if<WeightExchange>(&instruction);
        if (exchange == nullptr) continue;
        auto& stage = stages_[exchange->stage.value()];
        stage.is_shared_out |= !reduces(exchange->step);
      }
    }
  }

  Verdict enter(const InstructionPlace& place) {
    return std::visit([&](const auto& instruction) { return enter(place, instruction); },
                      place.action());
  }

  [[nodiscard]] Verdict check_complete() const {
    return for_every_place(passes_, [&](const Place<Schedule>& place) -> Verdict {
      const auto receive = transfer_of(passes_, place.action(), TransferStep::receive);
      if (!receive) return std::nullopt;
      const auto send = *counterpart_of(passes_, *receive);
      for (const auto& transfer : {send, *receive}) {
        if (!has(transfer)) return missing(transfer, place);
      }
      return std::nullopt;
    });
  }

private:
  struct StageState {
    bool is_shared_out = false;  ///< Its weights are, so they must be gathered before passes.
    bool is_whole = false;       ///< They are.
    bool is_reduced = false;
    bool is_waited_for = false;
  };

  static constexpr bool reduces(WeightStep step) noexcept {
    return step == WeightStep::reduce || step == WeightStep::wait_reduced;
  }
  /// Bits for what has happened to an output: 1 and up for the steps of its transfer, and:
  static constexpr unsigned made_bit = 8;
  static constexpr unsigned bit_of(TransferStep step) noexcept {
    return 1U << static_cast<unsigned>(step);
  }
  [[nodiscard]] bool has(const Transfer& transfer) const {
    return (happened_[output_of(outputs_, passes_, transfer)] & bit_of(transfer.step)) != 0;
  }
  [[nodiscard]] bool is_made(std::size_t output) const {
    return (happened_[output] & made_bit) != 0;
  }
  void enter(std::size_t output, unsigned bit) {
    happened_[output] = static_cast<std::uint8_t>(happened_[output] | bit);
  }

  Verdict enter(const InstructionPlace& place, const Transfer& transfer) {
    if (has(transfer)) return stopped_at("once", place, " a second time");
    const auto output = output_of(outputs_, passes_, transfer);
    if (transfer.step == TransferStep::send && !is_made(output)) {
      const bool forward = transfer.cargo == Cargo::activations;
      return stopped_at("order", place,
                        " before "
                            + to_string({transfer.stage, forward ? Pass::forward : Pass::backward,
                                         transfer.microbatch})
                            + (forward ? "" : " (or I)") + ", which makes it");
    }
    if (transfer.step == TransferStep::wait) {
      auto send = transfer;
      send.step = TransferStep::send;
      if (!has(send)) return stopped_at("order", place, " before " + to_string(send));
    }
    enter(output, bit_of(transfer.step));
    return std::nullopt;
  }

  Verdict enter(const InstructionPlace& place, const Action& action) {
    return enter_passes(place, {&action, 1});
  }
  Verdict enter(const InstructionPlace& place, const OverlappedPasses& both) {
    const auto& [first, second] = both.passes;
    const bool is_same = first.stage == second.stage && first.microbatch == second.microbatch;
    const auto needs = [&](const Action& a, const Action& b) {
      const auto needed = outputs_.needed_by(a);
      return needed != no_output && needed == outputs_.made_by(b);
    };
    if (is_same || needs(first, second) || needs(second, first)) {
      return stopped_at("order", place,
                        ", but one of the passes needs the other, and they begin together");
    }
    return enter_passes(place, both.passes);
  }
  Verdict enter_passes(const InstructionPlace& place, std::span<const Action> actions) {
    for (const auto& action : actions) {
      const auto& stage = stages_[action.stage.value()];
      if (stage.is_shared_out && !stage.is_whole) {
        return stopped_at("shard", place, ", but " + text_of(action.stage) + " is not unsharded");
      }
      if (stage.is_reduced && accumulates_weights(action.pass)) {
        return stopped_at("order", place,
                          " behind " + to_string(WeightExchange{action.stage, WeightStep::reduce})
                              + ", which should sum its gradients");
      }
      const auto receive = transfer_of(passes_, action, TransferStep::receive);
      if (receive && !has(*receive)) {
        return stopped_at("order", place,
                          " before " + to_string(*receive) + ", whose result it needs");
      }
      const auto output = outputs_.made_by(action);
      if (output != no_output) enter(output, made_bit);
    }
    return std::nullopt;
  }

  Verdict enter(const InstructionPlace& place, const WeightExchange& exchange) {
    auto& stage = stages_[exchange.stage.value()];
    switch (exchange.step) {
      case WeightStep::unshard:
        if (stage.is_whole) {
          return stopped_at("shard", place,
                            ", but " + text_of(exchange.stage) + " is unsharded already");
        }
        stage.is_whole = true;
        return std::nullopt;
      case WeightStep::reshard:
        if (!stage.is_whole) {
          return stopped_at("shard", place,
                            ", but " + text_of(exchange.stage) + " is not unsharded");
        }
        stage.is_whole = false;
        return std::nullopt;
      case WeightStep::reduce:
        if (stage.is_reduced) return stopped_at("once", place, " a second time");
        stage.is_reduced = true;
        return std::nullopt;
      case WeightStep::wait_reduced:
        if (stage.is_waited_for) return stopped_at("once", place, " a second time");
        if (!stage.is_reduced) {
          return stopped_at(
              "order", place,
              " before " + to_string(WeightExchange{exchange.stage, WeightStep::reduce}));
        }
        stage.is_waited_for = true;
        return std::nullopt;
    }
    return std::nullopt;
  }

  [[nodiscard]] Verdict missing(const Transfer& transfer, const Place<Schedule>& needed_by) const {
    const auto rank = passes_.rank_of_stage[transfer.stage.value()].value();
    const InstructionPlace end{schedule_, rank, schedule_.ranks[rank].size()};
    return stopped_at(
        {{rank, end.at}},
        broken("completeness", name_of(rank) + " never runs " + to_string(transfer)
                                   + ", without which " + to_string(needed_by.action()) + " on "
                                   + name_of(needed_by.rank) + " has no input; its row ends "
                                   + excerpt(end)));
  }

  const CommunicationSchedule& schedule_;
  const Schedule& passes_;
  const OutputNumbers outputs_;
  std::vector<std::uint8_t> happened_;  ///< By output: bits.
  std::vector<StageState> stages_;      ///< By stage.
};

// -- the rule of all together ---------------------------------------------------------------------

Verdict check_deadlock(const CommunicationSchedule& schedule, const Schedule& passes,
                       Matching matching) {
  const auto walked = walk(schedule.ranks, passes, handover_of(matching), {});
  const auto blocker = [&](std::uint32_t rank) { return walked.awaited[rank]->rank; };
  const auto wait_of = [&](std::uint32_t rank) {
    const InstructionPlace place{schedule, rank, walked.stopped[rank]};
    const auto& [awaited, other] = *walked.awaited[rank];
    return name_of(rank) + " waits at " + to_string(place.action()) + " for " + to_string(awaited)
           + " on " + name_of(other) + " " + excerpt(place);
  };
  for (std::uint32_t r = 0; r < schedule.ranks.size(); ++r) {
    if (walked.stopped[r] < schedule.ranks[r].size()) {
      return deadlock(walked.stopped, r, blocker, wait_of);
    }
  }
  return std::nullopt;
}

}  // namespace

Verdict find_rejection(const CommunicationSchedule& schedule, const Schedule& passes,
                       Matching matching) {
  if (auto verdict = for_every_place(schedule, PlaceRules{passes})) return verdict;
  CommunicationLedger ledger{schedule, passes};
  const auto enter = [&](const InstructionPlace& place) { return ledger.enter(place); };
  if (auto verdict = for_every_place(schedule, enter)) return verdict;
  if (auto verdict = ledger.check_complete()) return verdict;
  return check_deadlock(schedule, passes, matching);
}

Expected<Done> validate(const CommunicationSchedule& schedule, Matching matching) {
  const auto passes = without_communication(schedule);
  if (const auto verdict = find_rejection(passes, WeightOrder::any)) return verdict->error;
  if (const auto verdict = find_rejection(schedule, passes, matching)) return verdict->error;
  return Done{};
}

}  // namespace troupe
