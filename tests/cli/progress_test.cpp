#include "progress.hpp"

#include <gtest/gtest.h>

namespace troupe::cli {
namespace {

constexpr ProgressFacts facts{.step = 7,
                              .step_count = 300,
                              .loss = 2.34567,
                              .tokens_per_second = 12345.6,
                              .speed_of_light = 0.821,
                              .bubble_measured = 0.123,
                              .bubble_predicted = 0.111,
                              .seconds_left = 3725.0};

TEST(Progress, FitsALineAndSaysEverything) {
  const auto line = format_progress(facts, progress_columns_max);
  EXPECT_EQ(line,
            "step   7/300  loss 2.3457  12346 tokens/s  82% of light  bubble 12.3% (sim 11.1%)  "
            "1:02:05 left");
  EXPECT_LE(line.size(), progress_columns_max);
}

TEST(Progress, LeavesOutWhatATerminalHasNoRoomFor) {
  const auto whole = format_progress(facts, progress_columns_max);
  EXPECT_EQ(format_progress(facts, whole.size()), whole);
  EXPECT_EQ(format_progress(facts, 79),
            "step   7/300  loss 2.3457  82% of light  bubble 12.3% (sim 11.1%)  1:02:05 left");
  EXPECT_EQ(format_progress(facts, 60), "step   7/300  loss 2.3457  82% of light  1:02:05 left");
  EXPECT_EQ(format_progress(facts, 40), "step   7/300  loss 2.3457  1:02:05 left");
  EXPECT_EQ(format_progress(facts, 10), "step   7/3");
}

}  // namespace
}  // namespace troupe::cli
