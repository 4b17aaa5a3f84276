// Every rule of communication, broken once, with its golden message; and random damage, judged by a
// second opinion.
#include "troupe/engine/communication_validation.hpp"

#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/engine/random.hpp"
#include "troupe/engine/schedule_text.hpp"

#include "schedule_scope.hpp"
#include "v_schedule.hpp"

namespace troupe {
namespace {

std::string complaint(const CommunicationSchedule& schedule,
                      Matching matching = Matching::ordered) {
  const auto verdict = validate(schedule, matching);
  if (verdict) return "valid";
  EXPECT_EQ(verdict.error().code, Errc::invalid_schedule);
  return verdict.error().context;
}

std::string complaint(std::string_view csv, Matching matching = Matching::ordered) {
  return complaint(communication_from_csv(csv, "x").value(), matching);
}

constexpr auto second_rank = "1RECV_F0,1F0,1B0,1SEND_B0\n";

TEST(CommunicationValidation, AcceptsWhatNamesBothEnds) {
  EXPECT_EQ(complaint(std::string{"0F0,0SEND_F0,0RECV_B0,0B0\n"} + second_rank), "valid");
  EXPECT_EQ(complaint(std::string{"0UNSHARD,0F0,0RESHARD,0SEND_F0,0RECV_B0,0UNSHARD,0B0,"
                                  "0WAIT_SEND_F0,0REDUCE_GRAD,0WAIT_REDUCE_GRAD,0RESHARD\n"}
                      + second_rank),
            "valid");
  EXPECT_EQ(complaint("0F0,0SEND_F0,0F1,0SEND_F1\n1RECV_F0,1F0,1RECV_F1,1F1\n"), "valid");
}

TEST(CommunicationValidation, WantsValidPasses) {
  EXPECT_EQ(complaint("0F0,0SEND_F0,0RECV_B0\n1RECV_F0,1F0,1B0,1SEND_B0\n"),
            "completeness: rank 0 never runs 0B0 (or 0I0 and 0W0), which the step needs; its row "
            "ends [0F0]");
}

TEST(CommunicationValidation, LeavesTheOrderOfWeightPassesToOthers) {
  EXPECT_EQ(complaint("0F0,0F1,0B1,0B0\n"), "valid");
}

TEST(CommunicationValidation, WantsStagesAndMicrobatchesThatExist) {
  EXPECT_EQ(complaint(std::string{"0F0,0SEND_F0,2SEND_F0,0RECV_B0,0B0\n"} + second_rank),
            "range: rank 0 runs 2SEND_F0, a stage that does not exist: they are 0 to 1 [0F0 "
            "0SEND_F0 >2SEND_F0< "
            "0RECV_B0 0B0]");
  EXPECT_EQ(
      complaint(std::string{"0F0,0SEND_F0,0RECV_B1,0B0\n"} + second_rank),
      "range: rank 0 runs 0RECV_B1, a microbatch that does not exist: only 0 exists [0F0 0SEND_F0 "
      ">0RECV_B1< 0B0]");
  EXPECT_EQ(complaint(std::string{"7UNSHARD,0F0,0SEND_F0,0RECV_B0,0B0\n"} + second_rank),
            "range: rank 0 runs 7UNSHARD, a stage that does not exist: they are 0 to 1 [>7UNSHARD< "
            "0F0 0SEND_F0 "
            "0RECV_B0 0B0]");
}

TEST(CommunicationValidation, WantsEveryCopyOfTheModelToSendItsOwnMicrobatches) {
  EXPECT_EQ(complaint("0F0,0SEND_F1,3RECV_F1,3F1,3B1,3SEND_B1,0RECV_B0,0B0\n"
                      "2F1,1RECV_F0,2SEND_F1,1F0,1B0,1SEND_B0,2RECV_B1,2B1\n"),
            "copy: rank 0 runs 0SEND_F1, a microbatch of another copy of the model [0F0 >0SEND_F1< "
            "3RECV_F1 3F1 3B1 3SEND_B1 ...]");
}

TEST(CommunicationValidation, WantsEveryInstructionOnTheRankOfItsStage) {
  EXPECT_EQ(complaint("0F0,0SEND_F0,1RECV_F0,0RECV_B0,0B0\n1F0,1B0,1SEND_B0\n"),
            "placement: rank 0 runs 1RECV_F0, but stage 1 is on rank 1 [0F0 0SEND_F0 >1RECV_F0< "
            "0RECV_B0 0B0]");
  EXPECT_EQ(complaint(std::string{"1UNSHARD,0F0,0SEND_F0,0RECV_B0,0B0\n"} + second_rank),
            "placement: rank 0 runs 1UNSHARD, but stage 1 is on rank 1 [>1UNSHARD< 0F0 0SEND_F0 "
            "0RECV_B0 0B0]");
}

TEST(CommunicationValidation, WantsNoGradientsInAnEvaluation) {
  EXPECT_EQ(complaint("0F0,0SEND_F0,0RECV_B0\n1RECV_F0,1F0,1SEND_B0\n"),
            "kind: rank 0 runs 0RECV_B0, but an evaluation step has no gradients [0F0 0SEND_F0 "
            ">0RECV_B0<]");
  EXPECT_EQ(complaint("0F0,0SEND_F0,0REDUCE_GRAD\n1RECV_F0,1F0\n"),
            "kind: rank 0 runs 0REDUCE_GRAD, but an evaluation step has no gradients [0F0 0SEND_F0 "
            ">0REDUCE_GRAD<]");
}

TEST(CommunicationValidation, WantsTransfersToLeadToAnotherRank) {
  EXPECT_EQ(complaint(std::string{"0RECV_F0,0F0,0SEND_F0,0RECV_B0,0B0\n"} + second_rank),
            "transfer: rank 0 runs 0RECV_F0, but stage 0 is the first of the model [>0RECV_F0< 0F0 "
            "0SEND_F0 0RECV_B0 0B0]");
  EXPECT_EQ(complaint("0F0,0SEND_F0,0RECV_B0,0B0\n1RECV_F0,1F0,1SEND_F0,1B0,1SEND_B0\n"),
            "transfer: rank 1 runs 1SEND_F0, but stage 1 is the last of the model [1RECV_F0 1F0 "
            ">1SEND_F0< 1B0 1SEND_B0]");
  EXPECT_EQ(complaint("0F0,0SEND_F0,1RECV_F0,1F0,1B0,0B0\n"),
            "transfer: rank 0 runs 0SEND_F0, but stage 1 is on the same rank, where nothing is "
            "sent [0F0 >0SEND_F0< 1RECV_F0 1F0 1B0 0B0]");
}

TEST(CommunicationValidation, WantsEverythingOnce) {
  EXPECT_EQ(complaint(std::string{"0F0,0SEND_F0,0SEND_F0,0RECV_B0,0B0\n"} + second_rank),
            "once: rank 0 runs 0SEND_F0 a second time [0F0 0SEND_F0 >0SEND_F0< 0RECV_B0 0B0]");
  EXPECT_EQ(complaint("0F0,0SEND_F0,0RECV_B0,0B0\n1RECV_F0,1F0,1RECV_F0,1B0,1SEND_B0\n"),
            "once: rank 1 runs 1RECV_F0 a second time [1RECV_F0 1F0 >1RECV_F0< 1B0 1SEND_B0]");
  EXPECT_EQ(complaint(std::string{"0F0,0SEND_F0,0WAIT_SEND_F0,0WAIT_SEND_F0,0RECV_B0,0B0\n"}
                      + second_rank),
            "once: rank 0 runs 0WAIT_SEND_F0 a second time [0F0 0SEND_F0 0WAIT_SEND_F0 "
            ">0WAIT_SEND_F0< 0RECV_B0 0B0]");
  EXPECT_EQ(complaint("0F0,0B0,0REDUCE_GRAD,0REDUCE_GRAD\n"),
            "once: rank 0 runs 0REDUCE_GRAD a second time [0F0 0B0 0REDUCE_GRAD >0REDUCE_GRAD<]");
  EXPECT_EQ(complaint("0F0,0B0,0REDUCE_GRAD,0WAIT_REDUCE_GRAD,0WAIT_REDUCE_GRAD\n"),
            "once: rank 0 runs 0WAIT_REDUCE_GRAD a second time [0F0 0B0 0REDUCE_GRAD "
            "0WAIT_REDUCE_GRAD >0WAIT_REDUCE_GRAD<]");
}

TEST(CommunicationValidation, WantsCausesBeforeEffects) {
  EXPECT_EQ(complaint(std::string{"0SEND_F0,0F0,0RECV_B0,0B0\n"} + second_rank),
            "order: rank 0 runs 0SEND_F0 before 0F0, which makes it [>0SEND_F0< 0F0 0RECV_B0 0B0]");
  EXPECT_EQ(complaint("0F0,0SEND_F0,0RECV_B0,0B0\n1RECV_F0,1F0,1SEND_B0,1I0,1W0\n"),
            "order: rank 1 runs 1SEND_B0 before 1B0 (or I), which makes it [1RECV_F0 1F0 "
            ">1SEND_B0< 1I0 1W0]");
  EXPECT_EQ(complaint("0F0,0SEND_F0,0RECV_B0,0B0\n1F0,1RECV_F0,1B0,1SEND_B0\n"),
            "order: rank 1 runs 1F0 before 1RECV_F0, whose result it needs [>1F0< 1RECV_F0 1B0 "
            "1SEND_B0]");
  EXPECT_EQ(complaint(std::string{"0F0,0WAIT_SEND_F0,0SEND_F0,0RECV_B0,0B0\n"} + second_rank),
            "order: rank 0 runs 0WAIT_SEND_F0 before 0SEND_F0 [0F0 >0WAIT_SEND_F0< 0SEND_F0 "
            "0RECV_B0 0B0]");
  EXPECT_EQ(complaint("0F0,0B0,0WAIT_REDUCE_GRAD,0REDUCE_GRAD\n"),
            "order: rank 0 runs 0WAIT_REDUCE_GRAD before 0REDUCE_GRAD [0F0 0B0 "
            ">0WAIT_REDUCE_GRAD< 0REDUCE_GRAD]");
  EXPECT_EQ(complaint("0F0,0F1,0B0,0REDUCE_GRAD,0B1\n"),
            "order: rank 0 runs 0B1 behind 0REDUCE_GRAD, which should sum its gradients [0F0 0F1 "
            "0B0 0REDUCE_GRAD >0B1<]");
}

TEST(CommunicationValidation, LetsPassesOverlapThatDoNotNeedEachOther) {
  EXPECT_EQ(complaint("0UNSHARD,0F0,(0F1;0B0)OVERLAP_F_B,0B1\n"), "valid");
  EXPECT_EQ(complaint("0UNSHARD,(0F0;0B0)OVERLAP_F_B\n"),
            "order: rank 0 runs (0F0;0B0)OVERLAP_F_B, but one of the passes needs the other, and "
            "they begin together [0UNSHARD >(0F0;0B0)OVERLAP_F_B<]");
  EXPECT_EQ(complaint("0UNSHARD,(0F0;1F0)OVERLAP_F_B,1B0,0B0\n"),
            "order: rank 0 runs (0F0;1F0)OVERLAP_F_B, but one of the passes needs the other, and "
            "they begin together [0UNSHARD >(0F0;1F0)OVERLAP_F_B< 1B0 0B0]");
}

TEST(CommunicationValidation, WantsStagesUnshardedForTheirPasses) {
  EXPECT_EQ(complaint("0UNSHARD,0F0,0RESHARD,0B0\n"),
            "shard: rank 0 runs 0B0, but stage 0 is not unsharded [0UNSHARD 0F0 0RESHARD >0B0<]");
  EXPECT_EQ(complaint("0F0,0UNSHARD,0B0\n"),
            "shard: rank 0 runs 0F0, but stage 0 is not unsharded [>0F0< 0UNSHARD 0B0]");
  EXPECT_EQ(complaint("0UNSHARD,0F0,0UNSHARD,0B0\n"),
            "shard: rank 0 runs 0UNSHARD, but stage 0 is unsharded already [0UNSHARD 0F0 "
            ">0UNSHARD< 0B0]");
  EXPECT_EQ(complaint("0UNSHARD,0F0,0B0,0RESHARD,0RESHARD\n"),
            "shard: rank 0 runs 0RESHARD, but stage 0 is not unsharded [0UNSHARD 0F0 0B0 0RESHARD "
            ">0RESHARD<]");
}

TEST(CommunicationValidation, WantsBothEndsOfEveryTransfer) {
  EXPECT_EQ(complaint(std::string{"0F0,0RECV_B0,0B0\n"} + second_rank),
            "completeness: rank 0 never runs 0SEND_F0, without which 1F0 on rank 1 has no input; "
            "its row ends [0F0 0RECV_B0 0B0]");
  EXPECT_EQ(complaint("0F0,0SEND_F0,0RECV_B0,0B0\n1RECV_F0,1F0,1B0\n"),
            "completeness: rank 1 never runs 1SEND_B0, without which 0B0 on rank 0 has no input; "
            "its row ends [1RECV_F0 1F0 1B0]");
  EXPECT_EQ(complaint("0F0,0SEND_F0,0RECV_B0,0B0\n1F0,1B0,1SEND_B0\n"),
            "order: rank 1 runs 1F0 before 1RECV_F0, whose result it needs [>1F0< 1B0 1SEND_B0]");
}

TEST(CommunicationValidation, FindsSendsThatComeTooLateUnderEveryMatching) {
  const auto* late = "0F0,0RECV_B0,0B0,0SEND_F0\n1RECV_F0,1F0,1B0,1SEND_B0\n";
  EXPECT_EQ(complaint(late, Matching::tagged),
            "deadlock: rank 0 waits at 0B0 for 1SEND_B0 on rank 1 [0F0 0RECV_B0 >0B0< 0SEND_F0]; "
            "rank 1 waits at 1F0 for 0SEND_F0 on rank 0 [1RECV_F0 >1F0< 1B0 1SEND_B0]");
  EXPECT_EQ(complaint(late, Matching::ordered),
            "deadlock: rank 0 waits at 0RECV_B0 for 1SEND_B0 on rank 1 [0F0 >0RECV_B0< 0B0 "
            "0SEND_F0]; rank 1 waits at 1RECV_F0 for 0SEND_F0 on rank 0 [>1RECV_F0< 1F0 1B0 "
            "1SEND_B0]");
}

TEST(CommunicationValidation, FindsTransfersThatPassEachOther) {
  // Rank 0 sends microbatch 1 before it receives, rank 1 sends a gradient before it receives.
  const auto* crossed =
      "0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1\n"
      "1RECV_F0,1F0,1B0,1SEND_B0,1RECV_F1,1F1,1B1,1SEND_B1\n";
  EXPECT_EQ(complaint(crossed, Matching::tagged), "valid");
  EXPECT_EQ(
      complaint(crossed, Matching::ordered),
      "deadlock: rank 0 waits at 0SEND_F1 for 1RECV_F1 on rank 1 [0F0 0SEND_F0 0F1 "
      ">0SEND_F1< 0RECV_B0 0B0 0RECV_B1 0B1]; rank 1 waits at 1SEND_B0 for 0RECV_B0 on rank 0 "
      "[1RECV_F0 1F0 1B0 >1SEND_B0< 1RECV_F1 1F1 1B1 1SEND_B1]");
}

TEST(CommunicationValidation, FindsReceivesInAnotherOrderThanTheSends) {
  const auto* turned =
      "0F0,0F1,0SEND_F0,0SEND_F1\n"
      "1RECV_F1,1RECV_F0,1F0,1F1\n";
  EXPECT_EQ(complaint(turned, Matching::tagged), "valid");
  EXPECT_EQ(complaint(turned, Matching::ordered),
            "deadlock: rank 0 waits at 0SEND_F0 for 1RECV_F0 on rank 1 [0F0 0F1 >0SEND_F0< "
            "0SEND_F1]; rank 1 waits at 1RECV_F1 for 0SEND_F1 on rank 0 [>1RECV_F1< 1RECV_F0 1F0 "
            "1F1]");
}

TEST(CommunicationValidation, FindsWaitsThatHoldUpWhatTheyWaitFor) {
  const auto* early =
      "0F0,0SEND_F0,0WAIT_SEND_F0,0RECV_B0,0B0,0F1,0SEND_F1,0RECV_B1,0B1\n"
      "1RECV_F0,1F0,1B0,1SEND_B0,1WAIT_SEND_B0,1RECV_F1,1F1,1B1,1SEND_B1\n";
  EXPECT_EQ(complaint(early, Matching::tagged), "valid");
  const auto* circle =
      "0F0,0SEND_F0,0RECV_B0,0F1,0SEND_F1,0WAIT_SEND_F1,0B0,0RECV_B1,0B1\n"
      "1RECV_F0,1F0,1B0,1SEND_B0,1WAIT_SEND_B0,1RECV_F1,1F1,1B1,1SEND_B1\n";
  EXPECT_EQ(complaint(circle, Matching::tagged), "valid");
  const auto* stuck =
      "0F0,0SEND_F0,0F1,0SEND_F1,0WAIT_SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1\n"
      "1RECV_F0,1F0,1B0,1SEND_B0,1WAIT_SEND_B0,1RECV_F1,1F1,1B1,1SEND_B1\n";
  EXPECT_EQ(complaint(stuck, Matching::tagged),
            "deadlock: rank 0 waits at 0WAIT_SEND_F1 for 1RECV_F1 on rank 1 [0F0 0SEND_F0 0F1 "
            "0SEND_F1 >0WAIT_SEND_F1< 0RECV_B0 0B0 0RECV_B1 0B1]; rank 1 waits at 1WAIT_SEND_B0 "
            "for 0RECV_B0 on rank 0 [1RECV_F0 1F0 1B0 1SEND_B0 >1WAIT_SEND_B0< 1RECV_F1 1F1 1B1 "
            "1SEND_B1]");
}

TEST(CommunicationValidation, LooksAtBothPassesOfAPairForWhatIsMissing) {
  // Rank 1 has the input of 1F1, but rank 2 wants the output of that before it runs 2B0.
  const std::string text =
      "0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1\n"
      "1RECV_F0,1F0,1SEND_F0,1RECV_F1,1RECV_B0,(1F1;1B0)OVERLAP_F_B,1SEND_F1,1SEND_B0,1RECV_B1,"
      "1B1,1SEND_B1\n"
      "2RECV_F0,2F0,2RECV_F1,2F1,2B0,2SEND_B0,2B1,2SEND_B1\n";
  EXPECT_EQ(complaint(text, Matching::tagged),
            "deadlock: rank 1 waits at (1F1;1B0)OVERLAP_F_B for 2SEND_B0 on rank 2 [... 1F0 "
            "1SEND_F0 1RECV_F1 1RECV_B0 >(1F1;1B0)OVERLAP_F_B< 1SEND_F1 1SEND_B0 1RECV_B1 1B1 "
            "...]; rank 2 waits at 2F1 for 1SEND_F1 on rank 1 [2RECV_F0 2F0 2RECV_F1 >2F1< 2B0 "
            "2SEND_B0 2B1 2SEND_B1]");
}

// -- a second opinion -----------------------------------------------------------------------------

/// Runs the cells of all ranks as texts, slowly, and gives up at the first that may not run. Knows
/// nothing of the engine but the text of instructions and the map of stages.
class SlowRun {
public:
  SlowRun(const CommunicationSchedule& schedule, Matching matching)
      : schedule_{schedule}, matching_{matching} {
    for (const auto& row : schedule.ranks) {
      cells_.emplace_back();
      for (const auto& instruction : row) {
        cells_.back().push_back(to_string(instruction));
        const auto& cell = cells_.back().back();
        const auto word = cell.find("SHARD");
        if (word != std::string::npos) sharded_.insert(std::stoi(cell));
      }
    }
  }

