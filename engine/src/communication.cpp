#include "troupe/engine/communication.hpp"

#include <algorithm>
#include <cstddef>
#include <tuple>
#include <utility>

#include "instruction_words.hpp"
#include "pass_steps.hpp"
#include "transfers.hpp"

namespace troupe {

namespace {

/// An instruction and its place in the one order of all ranks: by step, passes before transfers,
/// those by sending rank.
struct Placed {
  std::size_t step;
  bool is_transfer;
  RankIndex by;
  Instruction instruction;

  friend bool operator<(const Placed& a, const Placed& b) {
    return std::tie(a.step, a.is_transfer, a.by) < std::tie(b.step, b.is_transfer, b.by);
  }
};

/// A schedule of the other kind with the same stages, ranks without instructions.
template <class To, class From>
To frame_of(const From& schedule) {
  To to;
  to.name = schedule.name;
  to.kind = schedule.kind;
  to.microbatch_count = schedule.microbatch_count;
  to.copy_count = schedule.copy_count;
  to.rank_of_stage = schedule.rank_of_stage;
  to.ranks.resize(schedule.ranks.size());
  return to;
}

}  // namespace

std::span<const Action> passes_of(const Instruction& instruction) {
  if (const auto* action = std::get_if<Action>(&instruction)) return {action, 1};
  if (const auto* both = std::get_if<OverlappedPasses>(&instruction)) return both->passes;
  return {};
}

std::string to_string(const Instruction& instruction) {
  struct Writer {
    std::string operator()(const Action& action) const { return to_string(action); }
    std::string operator()(const OverlappedPasses& both) const {
      return '(' + to_string(both.passes[0]) + ';' + to_string(both.passes[1]) + ')' + overlap_word;
    }
    std::string operator()(const Transfer& transfer) const {
      return std::to_string(transfer.stage.value()).append(word_of(transfer))
             + std::to_string(transfer.microbatch.value());
    }
    std::string operator()(const WeightExchange& exchange) const {
      return std::to_string(exchange.stage.value()).append(word_of(exchange));
    }
  };
  return std::visit(Writer{}, instruction);
}

CommunicationSchedule with_communication(const Schedule& schedule) {
  const auto steps = steps_of(schedule);
  std::vector<std::vector<Placed>> rows(schedule.rank_count());
  for (std::uint32_t r = 0; r < schedule.rank_count(); ++r) {
    for (std::size_t at = 0; at < schedule.ranks[r].size(); ++at) {
      const auto& action = schedule.ranks[r][at];
      const auto step = steps[r][at];
      rows[r].push_back({step, false, RankIndex{r}, action});
      const auto send = transfer_of(schedule, action, TransferStep::send);
      if (!send) continue;
      const auto receive = counterpart_of(schedule, *send).value();
      rows[r].push_back({step, true, RankIndex{r}, *send});
      rows[schedule.rank_of_stage[receive.stage.value()].value()].push_back(
          {step, true, RankIndex{r}, receive});
    }
  }
  auto result = frame_of<CommunicationSchedule>(schedule);
  for (std::uint32_t r = 0; r < schedule.rank_count(); ++r) {
    std::sort(rows[r].begin(), rows[r].end());
    for (const auto& placed : rows[r]) result.ranks[r].push_back(placed.instruction);
  }
  return result;
}

Schedule without_communication(const CommunicationSchedule& schedule) {
  auto result = frame_of<Schedule>(schedule);
  for (std::size_t r = 0; r < schedule.ranks.size(); ++r) {
    auto& row = result.ranks[r];
    for (const auto& instruction : schedule.ranks[r]) {
      const auto passes = passes_of(instruction);
      row.insert(row.end(), passes.begin(), passes.end());
    }
  }
  return result;
}

bool has_communication(const CommunicationSchedule& schedule) {
  return std::ranges::any_of(schedule.ranks, [](const auto& row) {
    return std::ranges::any_of(row, [](const auto& i) { return passes_of(i).empty(); });
  });
}

}  // namespace troupe
