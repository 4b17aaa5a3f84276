#include "troupe/engine/schedule_text.hpp"

#include <gtest/gtest.h>

#include "troupe/engine/random.hpp"
#include "troupe/engine/schedule_validation.hpp"

#include "schedule_scope.hpp"

namespace troupe {
namespace {

std::string complaint(std::string_view csv) {
  const auto schedule = from_csv(csv, "plan.csv");
  if (schedule) return "read";
  EXPECT_EQ(schedule.error().code, Errc::invalid_file);
  return schedule.error().context;
}

TEST(ActionText, IsStagePassMicrobatch) {
  const Action action{StageIndex{12}, Pass::backward_weight, MicrobatchIndex{305}};
  EXPECT_EQ(to_string(action), "12W305");
  EXPECT_EQ(*parse_action("12W305"), action);
  for (const auto* text : {"0F0", "1B2", "3I4", "5W6", "1048575F1048575"}) {
    EXPECT_EQ(to_string(*parse_action(text)), text);
  }
}

TEST(ActionText, RefusesWhatIsNoAction) {
  for (const auto* text :
       {"", "F", "0F", "F0", "0X0", "0f0", " 0F0", "0F0 ", "0F0F0", "-1F0", "0F-1", "+1F0", "1.0F0",
        "1048576F0", "0F1048576", "99999999999999999999F0", "0UNSHARD", "0SEND_F1"}) {
    EXPECT_FALSE(parse_action(text)) << text;
  }
  EXPECT_EQ(parse_action("0X0").error().context,
            "\"0X0\" is not an action; expected stage, pass (F, B, I or W) and microbatch, as in "
            "2F0");
}

TEST(ScheduleText, LinesUpTheRows) {
  EXPECT_EQ(to_text(make_1f1b(2, 3)),
            "rank 0: 0F0 0F1 0B0 0F2 0B1 0B2\n"
            "rank 1: 1F0 1B0 1F1 1B1 1F2 1B2\n");
  auto wide = make_gpipe(11, 1);
  wide.ranks.resize(11);
  EXPECT_EQ(to_text(wide).substr(0, 36), "rank  0: 0F0  0B0\nrank  1: 1F0  1B0\n");
}

TEST(ScheduleCsv, ReadsLikeAPipelineInSteps) {
  EXPECT_EQ(to_csv(make_1f1b(3, 3)),
            "0F0,0F1,0F2,,,0B0,,0B1,,0B2\r\n"
            ",1F0,1F1,,1B0,1F2,1B1,,1B2\r\n"
            ",,2F0,2B0,2F1,2B1,2F2,2B2\r\n");
  EXPECT_EQ(to_csv(split_backward(make_gpipe(2, 2))),
            "0F0,0F1,,,0I0,0W0,0I1,0W1\r\n"
            ",1F0,1F1,1I0,1W0,1I1,1W1\r\n");
}

TEST(ScheduleCsv, ComesBackAsItWas) {
  for_every_schedule([](const Schedule& schedule) {
    const auto read = from_csv(to_csv(schedule), schedule.name);
    ASSERT_TRUE(read.has_value()) << read.error().context;
    ASSERT_EQ(*read, schedule);
  });
  const auto evaluation = make_forward_only_on(make_stage_map(StageMap::v_shaped, 3, 2), 5);
  EXPECT_EQ(*from_csv(to_csv(evaluation), evaluation.name), evaluation);
}

TEST(ScheduleCsv, FindsTwoCopiesOfTheModelInTwoHalves) {
  const std::string text = "0F0,0B0,3F1,3B1\r\n1F0,1B0,2F1,2B1\r\n";
  const auto read = *from_csv(text, "x");
  EXPECT_EQ(read.copy_count, 2U);
  EXPECT_EQ(from_csv("0F0,1F1", "x")->copy_count, 2U);
  EXPECT_EQ(from_csv("0F0,1F0,0F1,1F1", "x")->copy_count, 1U);
}

TEST(ScheduleCsv, TakesTheFormsThatOtherProgramsWrite) {
  const auto expected = *from_csv("0F0,0B0\r\n1F0,1B0\r\n", "x");
  EXPECT_EQ(*from_csv("0F0,0B0\n1F0,1B0", "x"), expected);
  EXPECT_EQ(*from_csv("0F0,,0B0,,\n,1F0,1B0\n\n\r\n", "x"), expected);
  EXPECT_EQ(*from_csv("\"0F0\",\" 0B0 \",\"\"\n 1F0\t, \"1B0\"\n", "x"), expected);
  EXPECT_EQ(expected.rank_of_stage, (std::vector{RankIndex{0}, RankIndex{1}}));
  EXPECT_EQ(expected.kind, StepKind::training);
  EXPECT_EQ(expected.microbatch_count, 1U);
}

TEST(ScheduleCsv, ErrorsNameRowColumnAndCell) {
  const std::string form =
      " is no instruction; expected stage, pass (F, B, I or W) and microbatch, as in 2F0, or "
      "communication, as in 1SEND_F0 and 0UNSHARD, or (0F1;1B0)OVERLAP_F_B";
  EXPECT_EQ(complaint("0F0,0B0\n1F0,1Q0\n"), "plan.csv: row 2, column 2: \"1Q0\"" + form);
  EXPECT_EQ(complaint("0F0,(0F1;1B0)OVERLAP_F_B_and_on"),
            "plan.csv: row 1, column 2: \"(0F1;1B0)OVERLAP_F_B_and...\"" + form);
  EXPECT_EQ(complaint(std::string_view{"0F0,\x1b[31m\0\n", 11}),
            "plan.csv: row 1, column 2: \"?[31m?\"" + form);
  EXPECT_EQ(complaint("0F0,\"0B0\n1F0\",1B0\n"),
            "plan.csv: row 1, column 2: \"\"0B0\" opens a quote that it does not close");
  EXPECT_EQ(complaint("\""),
            "plan.csv: row 1, column 1: \"\"\" opens a quote that it does not close");
  EXPECT_EQ(complaint("0F0,0B0\n1F0,0B1\n"),
            "plan.csv: row 2, column 2: \"0B1\" runs stage 0, which row 1 runs; a stage is on one "
            "rank");
  for (const auto* empty : {"", "\n", "\r\n\r\n"}) {
    EXPECT_EQ(complaint(empty),
              "plan.csv: holds no schedule; expected one row per rank with cells like 2F0");
  }
  EXPECT_EQ(complaint("0F0,0B0\n,,\n1F0,1B0\n"),
            "plan.csv: row 2: this rank runs nothing; leave the row out");
  EXPECT_EQ(complaint("0F0,0B0\n2F0,2B0\n"),
            "plan.csv: no row runs stage 1, but there are stages up to 2; number them from 0");
}

TEST(ScheduleCsv, HasSizeLimits) {
  std::string rows;
  for (std::uint32_t r = 0; r <= ScheduleLimits::rank_count_max; ++r) {
    rows += std::to_string(r) + "F0\n";
  }
  EXPECT_EQ(complaint(rows), "plan.csv: row 65537: more than 65536 ranks");
  EXPECT_TRUE(complaint("1048576F0").ends_with("(0F1;1B0)OVERLAP_F_B"));
}

TEST(ScheduleCsv, SurvivesDamage) {
  // Whatever a few changed bytes make of a file: an error, or a schedule that `validate` judges.
  const auto whole = to_csv(*make_schedule("interleaved-1f1b", {3, 6, 2, true}));
  constexpr std::string_view letters = "0123456789FBIW,\"\r\n \t\0\xff;()";
  std::uint32_t read_count = 0;
  for (std::uint64_t seed = 0; seed < 5000; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed=" << seed);
    Random random{seed};
    auto damaged = whole;
    for (auto changes = random.below(4); changes > 0; --changes) {
      damaged[random.below(damaged.size())] = letters[random.below(letters.size())];
    }
    damaged.resize(damaged.size() - random.below(2) * random.below(damaged.size()));
    const auto schedule = from_csv(damaged, "damaged.csv");
    if (!schedule) {
      ASSERT_LT(schedule.error().context.size(), 200U);
      continue;
    }
    ++read_count;
    const auto verdict = validate(*schedule);
    ASSERT_TRUE(verdict || verdict.error().context.size() < 1000U);
    if (verdict) {
      ASSERT_EQ(from_csv(to_csv(*schedule), "damaged.csv")->ranks, schedule->ranks);
    }
  }
  EXPECT_GT(read_count, 100U);
}

}  // namespace
}  // namespace troupe