  bool ends_well() {
    std::vector<std::size_t> at(cells_.size(), 0);
    for (bool progress = true; progress;) {
      progress = false;
      for (std::size_t r = 0; r < cells_.size(); ++r) {
        if (at[r] == cells_[r].size() || !can_run(r, at)) continue;
        progress = true;
        const auto other = partner_;
        do_run(cells_[r][at[r]++]);
        if (!other.empty())
          do_run(cells_[rank_of(std::stoi(other))][at[rank_of(std::stoi(other))]++]);
        if (is_broken_) return false;
      }
    }
    for (std::size_t r = 0; r < cells_.size(); ++r) {
      if (at[r] != cells_[r].size()) return false;
    }
    return is_complete();
  }

private:
  struct Cell {
    int stage;
    std::string word;
    int microbatch;
  };

  static Cell parts_of(const std::string& cell) {
    const auto word = cell.find_first_not_of("0123456789");
    const auto end = std::min(cell.find_first_of("0123456789", word), cell.size());
    return {std::stoi(cell), cell.substr(word, end - word),
            end < cell.size() ? std::stoi(cell.substr(end)) : 0};
  }
  static std::string cell_of(int stage, const std::string& word, int microbatch) {
    return std::to_string(stage) + word + std::to_string(microbatch);
  }
  static std::vector<std::string> parts_of_pair(const std::string& cell) {
    if (cell[0] != '(') return {cell};
    const auto middle = cell.find(';');
    return {cell.substr(1, middle - 1), cell.substr(middle + 1, cell.find(')') - middle - 1)};
  }
  [[nodiscard]] std::size_t rank_of(int stage) const {
    return schedule_.rank_of_stage[static_cast<std::size_t>(stage)].value();
  }
  [[nodiscard]] bool did(const std::string& cell) const { return done_.contains(cell); }
  [[nodiscard]] bool did_backward(int stage, int microbatch) const {
    return did(cell_of(stage, "B", microbatch)) || did(cell_of(stage, "I", microbatch));
  }
  [[nodiscard]] int last_stage() const {
    return static_cast<int>(schedule_.rank_of_stage.size()) - 1;
  }

