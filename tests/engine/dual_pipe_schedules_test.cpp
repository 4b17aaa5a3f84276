// DualPipe and DualPipeV against the figures of their reports.
#include <algorithm>
#include <map>
#include <optional>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/engine/schedule_generators.hpp"
#include "troupe/engine/simulate.hpp"

#include "schedule_scope.hpp"

namespace troupe {
namespace {

/// How long the rank is idle that is idle longest between its first pass and its last, with
/// F = I = W = 1, if a forward pass and the whole backward pass behind it are one piece of work, as
/// the reports have it: it begins when the inputs of both are there, and both go on at its end.
std::int64_t idle_in_pairs(const Schedule& schedule) {
  struct Rank {
    std::size_t next = 0;
    std::int64_t now = 0;
    std::int64_t idle = 0;
  };
  const PassCosts costs;
  std::vector<Rank> ranks(schedule.rank_count());
  std::map<std::tuple<bool, StageIndex, MicrobatchIndex>, std::int64_t> made;
  const auto input_of = [&](const Action& action) -> std::optional<std::int64_t> {
    const bool forward = action.pass == Pass::forward;
    if (action.pass == Pass::backward_weight) return 0;
    if (forward ? schedule.is_first(action.stage) : schedule.is_last(action.stage)) return 0;
    const auto stage = action.stage.value();
    const auto input =
        made.find({forward, StageIndex{forward ? stage - 1 : stage + 1}, action.microbatch});
    if (input == made.end()) return std::nullopt;
    return input->second;
  };
  for (bool moves = true; moves;) {
    moves = false;
    for (std::uint32_t r = 0; r < schedule.rank_count(); ++r) {
      auto& rank = ranks[r];
      const auto& row = schedule.ranks[r];
      if (rank.next == row.size()) continue;
      const bool is_pair = rank.next + 1 < row.size() && row[rank.next].pass == Pass::forward
                           && row[rank.next + 1].pass == Pass::backward;
      const std::span piece{&row[rank.next], is_pair ? 2U : 1U};
      auto begin = rank.now;
      auto duration = std::int64_t{0};
      bool is_ready = true;
      for (const auto& action : piece) {
        const auto input = input_of(action);
        is_ready = is_ready && input;
        begin = std::max(begin, input.value_or(0));
        duration += costs.of(action.pass);
      }
      if (!is_ready) continue;
      if (rank.next > 0) rank.idle += begin - rank.now;
      rank.now = begin + duration;
      rank.next += piece.size();
      for (const auto& action : piece) {
        if (action.pass == Pass::backward_weight) continue;
        made[{action.pass == Pass::forward, action.stage, action.microbatch}] = rank.now;
      }
      moves = true;
    }
  }
  std::int64_t longest = 0;
  for (const auto& rank : ranks) longest = std::max(longest, rank.idle);
  return longest;
}

TEST(DualPipeSchedules, TakeAsLongAsTheReportSays) {
  const auto schedule = make_dualpipe(8, 20).value();  // Figure 5 of the report.
  EXPECT_EQ(simulate(schedule, {}).rank_times.front().busy_ns(), 60);
  EXPECT_EQ(idle_in_pairs(schedule), 6);  // The figure ends after 66 units of time.
  for (const auto& row : schedule.ranks) EXPECT_EQ(in_flight_max_of_rank(row), 9);
}

TEST(DualPipeSchedules, BothDirectionsMeetInTheMiddle) {
  for (std::uint32_t p = 2; p <= 16; p += 2) {
    for (const auto m : {2 * p, 2 * p + 2, 3 * p, 4 * p}) {
      SCOPED_TRACE(testing::Message() << "ranks=" << p << " microbatches=" << m);
      const auto schedule = make_dualpipe(p, m).value();
      EXPECT_EQ(idle_in_pairs(schedule), p - 2);
      EXPECT_EQ(idle_within_ranks_ns(simulate(schedule, {})), p / 2 - 1);
      for (const auto& row : schedule.ranks) EXPECT_EQ(in_flight_max_of_rank(row), p + 1);
      EXPECT_EQ(schedule.copy_count, 2U);
      EXPECT_EQ(schedule.rank_of_stage[p], RankIndex{p - 1});
    }
  }
}

TEST(DualPipeSchedules, VIsIdleAndHoldsLikeDualPipeOfTwiceTheRanks) {
  for (std::uint32_t p = 1; p <= 8; ++p) {
    for (const auto m : {2 * p, 2 * p + 1, 4 * p}) {
      SCOPED_TRACE(testing::Message() << "ranks=" << p << " microbatches=" << m);
      const auto schedule = make_dualpipev(p, m);
      EXPECT_EQ(idle_in_pairs(schedule), 2 * (p - 1));
      EXPECT_EQ(idle_within_ranks_ns(simulate(schedule, {})), p - 1);
      for (const auto& row : schedule.ranks) EXPECT_EQ(in_flight_max_of_rank(row), 2 * p + 1);
    }
  }
}

TEST(DualPipeSchedules, VIsHalfOfDualPipe) {
  for_every_extent([](std::uint32_t p, std::uint32_t m) {
    const auto folded = make_dualpipev(p, m);
    const auto dual = make_dualpipe(2 * p, 2 * m).value();
    for (std::uint32_t r = 0; r < p; ++r) {
      ASSERT_EQ(folded.ranks[r].size(), dual.ranks[r].size());
      for (std::size_t i = 0; i < folded.ranks[r].size(); ++i) {
        const auto& ours = folded.ranks[r][i];
        const auto& theirs = dual.ranks[r][i];
        EXPECT_EQ(ours.pass, theirs.pass);
        EXPECT_EQ(ours.microbatch.value(), theirs.microbatch.value() % m);
        EXPECT_EQ(ours.stage.value() == r, theirs.stage.value() == r);
      }
    }
  });
}

TEST(DualPipeSchedules, ReadLikeTheReport) {
  const auto schedule = make_dualpipe(4, 8).value();
  EXPECT_EQ(text_of(schedule.ranks[0]),
            "0F0 0F1 0F2 7F4 7I4 7W4 7F5 0F3 7B5 7F6 0B0 7B6 7F7 0B1 7B7 0I2 0W2 0I3 0W3");
  EXPECT_EQ(text_of(schedule.ranks[1]),
            "1F0 6F4 1F1 6F5 1F2 6B4 6F6 1B0 1F3 6B5 6F7 1B1 6B6 1B2 6I7 1I3 6W7 1W3");
  EXPECT_EQ(text_of(schedule.ranks[2]),
            "5F4 2F0 5F5 2F1 5F6 2B0 2F2 5B4 5F7 2B1 2F3 5B5 2B2 5B6 2I3 5I7 2W3 5W7");
  EXPECT_EQ(text_of(schedule.ranks[3]),
            "4F4 4F5 4F6 3F0 3I0 3W0 3F1 4F7 3B1 3F2 4B4 3B2 3F3 4B5 3B3 4I6 4W6 4I7 4W7");
}

TEST(DualPipeSchedules, VReadsLikeTheReport) {
  const auto schedule = make_dualpipev(2, 4);
  EXPECT_EQ(text_of(schedule.ranks[0]),
            "0F0 0F1 0F2 3F0 3I0 3W0 3F1 0F3 3B1 3F2 0B0 3B2 3F3 0B1 3B3 0I2 0W2 0I3 0W3");
  EXPECT_EQ(text_of(schedule.ranks[1]),
            "1F0 2F0 1F1 2F1 1F2 2B0 2F2 1B0 1F3 2B1 2F3 1B1 2B2 1B2 2I3 1I3 2W3 1W3");
}

TEST(DualPipeSchedules, RefusalsSayWhatToUse) {
  EXPECT_EQ(make_schedule("dualpipe", {3, 8}).error().context,
            "dualpipe needs an even number of ranks, found 3; use dualpipev, which takes any");
  EXPECT_EQ(make_schedule("dualpipe", {4, 9}).error().context,
            "dualpipe shares the microbatches between two directions, found 9; use 10, or "
            "dualpipev, which takes any");
}

}  // namespace
}  // namespace troupe
