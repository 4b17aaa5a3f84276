// Every rule of `validate`, broken once. The messages are golden: a person reads them.
#include "troupe/engine/schedule_validation.hpp"

#include <algorithm>
#include <sstream>

#include <gtest/gtest.h>

#include "troupe/engine/schedule_text.hpp"

#include "schedule_scope.hpp"

namespace troupe {
namespace {

/// Builds a schedule of one stage per row from rows like `0F0 0B0`.
Schedule schedule_of(const std::vector<std::string>& rows, std::uint32_t microbatch_count) {
  Schedule schedule;
  schedule.microbatch_count = microbatch_count;
  schedule.rank_of_stage =
      make_stage_map(StageMap::looped, static_cast<std::uint32_t>(rows.size()), 1);
  for (const auto& text : rows) {
    std::istringstream cells{text};
    auto& row = schedule.ranks.emplace_back();
    for (std::string cell; cells >> cell;) row.push_back(parse_action(cell).value());
  }
  return schedule;
}

std::string complaint(const Schedule& schedule) {
  const auto verdict = validate(schedule);
  if (verdict) return "valid";
  EXPECT_EQ(verdict.error().code, Errc::invalid_schedule);
  return verdict.error().context;
}

TEST(Validation, WantsRanksStagesAndMicrobatches) {
  EXPECT_EQ(complaint({}), "shape: there are no ranks");
  EXPECT_EQ(complaint(schedule_of({"0F0 0B0"}, 0)), "shape: there are no microbatches");

  auto schedule = schedule_of({"0F0 0B0"}, 1);
  schedule.rank_of_stage.clear();
  EXPECT_EQ(complaint(schedule), "shape: there are no stages");

  schedule = schedule_of({"0F0 0B0"}, 1);
  schedule.rank_of_stage[0] = RankIndex{3};
  EXPECT_EQ(complaint(schedule),
            "shape: stage 0 is on rank 3, which does not exist: only 0 exists");

  schedule = schedule_of({"0F0 0B0"}, 1);
  schedule.ranks.emplace_back();
  EXPECT_EQ(complaint(schedule), "shape: rank 1 holds no stage; leave it out");
}

TEST(Validation, WantsStagesAndMicrobatchesInRange) {
  EXPECT_EQ(complaint(schedule_of({"0F0 2F0 0B0", "1F0 1B0"}, 1)),
            "range: rank 0 runs 2F0, a stage that does not exist: they are 0 to 1 "
            "[0F0 >2F0< 0B0]");
  EXPECT_EQ(complaint(schedule_of({"0F0 0F2 0B0 0B1"}, 2)),
            "range: rank 0 runs 0F2, a microbatch that does not exist: they are 0 to 1 "
            "[0F0 >0F2< 0B0 0B1]");
}

TEST(Validation, WantsEveryCopyOfTheModelToRunItsOwnMicrobatches) {
  auto schedule = schedule_of({"0F0 0B0", "1F1 1B1"}, 2);
  schedule.copy_count = 2;
  EXPECT_EQ(complaint(schedule), "valid");
  schedule.ranks[1][0].microbatch = MicrobatchIndex{0};
  EXPECT_EQ(complaint(schedule),
            "copy: rank 1 runs 1F0, but the microbatches of that copy of the model are 1 to 1 "
            "[>1F0< 1B1]");
  schedule.ranks[1] = {};
  EXPECT_EQ(complaint(schedule),
            "completeness: rank 1 never runs 1F1, which the step needs; its row ends []");
  for (const auto copies : {0U, 3U}) {
    schedule.copy_count = copies;
    EXPECT_EQ(complaint(schedule), "shape: " + std::to_string(copies)
                                       + " copies of the model cannot share 2 stages and 2 "
                                         "microbatches equally");
  }
}

TEST(Validation, WantsEveryStageOnItsRank) {
  EXPECT_EQ(complaint(schedule_of({"0F0 1F0 0B0", "1B0"}, 1)),
            "placement: rank 0 runs 1F0, but stage 1 is on rank 1 [0F0 >1F0< 0B0]");
}

TEST(Validation, WantsForwardPassesOnlyInAnEvaluation) {
  auto schedule = schedule_of({"0F0 0B0"}, 1);
  schedule.kind = StepKind::evaluation;
  EXPECT_EQ(complaint(schedule),
            "kind: rank 0 runs 0B0, but an evaluation step has forward passes only [0F0 >0B0<]");
}

TEST(Validation, WantsEveryPassOnce) {
  EXPECT_EQ(complaint(schedule_of({"0F0 0F0 0B0"}, 1)),
            "once: rank 0 runs 0F0 a second time [0F0 >0F0< 0B0]");
  EXPECT_EQ(complaint(schedule_of({"0F0 0B0 0B0"}, 1)),
            "once: rank 0 runs 0B0 a second time (B is I and W) [0F0 0B0 >0B0<]");
  EXPECT_EQ(complaint(schedule_of({"0F0 0B0 0W0"}, 1)),
            "once: rank 0 runs 0W0 a second time (B is I and W) [0F0 0B0 >0W0<]");
  EXPECT_EQ(complaint(schedule_of({"0F0 0I0 0B0"}, 1)),
            "once: rank 0 runs 0B0 a second time (B is I and W) [0F0 0I0 >0B0<]");
}

TEST(Validation, WantsEveryPass) {
  EXPECT_EQ(complaint(schedule_of({"0F0 0F2 0B0 0B2"}, 3)),
            "completeness: rank 0 never runs 0F1, which the step needs; its row ends "
            "[0F0 0F2 0B0 0B2]");
  EXPECT_EQ(complaint(schedule_of({"0F0 0F1 0F2 0B0 0B2"}, 3)),
            "completeness: rank 0 never runs 0B1 (or 0I1 and 0W1), which the step needs; its row "
            "ends [... 0F1 0F2 0B0 0B2]");
  EXPECT_EQ(complaint(schedule_of({"0F0 0I0"}, 1)),
            "completeness: rank 0 never runs 0W0, which the step needs; its row ends [0F0 0I0]");
  EXPECT_EQ(complaint(schedule_of({"0F0 0W0"}, 1)),
            "completeness: rank 0 never runs 0I0, which the step needs; its row ends [0F0 0W0]");
  EXPECT_EQ(complaint(schedule_of({"0F0 0B0", ""}, 1)),
            "completeness: rank 1 never runs 1F0, which the step needs; its row ends []");
}

TEST(Validation, WantsInputsBeforeOutputs) {
  EXPECT_EQ(complaint(schedule_of({"0F0 0B0", "1B0 1F0"}, 1)),
            "order: rank 1 runs 1B0 before 1F0, whose result it needs [>1B0< 1F0]");
  EXPECT_EQ(complaint(schedule_of({"0I0 0F0 0W0"}, 1)),
            "order: rank 0 runs 0I0 before 0F0, whose result it needs [>0I0< 0F0 0W0]");
  EXPECT_EQ(complaint(schedule_of({"0F0 0W0 0I0"}, 1)),
            "order: rank 0 runs 0W0 before 0I0, whose result it needs [0F0 >0W0< 0I0]");
}

TEST(Validation, WantsWeightPassesInMicrobatchOrder) {
  EXPECT_EQ(complaint(schedule_of({"0F0 0F1 0B1 0B0"}, 2)),
            "weight order: rank 0 runs 0B1 before the weight pass of microbatch 0, but weight "
            "gradients add up in microbatch order [0F0 0F1 >0B1< 0B0]");
  EXPECT_EQ(complaint(schedule_of({"0F0 0F1 0I1 0I0 0W1 0W0"}, 2)),
            "weight order: rank 0 runs 0W1 before the weight pass of microbatch 0, but weight "
            "gradients add up in microbatch order [0F0 0F1 0I1 0I0 >0W1< 0W0]");
}

TEST(Validation, FindsRanksThatWaitForEachOther) {
  // Rank 0 drains microbatch 0 before it sends microbatch 1; rank 1 wants both before it drains.
  EXPECT_EQ(complaint(schedule_of({"0F0 0B0 0F1 0B1", "1F0 1F1 1B0 1B1"}, 2)),
            "deadlock: rank 0 waits at 0B0 for the gradient of stage 1 on rank 1 "
            "[0F0 >0B0< 0F1 0B1]; rank 1 waits at 1F1 for the activations of stage 0 on rank 0 "
            "[1F0 >1F1< 1B0 1B1]");
}

TEST(Validation, FindsARankThatWaitsForItself) {
  auto schedule = schedule_of({"1F0 0F0 1B0 0B0"}, 1);
  schedule.rank_of_stage = {RankIndex{0}, RankIndex{0}};
  EXPECT_EQ(complaint(schedule),
            "deadlock: rank 0 waits at 1F0 for the activations of stage 0 on rank 0 "
            "[>1F0< 0F0 1B0 0B0]");
}

TEST(Validation, ShowsPartOfALongCircleOfRanks) {
  // Each rank starts with its second chunk, which needs the first chunk of the rank before.
  auto schedule = make_interleaved_1f1b(6, 6, 2).value();
  for (auto& row : schedule.ranks) std::rotate(row.begin(), row.begin() + 6, row.begin() + 7);
  const auto text = complaint(schedule);
  EXPECT_TRUE(text.starts_with("deadlock: rank 0 waits at 6F0 for the activations of stage 5 on"))
      << text;
  EXPECT_NE(text.find("and so on around 6 ranks"), std::string::npos) << text;
  EXPECT_LT(text.size(), 600U);
}

TEST(Validation, ShowsAFewCellsOfALongRow) {
  auto schedule = make_gpipe(2, 1000);
  std::swap(schedule.ranks[1][1500], schedule.ranks[1][1501]);
  EXPECT_EQ(complaint(schedule),
            "weight order: rank 1 runs 1B501 before the weight pass of microbatch 500, but weight "
            "gradients add up in microbatch order "
            "[... 1B496 1B497 1B498 1B499 >1B501< 1B500 1B502 1B503 1B504 ...]");
}

TEST(Validation, RejectsEveryScheduleThatLacksDoublesOrMovesOneAction) {
  for_every_schedule([](const Schedule& schedule) {
    if (schedule.action_count() > 120) return;
    for (std::uint32_t r = 0; r < schedule.rank_count(); ++r) {
      for (std::size_t at = 0; at < schedule.ranks[r].size(); ++at) {
        const auto place = static_cast<std::ptrdiff_t>(at);
        auto lacking = schedule;
        lacking.ranks[r].erase(lacking.ranks[r].begin() + place);
        const auto missing = to_string(schedule.ranks[r][at]);
        const auto verdict = complaint(lacking);
        ASSERT_TRUE(verdict.starts_with("completeness: ")) << missing << ": " << verdict;
        ASSERT_NE(verdict.find(" never runs " + missing), std::string::npos) << verdict;

        auto doubled = schedule;
        doubled.ranks[r].push_back(schedule.ranks[r][at]);
        ASSERT_TRUE(complaint(doubled).starts_with("once: "));

        auto moved = schedule;  // Nothing can run behind the last weight pass of its stage.
        std::rotate(moved.ranks[r].begin() + place, moved.ranks[r].begin() + place + 1,
                    moved.ranks[r].end());
        const auto& action = schedule.ranks[r][at];
        if (action != schedule.ranks[r].back() && action.stage == schedule.ranks[r].back().stage) {
          ASSERT_NE(complaint(moved), "valid") << to_string(action);
        }
      }
    }
  });
}

std::string memory_complaint(const Schedule& schedule, const std::vector<std::uint32_t>& slots) {
  const auto verdict = validate_memory(schedule, slots);
  return verdict ? "valid" : verdict.error().context;
}

TEST(MemoryValidation, ShowsTheFirstActionThatLacksASlotAndHowManyThereShouldBe) {
  EXPECT_EQ(memory_complaint(make_1f1b(3, 4), {3, 2, 1}), "valid");
  EXPECT_EQ(memory_complaint(make_1f1b(3, 4), {3}), "valid");
  EXPECT_EQ(memory_complaint(make_1f1b(3, 4), {3, 1, 1}),
            "memory: rank 1 runs 1F1, for which it lacks a slot: it has 1 and needs 2 in all [1F0 "
            ">1F1< 1B0 1F2 1B1 1F3 ...]");
  EXPECT_EQ(memory_complaint(make_gpipe(1, 5), {2}),
            "memory: rank 0 runs 0F2, for which it lacks a slot: it has 2 and needs 5 in all [0F0 "
            "0F1 >0F2< 0F3 0F4 0B0 0B1 ...]");
}

TEST(MemoryValidation, KeepsTheSlotUntilTheWeightPass) {
  EXPECT_EQ(memory_complaint(schedule_of({"0F0 0I0 0W0 0F1 0I1 0W1"}, 2), {1}), "valid");
  EXPECT_EQ(memory_complaint(schedule_of({"0F0 0I0 0F1 0W0 0I1 0W1"}, 2), {1}),
            "memory: rank 0 runs 0F1, for which it lacks a slot: it has 1 and needs 2 in all [0F0 "
            "0I0 >0F1< 0W0 0I1 0W1]");
}

TEST(MemoryValidation, NeedsOneSlotInAnEvaluation) {
  const auto evaluation = make_forward_only_on(make_stage_map(StageMap::v_shaped, 2, 2), 5);
  EXPECT_EQ(memory_complaint(evaluation, {1}), "valid");
  EXPECT_TRUE(memory_complaint(evaluation, {0}).starts_with("memory: rank 0 runs 0F0, for which"));
}

TEST(MemoryValidation, AgreesWithTheMicrobatchesInFlightOfOneStage) {
  for_every_schedule([](const Schedule& schedule) {
    if (schedule.stage_count() != schedule.rank_count() || schedule.action_count() > 120) return;
    auto slots = in_flight_max(schedule, Pass::backward_weight);
    ASSERT_EQ(memory_complaint(schedule, slots), "valid");
    for (auto& has : slots) {
      --has;
      ASSERT_NE(memory_complaint(schedule, slots), "valid");
      ++has;
    }
  });
}

TEST(Validation, NeedsNoMemoryForWhatAScheduleOnlyClaims) {
  // A million stages times a million microbatches would be terabytes of bookkeeping.
  auto schedule = schedule_of({""}, ScheduleLimits::microbatch_count_max);
  schedule.rank_of_stage.resize(ScheduleLimits::stage_count_max);
  EXPECT_EQ(complaint(schedule),
            "completeness: rank 0 never runs 0F0, which the step needs; its row ends []");
}

}  // namespace
}  // namespace troupe