  /// The cell that must meet `cell`; empty if there is none.
  [[nodiscard]] std::string partner_of(const Cell& cell) const {
    const bool sends = cell.word.starts_with("SEND");
    const char kind = cell.word.back();
    const int other = cell.stage + (sends == (kind == 'F') ? 1 : -1);
    if (other < 0 || other > last_stage() || rank_of(other) == rank_of(cell.stage)) return {};
    return cell_of(other, std::string{sends ? "RECV_" : "SEND_"} + kind, cell.microbatch);
  }

  [[nodiscard]] bool is_here(const std::string& text) const {
    const auto [stage, word, microbatch] = parts_of(text);
    if (word == "W") return did(cell_of(stage, "I", microbatch));
    const bool forward = word == "F";
    if (!forward && !did(cell_of(stage, "F", microbatch))) return false;
    if (sharded_.contains(stage) && !whole_.contains(stage)) return false;
    const int source = forward ? stage - 1 : stage + 1;
    if (source < 0 || source > last_stage()) return true;
    if (rank_of(source) == rank_of(stage)) {
      return forward ? did(cell_of(source, "F", microbatch)) : did_backward(source, microbatch);
    }
    const std::string kind = forward ? "F" : "B";
    return did(cell_of(stage, "RECV_" + kind, microbatch))
           && did(cell_of(source, "SEND_" + kind, microbatch));
  }

