#include "instruction_walk.hpp"

#include <algorithm>

#include "transfers.hpp"

namespace troupe {

namespace {

class Walker {
public:
  Walker(const std::vector<std::vector<Instruction>>& rows, const Schedule& passes,
         Handover handover, std::span<const Stop> stops)
      : rows_{rows},
        passes_{passes},
        handover_{handover},
        outputs_{passes},
        made_(outputs_.count(), never),
        sent_(outputs_.count(), never),
        received_(outputs_.count(), never),
        ready_(outputs_.count(), never),
        free_(rows.size(), 0),
        waits_for_(rows.size(), no_output) {
    result_.stopped.resize(rows.size(), 0);
    result_.awaited.resize(rows.size());
    result_.begins.resize(rows.size());
    for (std::uint32_t r = 0; r < rows.size(); ++r) {
      ends_.push_back(rows[r].size());
      runnable_.push_back(r);
    }
    for (const auto& stop : stops) ends_[stop.rank] = stop.at;
  }

  InstructionWalk run() && {
    while (!runnable_.empty()) {
      const auto rank = runnable_.back();
      runnable_.pop_back();
      while (result_.stopped[rank] < ends_[rank]) {
        const auto ran =
            std::visit([&](const auto& instruction) { return run(rank, instruction); }, here(rank));
        if (!ran) break;
      }
    }
    return std::move(result_);
  }

private:
  static constexpr std::int64_t never = -1;

  [[nodiscard]] const Instruction& here(std::uint32_t rank) const {
    return rows_[rank][result_.stopped[rank]];
  }
  [[nodiscard]] std::uint32_t rank_of(StageIndex stage) const {
    return passes_.rank_of_stage[stage.value()].value();
  }

  bool run(std::uint32_t rank, const Action& action) { return run_passes(rank, {&action, 1}); }
  bool run(std::uint32_t rank, const OverlappedPasses& both) {
    return run_passes(rank, both.passes);
  }
  bool run(std::uint32_t rank, const WeightExchange&) {
    begin(rank, free_[rank]);
    return true;
  }
  bool run(std::uint32_t rank, const Transfer& transfer) {
    if (!leaves_its_rank(passes_, transfer)) return false;
    const auto output = output_of(outputs_, passes_, transfer);
    if (transfer.step == TransferStep::wait) {
      if (ready_[output] == never) return waits(rank, output, *counterpart_of(passes_, transfer));
      begin(rank, std::max(free_[rank], ready_[output]));
      return true;
    }
    if (handover_ == Handover::ordered) return meet(rank, transfer, output);
    auto& posted = transfer.step == TransferStep::send ? sent_ : received_;
    posted[output] = begin(rank, free_[rank]);
    if (sent_[output] == never || received_[output] == never) return true;
    ready_[output] = std::max(sent_[output], received_[output]) + 1;
    wake(rank_of(counterpart_of(passes_, transfer)->stage), output);
    return true;
  }

  /// Runs both ends of a transfer when the later of their ranks arrives.
  bool meet(std::uint32_t rank, const Transfer& transfer, std::size_t output) {
    const auto counterpart = *counterpart_of(passes_, transfer);
    const auto other = rank_of(counterpart.stage);
    if (result_.stopped[other] == ends_[other] || here(other) != Instruction{counterpart}) {
      return waits(rank, output, counterpart);
    }
    const auto time = std::max(free_[rank], free_[other]);
    begin(rank, time);
    begin(other, time);
    ready_[output] = time + 1;
    runnable_.push_back(other);
    return true;
  }

  bool run_passes(std::uint32_t rank, std::span<const Action> actions) {
    auto time = free_[rank];
    for (const auto& action : actions) {
      const auto needed = outputs_.needed_by(action);
      if (needed == no_output) continue;
      const auto receive = transfer_of(passes_, action, TransferStep::receive);
      const bool is_direct = !receive || handover_ == Handover::direct;
      const auto ready = (is_direct ? made_ : ready_)[needed];
      if (ready == never && !receive) return false;
      if (ready == never) return waits(rank, needed, *counterpart_of(passes_, *receive));
      time = std::max(time, ready);
    }
    begin(rank, time);
    free_[rank] = time + static_cast<std::int64_t>(actions.size());
    for (const auto& action : actions) {
      const auto output = outputs_.made_by(action);
      if (output == no_output) continue;
      made_[output] = free_[rank];
      const auto send = transfer_of(passes_, action, TransferStep::send);
      if (send) wake(rank_of(counterpart_of(passes_, *send)->stage), output);
    }
    return true;
  }

  std::int64_t begin(std::uint32_t rank, std::int64_t time) {
    result_.begins[rank].push_back(time);
    result_.awaited[rank].reset();
    ++result_.stopped[rank];
    free_[rank] = time + 1;
    return time;
  }
  bool waits(std::uint32_t rank, std::size_t output, const Transfer& until) {
    waits_for_[rank] = output;
    Instruction awaited = until;
    if (handover_ == Handover::direct) {
      const bool forward = until.cargo == Cargo::activations;
      awaited = Action{until.stage, forward ? Pass::forward : Pass::backward, until.microbatch};
    }
    result_.awaited[rank] = {awaited, rank_of(until.stage)};
    return false;
  }
  void wake(std::uint32_t rank, std::size_t output) {
    if (waits_for_[rank] != output) return;
    waits_for_[rank] = no_output;
    runnable_.push_back(rank);
  }

  const std::vector<std::vector<Instruction>>& rows_;
  const Schedule& passes_;
  const Handover handover_;
  const OutputNumbers outputs_;
  std::vector<std::int64_t> made_;      ///< By output: when.
  std::vector<std::int64_t> sent_;      ///< By output: when that was posted.
  std::vector<std::int64_t> received_;  ///< By output: when that was posted.
  std::vector<std::int64_t> ready_;     ///< By output: when its transfer is over.
  std::vector<std::int64_t> free_;      ///< By rank: when what it runs is over.
  std::vector<std::size_t> waits_for_;  ///< By rank: an output.
  std::vector<std::size_t> ends_;       ///< By rank: where it stops in any case.
  std::vector<std::uint32_t> runnable_;
  InstructionWalk result_;
};

}  // namespace

InstructionWalk walk(const std::vector<std::vector<Instruction>>& rows, const Schedule& passes,
                     Handover handover, std::span<const Stop> stops) {
  return Walker{rows, passes, handover, stops}.run();
}

}  // namespace troupe
