// Zero-bubble schedules, and the schedules that their paper compares them with, against its
// figures.
#include <cmath>

#include <gtest/gtest.h>

#include "troupe/engine/schedule_generators.hpp"
#include "troupe/engine/simulate.hpp"

#include "oracles/zero_bubble.hpp"
#include "schedule_scope.hpp"

namespace troupe {
namespace {

using oracles::zero_bubble_rows;
using oracles::ZeroBubbleRow;

CostModel model_of(const ZeroBubbleRow& row) {
  return {.stages = {PassCosts::of_parts(row.forward_ns, row.backward_input_ns,
                                         row.backward_weight_ns)},
          .link_ns = {row.link_ns}};
}

/// The time from the first start to the last end on the longest rank.
std::int64_t cost_ns(const Schedule& schedule, const CostModel& model) {
  const auto timeline = simulate(schedule, model);
  return timeline.rank_times.front().passes_ns + idle_within_ranks_ns(timeline);
}

/// To four digits: the share of `cost_ns` in which the longest rank does not compute.
double rate_of(const ZeroBubbleRow& row, std::int64_t cost_ns) {
  const auto work_ns =
      row.microbatch_count * (row.forward_ns + row.backward_input_ns + row.backward_weight_ns);
  return std::round(1e4 * (1.0 - double(work_ns) / double(cost_ns))) / 1e4;
}

TEST(ZeroBubbleSchedules, MatchThePublishedBubbleRates) {
  for (const auto& row : zero_bubble_rows) {
    const auto [p, m] = std::pair{row.rank_count, row.microbatch_count};
    SCOPED_TRACE(testing::Message() << "microbatches=" << m << " link_ns=" << row.link_ns);
    const auto model = model_of(row);
    EXPECT_EQ(rate_of(row, cost_ns(make_1f1b(p, m), model)), row.rate_1f1b);
    EXPECT_EQ(rate_of(row, cost_ns(make_zb_h1(p, m), model)), row.rate_zb_h1);
    EXPECT_EQ(rate_of(row, cost_ns(make_zb_h2(p, m), model)), row.rate_zb_h2);
  }
}

TEST(ZeroBubbleSchedules, MatchThePublishedBubbleRatesOfInterleaved1F1B) {
  for (const auto& row : zero_bubble_rows) {
    const auto [p, m] = std::pair{row.rank_count, row.microbatch_count};
    SCOPED_TRACE(testing::Message() << "microbatches=" << m << " link_ns=" << row.link_ns);
    // A pass of a chunk takes a part of the published time; scaling up keeps that whole.
    auto model = model_of(row);
    model.link_ns[0] *= row.chunk_count;
    const auto schedule = make_interleaved_1f1b(p, m, row.chunk_count).value();
    const auto all_hops_ns = cost_ns(schedule, model) / row.chunk_count;
    EXPECT_EQ(rate_of(row, all_hops_ns - p * row.link_ns), row.rate_interleaved);
  }
}

TEST(ZeroBubbleSchedules, H1ReadsLikeThePaper) {
  const auto schedule = make_zb_h1(4, 6);
  EXPECT_EQ(text_of(schedule.ranks[0]),
            "0F0 0F1 0F2 0F3 0I0 0W0 0F4 0I1 0W1 0F5 0I2 0W2 0I3 0W3 0I4 0W4 0I5 0W5");
  EXPECT_EQ(text_of(schedule.ranks[1]),
            "1F0 1F1 1F2 1I0 1F3 1I1 1W0 1F4 1I2 1W1 1F5 1I3 1W2 1I4 1W3 1I5 1W4 1W5");
  EXPECT_EQ(text_of(schedule.ranks[3]),
            "3F0 3I0 3F1 3I1 3F2 3I2 3F3 3I3 3W0 3F4 3I4 3W1 3F5 3I5 3W2 3W3 3W4 3W5");
}

TEST(ZeroBubbleSchedules, H2ReadsLikeThePaper) {
  const auto schedule = make_zb_h2(3, 5);
  EXPECT_EQ(text_of(schedule.ranks[0]),
            "0F0 0F1 0F2 0F3 0F4 0I0 0W0 0I1 0W1 0I2 0W2 0I3 0W3 0I4 0W4");
  EXPECT_EQ(text_of(schedule.ranks[1]),
            "1F0 1F1 1F2 1I0 1F3 1I1 1F4 1I2 1W0 1I3 1W1 1I4 1W2 1W3 1W4");
  EXPECT_EQ(text_of(schedule.ranks[2]),
            "2F0 2I0 2F1 2I1 2F2 2I2 2F3 2I3 2F4 2I4 2W0 2W1 2W2 2W3 2W4");
}

TEST(ZeroBubbleSchedules, VReadsLikeThePaper) {
  const auto schedule = make_zb_v(2, 4);
  EXPECT_EQ(text_of(schedule.ranks[0]),
            "0F0 0F1 0F2 3F0 3I0 3W0 3F1 3I1 3W1 0F3 0I0 0W0 3F2 3I2 3W2 0I1 0W1 3F3 3I3 3W3 0I2 "
            "0W2 0I3 0W3");
  EXPECT_EQ(text_of(schedule.ranks[1]),
            "1F0 2F0 1F1 2F1 2I0 2W0 1F2 1I0 1W0 2F2 2I1 2W1 1F3 1I1 1W1 2F3 2I2 2W2 1I2 2I3 1I3 "
            "1W2 2W3 1W3");
}

TEST(ZeroBubbleSchedules, H1IsIdleAThirdAsLongAs1F1BInItsMemory) {
  for_every_extent([](std::uint32_t p, std::uint32_t m) {
    const auto schedule = make_zb_h1(p, m);
    for (const auto in_flight : in_flight_max(schedule, Pass::backward_weight)) {
      EXPECT_EQ(in_flight, std::min(p, m));
    }
    if (m < p) return;
    EXPECT_DOUBLE_EQ(simulate(schedule, {}).bubble_of_total(), double(p - 1) / (3.0 * m + p - 1));
    EXPECT_EQ(simulate(schedule, {.stages = {PassCosts::of_parts(5, 7, 4)}}).makespan_ns,
              m * (5 + 7 + 4) + (p - 1) * (5 + 7 - 4));
  });
}

TEST(ZeroBubbleSchedules, H2NeverWaitsBetweenItsFirstPassAndItsLast) {
  for_every_extent([](std::uint32_t p, std::uint32_t m) {
    const auto schedule = make_zb_h2(p, m);
    for (const auto in_flight : in_flight_max(schedule, Pass::backward_weight)) {
      EXPECT_EQ(in_flight, std::min(2 * p - 1, m));
    }
    if (m < 2 * p - 1) return;
    EXPECT_EQ(idle_within_ranks_ns(simulate(schedule, {})), 0);
    EXPECT_EQ(simulate(schedule, {}).makespan_ns, 3 * m + p - 1);
    EXPECT_EQ(idle_within_ranks_ns(simulate(schedule, {.stages = {PassCosts::of_parts(5, 7, 4)}})),
              (p - 1) * (5 + 7 - 2 * 4));
  });
}

TEST(ZeroBubbleSchedules, VNeverWaitsBetweenItsFirstPassAndItsLast) {
  for_every_extent([](std::uint32_t p, std::uint32_t m) {
    const auto schedule = make_zb_v(p, m);
    for (const auto& row : schedule.ranks) {
      EXPECT_LE(in_flight_max_of_rank(row), 2 * p);  // Two stages, each half as large as 1F1B's.
    }
    if (m < 2 * p - 1) return;
    EXPECT_EQ(idle_within_ranks_ns(simulate(schedule, {})), 0);
    EXPECT_EQ(simulate(schedule, {}).makespan_ns, 6 * m + p - 1);
  });
}

}  // namespace
}  // namespace troupe