  bool can_run(std::size_t rank, const std::vector<std::size_t>& at) {
    partner_.clear();
    const auto& text = cells_[rank][at[rank]];
    if (text[0] == '(') {
      const auto both = parts_of_pair(text);
      return is_here(both[0]) && is_here(both[1]);
    }
    const auto cell = parts_of(text);
    if (cell.word.size() == 1) return is_here(text);
    if (cell.word.starts_with("WAIT_SEND")) {
      const auto send = cell.word.substr(5);
      const auto partner = partner_of({cell.stage, send, cell.microbatch});
      return did(cell_of(cell.stage, send, cell.microbatch)) && did(partner);
    }
    if (!cell.word.starts_with("SEND") && !cell.word.starts_with("RECV")) return true;
    const auto partner = partner_of(cell);
    if (partner.empty()) return false;
    if (cell.word == "SEND_F" && !did(cell_of(cell.stage, "F", cell.microbatch))) return false;
    if (cell.word == "SEND_B" && !did_backward(cell.stage, cell.microbatch)) return false;
    if (matching_ == Matching::tagged) return true;
    const auto other = rank_of(std::stoi(partner));
    if (at[other] == cells_[other].size() || cells_[other][at[other]] != partner) return false;
    const auto theirs = parts_of(partner);
    if (theirs.word == "SEND_F" && !did(cell_of(theirs.stage, "F", theirs.microbatch)))
      return false;
    if (theirs.word == "SEND_B" && !did_backward(theirs.stage, theirs.microbatch)) return false;
    partner_ = partner;
    return true;
  }

