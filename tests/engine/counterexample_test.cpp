// What a person sees of a schedule that is refused. The pictures are golden.
#include "troupe/engine/counterexample.hpp"

#include <array>
#include <string>
#include <string_view>

#include <gtest/gtest.h>

#include "troupe/engine/schedule_text.hpp"
#include "troupe/engine/schedule_validation.hpp"

#include "schedule_scope.hpp"

namespace troupe {
namespace {

std::string picture_of(const std::optional<Picture>& picture) {
  return picture ? picture->note + '\n' + draw_text(*picture) : "none";
}

std::string passes_of(std::string_view csv) {
  return picture_of(make_counterexample(from_csv(csv, "x").value()));
}

std::string instructions_of(std::string_view csv, Matching matching) {
  return picture_of(make_counterexample(communication_from_csv(csv, "x").value(), matching));
}

TEST(Counterexample, ShowsRanksThatWaitForEachOtherAndWhoWaitsForThem) {
  EXPECT_EQ(passes_of("0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1\n2F0,2B0,2F1,2B1\n"),
            "breaks the rule of deadlock\n"
            "rank 0: 0F0 >0B0< waits for 1B0------------\n"
            "rank 1: .   1F0 >1F1< waits for 0F1--------\n"
            "rank 2: .   .   2F0 2B0 2F1 waits for 1F1--\n");
}

TEST(Counterexample, MarksWhatComesTooEarly) {
  EXPECT_EQ(passes_of("0F0,0B0\n1B0,1F0\n"),
            "breaks the rule of order\n"
            "rank 0: 0F0 0B0 waits for 1B0--\n"
            "rank 1: >1B0<------------------\n");
  EXPECT_EQ(passes_of("0F0,0F1,0B1,0B0\n"),
            "breaks the rule of weight order\n"
            "rank 0: 0F0 0F1 >0B1<--------------\n");
}

TEST(Counterexample, MarksTheSecondTimeAndTheEndOfARow) {
  EXPECT_EQ(passes_of("0F0,0B0,0B0\n"),
            "breaks the rule of once\n"
            "rank 0: 0F0 0B0 >0B0<--------------\n");
  EXPECT_EQ(passes_of("0F0,0F1,0B0,0B1\n1F0,1F1,1B0\n"),
            "breaks the rule of completeness\n"
            "rank 0: 0F0 0F1 .   .   0B0 0B1 waits for 1B1--\n"
            "rank 1: .   1F0 1F1 1B0 >end<------------------\n");
}

TEST(Counterexample, SaysWhatIsWrongWhereTheRankWaitsBefore) {
  EXPECT_EQ(passes_of("0F0,0B0,0F1,0B1\n1F0,1F1,1B0\n"),
            "breaks the rule of completeness\n"
            "rank 0: 0F0--- 0B0 waits for 1B0------------------------\n"
            "rank 1: .      1F0--- 1F1 waits for 0F1, before >end<---\n");
}

TEST(Counterexample, ShowsSendsThatMeetSends) {
  constexpr auto crossed =
      "0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1\n"
      "1RECV_F0,1F0,1B0,1SEND_B0,1RECV_F1,1F1,1B1,1SEND_B1\n";
  EXPECT_EQ(
      instructions_of(crossed, Matching::ordered),
      "breaks the rule of deadlock\n"
      "rank 0: 0F0----- 0SEND_F0 0F1----- >0SEND_F1< waits for 1RECV_F1------------------------\n"
      "rank 1: .        1RECV_F0 1F0----- 1B0----- >1SEND_B0< waits for 0RECV_B0---------------\n");
  EXPECT_EQ(instructions_of(crossed, Matching::tagged), "none");
}

TEST(Counterexample, ShowsPostedReceivesThatNobodySendsTo) {
  EXPECT_EQ(
      instructions_of("0F0,0RECV_B0,0B0,0SEND_F0\n1RECV_F0,1F0,1B0,1SEND_B0\n", Matching::tagged),
      "breaks the rule of deadlock\n"
      "rank 0: 0F0----- 0RECV_B0 >0B0< waits for 1SEND_B0--------------------\n"
      "rank 1: 1RECV_F0 >1F0< waits for 0SEND_F0-----------------------------\n");
}

TEST(Counterexample, ShowsOverlappedPassesOneBehindTheOther) {
  EXPECT_EQ(instructions_of("0UNSHARD,0F0,(0F1;0B0)OVERLAP_F_B,0RESHARD,0B1\n", Matching::ordered),
            "breaks the rule of shard\n"
            "rank 0: 0UNSHARD 0F0----- 0F1----- 0B0----- 0RESHARD "
            ">0B1<---------------------------------------\n");
}

TEST(Counterexample, ShowsThePassesAloneIfTheyAreWrong) {
  EXPECT_EQ(
      instructions_of("0F0,0SEND_F0,0RECV_B0,0B0\n1RECV_F0,1B0,1F0,1SEND_B0\n", Matching::tagged),
      "breaks the rule of order\n"
      "rank 0: 0F0 0B0 waits for 1B0--\n"
      "rank 1: >1B0<------------------\n");
}

TEST(Counterexample, IsNoneForWhatIsValidOrCannotBeWalked) {
  EXPECT_EQ(passes_of("0F0,0B0\n1F0,1B0\n"), "none");
  EXPECT_EQ(picture_of(make_counterexample(Schedule{})), "none");
  EXPECT_EQ(instructions_of("0F0,0SEND_F0,9SEND_F0,0RECV_B0,0B0\n1RECV_F0,1F0,1B0,1SEND_B0\n",
                            Matching::tagged),
            "none");
}

TEST(Counterexample, IsDrawnWithAColourOfItsOwn) {
  const auto picture =
      make_counterexample(from_csv("0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1\n", "x").value()).value();
  EXPECT_EQ(picture.title, "x");
  const auto svg = draw_svg(std::array{picture}, {.size_ns = 1, .name = "actions"});
  EXPECT_NE(svg.find("breaks a rule"), std::string::npos) << "in the legend";
  EXPECT_NE(svg.find("&gt;0B0&lt; waits for 1B0"), std::string::npos) << svg;
}

TEST(Counterexample, MarksThePlaceOfEveryAction) {
  for_every_schedule([](const Schedule& schedule) {
    if (schedule.action_count() > 60 || schedule.rank_count() == 1) return;
    for (std::uint32_t r = 0; r < schedule.rank_count(); ++r) {
      for (std::size_t at = 0; at + 1 < schedule.ranks[r].size(); ++at) {
        auto swapped = schedule;
        std::swap(swapped.ranks[r][at], swapped.ranks[r][at + 1]);
        const auto picture = make_counterexample(swapped);
        ASSERT_EQ(picture.has_value(), !validate(swapped).has_value());
        if (!picture) continue;
        const auto text = draw_text(*picture);
        ASSERT_NE(text.find('>' + to_string(swapped.ranks[r][at]) + '<'), std::string::npos)
            << text;
      }
    }
  });
}

}  // namespace
}  // namespace troupe
