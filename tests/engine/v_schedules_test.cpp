// V-shaped schedules against the figures of their paper, and beyond the sizes that it lists.
#include "oracles/v_schedules.hpp"

#include <algorithm>

#include <gtest/gtest.h>

#include "troupe/engine/schedule_generators.hpp"
#include "troupe/engine/schedule_validation.hpp"
#include "troupe/engine/simulate.hpp"

#include "schedule_scope.hpp"

namespace troupe {
namespace {

/// Half microbatches.
std::uint32_t in_flight_max_of_any_rank(const Schedule& schedule) {
  std::uint32_t max = 0;
  for (const auto& row : schedule.ranks) max = std::max(max, in_flight_max_of_rank(row));
  return max;
}

/// Calls `body(p, m)` for 2 to 16 ranks and P to 4 P microbatches.
template <class Body>
void for_every_full_pipeline(Body body) {
  for (std::uint32_t p = 2; p <= 16; ++p) {
    for (const auto m : {p, p + 1, 2 * p - 1, 2 * p, 3 * p, 4 * p}) {
      SCOPED_TRACE(testing::Message() << "ranks=" << p << " microbatches=" << m);
      body(p, m);
    }
  }
}

TEST(VSchedules, AreIdleNoLongerAndHoldNoMoreThanPublished) {
  for (const auto& row : oracles::v_schedule_rows) {
    SCOPED_TRACE(testing::Message() << row.name << " ranks=" << row.rank_count
                                    << " microbatches=" << row.microbatch_count);
    const auto schedule = make_schedule(row.name, {row.rank_count, row.microbatch_count}).value();
    const auto timeline = simulate(schedule, {});
    EXPECT_EQ(timeline.rank_times.front().busy_ns(), row.busy);
    EXPECT_LE(idle_within_ranks_ns(timeline), row.idle);
    EXPECT_LE(in_flight_max_of_any_rank(schedule), 2 * row.in_flight_max);
  }
}

TEST(VSchedules, HalfIsIdleForThreePassesPerRankWithHalfTheMemory) {
  for_every_full_pipeline([](std::uint32_t p, std::uint32_t m) {
    const auto schedule = make_v_half(p, m);
    ASSERT_TRUE(validate(schedule)) << validate(schedule).error().context;
    EXPECT_EQ(in_flight_max_of_any_rank(schedule), 2 * (p / 2 + 1));
    const auto idle = p == 2 ? 1 : 3 * p - (p % 2 == 0 ? 7 : 4);
    EXPECT_EQ(idle_within_ranks_ns(simulate(schedule, {})), idle);
  });
}

TEST(VSchedules, MinIsIdleForFourPassesPerRankWithAThirdOfTheMemory) {
  for_every_full_pipeline([](std::uint32_t p, std::uint32_t m) {
    const auto schedule = make_v_min(p, m);
    ASSERT_TRUE(validate(schedule)) << validate(schedule).error().context;
    EXPECT_EQ(in_flight_max_of_any_rank(schedule), 2 * ((p + 4) / 3));
    const auto idle = p == 2 ? 2 : 4 * p - (p % 3 == 0 ? 7 : 5);
    EXPECT_EQ(idle_within_ranks_ns(simulate(schedule, {})), idle);
  });
}

TEST(VSchedules, HalfReadsLikeThePaper) {
  const auto schedule = make_v_half(3, 4);
  EXPECT_EQ(text_of(schedule.ranks[0]),
            "0F0 0F1 5F0 5I0 0F2 5W0 5F1 5I1 5W1 0I0 0F3 0W0 5F2 5I2 5W2 0I1 0W1 5F3 5I3 0I2 5W3 "
            "0W2 0I3 0W3");
  EXPECT_EQ(text_of(schedule.ranks[1]),
            "1F0 1F1 4F0 4I0 4F1 4W0 1F2 1I0 4I1 1W0 4F2 4W1 1F3 1I1 4I2 1W1 4F3 4W2 1I2 4I3 1W2 "
            "4W3 1I3 1W3");
  EXPECT_EQ(text_of(schedule.ranks[2]),
            "2F0 3F0 2F1 3F1 3I0 2I0 3W0 2F2 2W0 3F2 3I1 2I1 3W1 2F3 2W1 3F3 3I2 2I2 3W2 2W2 3I3 "
            "2I3 3W3 2W3");
}

TEST(VSchedules, MinReadsLikeThePaper) {
  const auto schedule = make_v_min(4, 4);
  EXPECT_EQ(text_of(schedule.ranks[0]),
            "0F0 0F1 7F0 7I0 0F2 7W0 7F1 7I1 0I0 7W1 0F3 0W0 7F2 7I2 0I1 7W2 0W1 7F3 7I3 0I2 7W3 "
            "0W2 0I3 0W3");
  EXPECT_EQ(text_of(schedule.ranks[1]),
            "1F0 1F1 6F0 6I0 6W0 6F1 1F2 1I0 6I1 1W0 6W1 6F2 1F3 1I1 6I2 1W1 6W2 6F3 1I2 6I3 1W2 "
            "6W3 1I3 1W3");
  EXPECT_EQ(text_of(schedule.ranks[3]),
            "3F0 4F0 3F1 4F1 4I0 3I0 4W0 3W0 3F2 4F2 4I1 3I1 4W1 3W1 3F3 4F3 4I2 3I2 4W2 3W2 4I3 "
            "3I3 4W3 3W3");
}

}  // namespace
}  // namespace troupe