  void do_run(const std::string& text) {
    for (const auto& part : parts_of_pair(text)) {
      const auto [stage, word, microbatch] = parts_of(part);
      if (word == "UNSHARD") {
        is_broken_ |= !whole_.insert(stage).second;
      } else if (word == "RESHARD") {
        is_broken_ |= whole_.erase(stage) == 0;
      } else {
        is_broken_ |= !done_.insert(part).second;
        is_broken_ |= word == "WAIT_REDUCE_GRAD" && !did(std::to_string(stage) + "REDUCE_GRAD");
        is_broken_ |= (word == "B" || word == "W") && did(std::to_string(stage) + "REDUCE_GRAD");
        is_broken_ |= word == "W" && sharded_.contains(stage) && !whole_.contains(stage);
        is_broken_ |= word == "B" && did(cell_of(stage, "I", microbatch));
        is_broken_ |= word == "I" && did(cell_of(stage, "B", microbatch));
      }
    }
  }

  [[nodiscard]] bool is_complete() const {
    const auto count = static_cast<int>(schedule_.microbatch_count);
    for (int s = 0; s <= last_stage(); ++s) {
      for (int m = 0; m < count; ++m) {
        const bool whole = did(cell_of(s, "B", m));
        const bool split = did(cell_of(s, "I", m)) && did(cell_of(s, "W", m));
        if (!did(cell_of(s, "F", m)) || !(whole || split)) return false;
        for (const auto* word : {"SEND_F", "RECV_F", "SEND_B", "RECV_B"}) {
          const bool wanted = !partner_of({s, word, m}).empty();
          if (wanted && !did(cell_of(s, word, m))) return false;
        }
      }
    }
    return true;
  }

  const CommunicationSchedule& schedule_;
  const Matching matching_;
  std::vector<std::vector<std::string>> cells_;
  std::set<std::string> done_;
  std::set<int> sharded_;
  std::set<int> whole_;
  std::string partner_;
  bool is_broken_ = false;
};

/// Schedules to damage: every kind of instruction occurs.
std::vector<CommunicationSchedule> bases() {
  return {
      with_communication(make_1f1b(3, 3)),
      with_communication(make_schedule("interleaved-1f1b", {2, 2, 2, true}).value()),
      with_communication(make_v_schedule(2, 2)),
      communication_from_csv("0UNSHARD,0F0,0SEND_F0,0F1,0SEND_F1,0RESHARD,0RECV_B0,0UNSHARD,0B0,"
                             "0WAIT_SEND_F0,0RECV_B1,0B1,0WAIT_SEND_F1,0REDUCE_GRAD,"
                             "0WAIT_REDUCE_GRAD,0RESHARD\n"
                             "1UNSHARD,1RECV_F0,1F0,1RECV_F1,(1F1;1B0)OVERLAP_F_B,1SEND_B0,1I1,"
                             "1SEND_B1,1W1,1REDUCE_GRAD,1WAIT_SEND_B0,1WAIT_SEND_B1\n",
                             "all")
          .value()};
}

void damage(CommunicationSchedule& schedule, Random& random) {
  auto& row = schedule.ranks[random.below(schedule.ranks.size())];
  const auto place = [&] { return static_cast<std::ptrdiff_t>(random.below(row.size())); };
  switch (random.below(4)) {
    case 0:
      row.erase(row.begin() + place());
      return;
    case 1:
      row.insert(row.begin() + place(), Instruction{row[static_cast<std::size_t>(place())]});
      return;
    case 2:
      std::swap(row[static_cast<std::size_t>(place())], row[static_cast<std::size_t>(place())]);
      return;
    default: {  // Swaps neighbours, which often leaves the schedule valid.
      const auto at = static_cast<std::size_t>(place());
      std::swap(row[at], row[std::min(at + 1, row.size() - 1)]);
    }
  }
}

TEST(CommunicationValidation, AgreesWithASlowRunOnDamagedSchedules) {
  std::uint32_t valid_count = 0;
  std::uint32_t differ_count = 0;
  for (const auto& base : bases()) {
    ASSERT_EQ(complaint(base), "valid") << to_csv(base);
    for (std::uint64_t seed = 0; seed < 1000; ++seed) {
      SCOPED_TRACE(testing::Message() << "seed=" << seed);
      Random random{seed};
      auto damaged = base;
      for (auto count = 1 + random.below(3); count > 0; --count) damage(damaged, random);
      std::vector<bool> verdicts;
      for (const auto matching : {Matching::tagged, Matching::ordered}) {
        const auto verdict = complaint(damaged, matching);
        ASSERT_EQ(verdict == "valid", (SlowRun{damaged, matching}.ends_well())) << verdict << '\n'
                                                                                << to_csv(damaged);
        verdicts.push_back(verdict == "valid");
      }
      ASSERT_TRUE(verdicts[0] || !verdicts[1]) << "ordered matching is the stricter one";
      valid_count += verdicts[1] ? 1U : 0U;
      differ_count += verdicts[0] != verdicts[1] ? 1U : 0U;
    }
  }
  EXPECT_GT(valid_count, 200U);
  EXPECT_GT(differ_count, 50U);
}

}  // namespace
}  // namespace troupe
