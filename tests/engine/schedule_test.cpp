#include "troupe/engine/schedule.hpp"

#include <algorithm>

#include <gtest/gtest.h>

#include "troupe/engine/random.hpp"
#include "troupe/engine/schedule_generators.hpp"
#include "troupe/engine/schedule_text.hpp"
#include "troupe/engine/schedule_validation.hpp"

#include "schedule_scope.hpp"

namespace troupe {
namespace {

std::string verdict_on(const Schedule& schedule) {
  const auto verdict = validate(schedule);
  return verdict ? "valid" : verdict.error().context;
}

std::string refusal(const Expected<Schedule>& schedule) {
  if (schedule) return "made";
  EXPECT_EQ(schedule.error().code, Errc::invalid_config);
  return schedule.error().context;
}

std::vector<RankIndex> on_ranks(std::initializer_list<std::uint32_t> ranks) {
  return {ranks.begin(), ranks.end()};
}

TEST(Schedule, GPipeRunsAllForwardPassesFirst) {
  const auto schedule = make_gpipe(2, 3);
  EXPECT_EQ(text_of(schedule.ranks[0]), "0F0 0F1 0F2 0B0 0B1 0B2");
  EXPECT_EQ(text_of(schedule.ranks[1]), "1F0 1F1 1F2 1B0 1B1 1B2");
}

TEST(Schedule, OneForwardOneBackwardReadsLikeThePaper) {
  const auto schedule = make_1f1b(4, 5);
  EXPECT_EQ(text_of(schedule.ranks[0]), "0F0 0F1 0F2 0F3 0B0 0F4 0B1 0B2 0B3 0B4");
  EXPECT_EQ(text_of(schedule.ranks[3]), "3F0 3B0 3F1 3B1 3F2 3B2 3F3 3B3 3F4 3B4");
}

TEST(Schedule, InterleavedReadsLikeThePaper) {
  const auto schedule = make_interleaved_1f1b(2, 4, 2).value();
  EXPECT_EQ(text_of(schedule.ranks[0]),
            "0F0 0F1 2F0 2F1 0F2 2B0 0F3 2B1 2F2 0B0 2F3 0B1 2B2 2B3 0B2 0B3");
  EXPECT_EQ(text_of(schedule.ranks[1]),
            "1F0 1F1 3F0 3B0 3F1 3B1 1F2 1B0 1F3 1B1 3F2 3B2 3F3 3B3 1B2 1B3");
  EXPECT_EQ(schedule.rank_of_stage, on_ranks({0, 1, 0, 1}));
}

TEST(Schedule, InterleavedGroupsAreAsEqualAsCanBe) {
  const auto uneven = make_interleaved_1f1b(2, 5, 2).value();  // Groups of three and of two.
  EXPECT_EQ(text_of(uneven.ranks[0]),
            "0F0 0F1 0F2 2F0 2F1 2F2 2B0 0F3 2B1 0F4 2B2 2F3 0B0 2F4 0B1 0B2 2B3 2B4 0B3 0B4");
  EXPECT_EQ(text_of(uneven.ranks[1]),
            "1F0 1F1 1F2 3F0 3B0 3F1 3B1 3F2 3B2 1F3 1B0 1F4 1B1 3F3 1B2 3F4 3B3 3B4 1B3 1B4");
  const auto few = make_interleaved_1f1b(3, 2, 2).value();
  EXPECT_EQ(text_of(few.ranks[0]), "0F0 0F1 3F0 3F1 3B0 3B1 0B0 0B1");
  EXPECT_EQ(text_of(few.ranks[2]), "2F0 2F1 5F0 5B0 5F1 5B1 2B0 2B1");
}

TEST(Schedule, EagerRunsOneForwardPassMoreAheadForEveryRankBehind) {
  const auto schedule = make_eager_1f1b(3, 6, 0);
  EXPECT_EQ(text_of(schedule.ranks[0]), "0F0 0F1 0F2 0F3 0F4 0B0 0F5 0B1 0B2 0B3 0B4 0B5");
  EXPECT_EQ(text_of(schedule.ranks[1]), "1F0 1F1 1F2 1B0 1F3 1B1 1F4 1B2 1F5 1B3 1B4 1B5");
  EXPECT_EQ(text_of(schedule.ranks[2]), "2F0 2B0 2F1 2B1 2F2 2B2 2F3 2B3 2F4 2B4 2F5 2B5");
  const auto limited = make_eager_1f1b(3, 6, 4);
  EXPECT_EQ(text_of(limited.ranks[0]), "0F0 0F1 0F2 0F3 0B0 0F4 0B1 0F5 0B2 0B3 0B4 0B5");
  EXPECT_EQ(limited.ranks[1], schedule.ranks[1]);
}

TEST(Schedule, LoopedBreadthFirstRunsEveryMicrobatchThroughAChunkBeforeTheNext) {
  const auto schedule = make_looped_bfs(2, 3, 2).value();
  EXPECT_EQ(text_of(schedule.ranks[0]), "0F0 0F1 0F2 2F0 2F1 2F2 2B0 2B1 2B2 0B0 0B1 0B2");
  EXPECT_EQ(text_of(schedule.ranks[1]), "1F0 1F1 1F2 3F0 3F1 3F2 3B0 3B1 3B2 1B0 1B1 1B2");
}

TEST(Schedule, ForwardOnlyRunsGroupsOfMicrobatchesThroughEveryStage) {
  const auto schedule = make_forward_only_on(make_stage_map(StageMap::looped, 2, 2), 3);
  EXPECT_EQ(schedule.kind, StepKind::evaluation);
  EXPECT_EQ(text_of(schedule.ranks[0]), "0F0 0F1 2F0 2F1 0F2 2F2");
  EXPECT_EQ(text_of(schedule.ranks[1]), "1F0 1F1 3F0 3F1 1F2 3F2");
}

TEST(Schedule, StageMapsAreDealtInLoopsAndInVs) {
  EXPECT_EQ(make_stage_map(StageMap::looped, 3, 1), on_ranks({0, 1, 2}));
  EXPECT_EQ(make_stage_map(StageMap::looped, 3, 2), on_ranks({0, 1, 2, 0, 1, 2}));
  EXPECT_EQ(make_stage_map(StageMap::v_shaped, 3, 2), on_ranks({0, 1, 2, 2, 1, 0}));
  EXPECT_EQ(make_stage_map(StageMap::v_shaped, 2, 3), on_ranks({0, 1, 1, 0, 0, 1}));
  const auto v = make_forward_only_on(make_stage_map(StageMap::v_shaped, 3, 2), 1);
  EXPECT_EQ(v.stages_of(RankIndex{1}), (std::vector{StageIndex{1}, StageIndex{4}}));
}

TEST(Schedule, EveryGeneratedScheduleIsValid) {
  std::size_t count = 0;
  for_every_schedule([&](const Schedule& schedule) {
    ++count;
    ASSERT_EQ(verdict_on(schedule), "valid");
  });
  // In each extent three names with one stage per rank and two with two or three, whole and split;
  // five that are split by themselves; dualpipev, and in even extents dualpipe, in part and split.
  constexpr auto extents = rank_count_max * microbatch_count_max;
  constexpr auto even_extents = (rank_count_max / 2) * (microbatch_count_max / 2);
  EXPECT_EQ(count, extents * ((3 + 2 * 2) * 2 + 5 + 2) + even_extents * 2);
}

TEST(Schedule, ForwardOnlyIsValidOnEveryStageMap) {
  for_every_extent([](std::uint32_t p, std::uint32_t m) {
    for (const auto map : {StageMap::looped, StageMap::v_shaped}) {
      for (std::uint32_t chunks = 1; chunks <= 3; ++chunks) {
        EXPECT_EQ(verdict_on(make_forward_only_on(make_stage_map(map, p, chunks), m)), "valid");
      }
    }
  });
}

TEST(Schedule, GPipeHoldsEveryMicrobatch) {
  for_every_extent([](std::uint32_t p, std::uint32_t m) {
    EXPECT_EQ(in_flight_max(make_gpipe(p, m), Pass::backward_weight),
              std::vector<std::uint32_t>(p, m));
  });
}

TEST(Schedule, OneForwardOneBackwardBoundsTheMicrobatchesInFlight) {
  for_every_extent([](std::uint32_t p, std::uint32_t m) {
    const auto in_flight = in_flight_max(make_1f1b(p, m), Pass::backward_weight);
    for (std::uint32_t s = 0; s < p; ++s) EXPECT_EQ(in_flight[s], std::min(p - s, m));
  });
}

TEST(Schedule, EagerBoundsTheMicrobatchesInFlight) {
  for_every_extent([](std::uint32_t p, std::uint32_t m) {
    for (const std::uint32_t limit : {0U, 1U, p, p + 2}) {
      const auto schedule = make_eager_1f1b(p, m, limit);
      ASSERT_EQ(verdict_on(schedule), "valid");
      const auto in_flight = in_flight_max(schedule, Pass::backward_weight);
      for (std::uint32_t s = 0; s < p; ++s) {
        const auto unlimited = std::min(2 * (p - s) - 1, m);
        const auto allowed = limit == 0 ? unlimited : std::max(limit, s + 1) - s;
        EXPECT_EQ(in_flight[s], std::min(unlimited, allowed));
      }
    }
    EXPECT_EQ(make_eager_1f1b(p, m, p).ranks, make_1f1b(p, m).ranks);
  });
}

/// The microbatches of every group, if they are equally many; otherwise none.
std::uint32_t group_size_of(std::uint32_t rank_count, std::uint32_t microbatch_count) {
  const auto group_count = std::max(1U, microbatch_count / rank_count);
  return microbatch_count % group_count == 0 ? microbatch_count / group_count : 0;
}

/// The most microbatches in flight on chunk `chunk` of rank `rank` under interleaved 1F1B with
/// groups of `group`: the forward passes of that chunk among as many forward passes of its rank in
/// a row as a microbatch stays in flight.
///
/// How long it stays: the forward and the backward passes of a rank take turns, and of both it runs
/// a group on one chunk before a group on the next, ascending and descending. Between F and B on a
/// chunk lie, twice, a group on each of the chunks behind it, and the rank runs two forward passes
/// more ahead for every rank behind; so with its own F a microbatch is in flight during
/// 2 G (v - 1 - c) + 2 (P - 1 - r) + 1 forward passes of its rank.
///
/// How many begin meanwhile: v G forward passes in a row serve every chunk once and hold G of any
/// one; what remains holds most if it begins with the chunk's group.
std::uint32_t interleaved_in_flight_max(std::uint32_t group, std::uint32_t chunk_count,
                                        std::uint32_t chunks_behind, std::uint32_t ranks_behind) {
  const auto passes = 2 * group * chunks_behind + 2 * ranks_behind + 1;
  const auto round = chunk_count * group;
  return passes / round * group + std::min(passes % round, group);
}

TEST(Schedule, InterleavedBoundsTheMicrobatchesInFlightOnEveryStage) {
  for_every_extent([&](std::uint32_t p, std::uint32_t m) {
    const auto group = group_size_of(p, m);
    if (group == 0) return;
    for (const std::uint32_t v : {2U, 3U, 4U}) {
      const auto in_flight =
          in_flight_max(make_interleaved_1f1b(p, m, v).value(), Pass::backward_weight);
      for (std::uint32_t s = 0; s < p * v; ++s) {
        EXPECT_EQ(in_flight[s],
                  std::min(m, interleaved_in_flight_max(group, v, v - 1 - s / p, p - 1 - s % p)))
            << "chunks=" << v << " stage=" << s;
      }
    }
  });
}

TEST(Schedule, InterleavedBoundsTheMicrobatchesInFlightOnEveryRank) {
  for_every_extent([](std::uint32_t p, std::uint32_t m) {
    const auto group_count = std::max(1U, m / p);
    const auto group_max = (m + group_count - 1) / group_count;
    for (const std::uint32_t v : {2U, 3U, 4U}) {
      const auto schedule = make_interleaved_1f1b(p, m, v).value();
      for (std::uint32_t r = 0; r < p; ++r) {
        EXPECT_EQ(in_flight_max_of_rank(schedule.ranks[r]),
                  std::min((v - 1) * group_max + 2 * (p - 1 - r) + 1, v * m));
      }
    }
  });
}

TEST(Schedule, InterleavedServesMoreRanksThanMicrobatches) {
  const auto schedule = make_interleaved_1f1b(1024, 64, 2).value();
  EXPECT_EQ(schedule.action_count(), std::size_t{2} * 1024 * 2 * 64);
  EXPECT_EQ(verdict_on(schedule), "valid");
}

TEST(Schedule, LoopedBreadthFirstHoldsEveryMicrobatch) {
  for_every_extent([](std::uint32_t p, std::uint32_t m) {
    EXPECT_EQ(in_flight_max(make_looped_bfs(p, m, 3).value(), Pass::backward_weight),
              std::vector<std::uint32_t>(3 * p, m));
  });
}

TEST(Schedule, InFlightEndsWithTheInputGradientOrWithTheWeights) {
  auto schedule = make_gpipe(1, 3);
  const StageIndex stage{0};
  schedule.ranks[0].clear();
  for (const auto* cell : {"0F0", "0I0", "0F1", "0I1", "0W0", "0F2", "0B2", "0W1"}) {
    schedule.ranks[0].push_back(parse_action(cell).value());
  }
  EXPECT_EQ(in_flight_max(schedule, stage, Pass::backward_input), 1U);
  EXPECT_EQ(in_flight_max(schedule, stage, Pass::backward_weight), 2U);
  EXPECT_EQ(in_flight_max(make_forward_only_on(on_ranks({0}), 5), stage, Pass::backward_weight),
            1U);
}

TEST(Schedule, OneStageAndAllStagesCountTheSameMicrobatchesInFlight) {
  for_every_schedule([](const Schedule& schedule) {
    for (const auto until : {Pass::backward_input, Pass::backward_weight}) {
      const auto all = in_flight_max(schedule, until);
      for (std::uint32_t s = 0; s < schedule.stage_count(); ++s) {
        ASSERT_EQ(all[s], in_flight_max(schedule, StageIndex{s}, until));
      }
    }
  });
}

TEST(Schedule, SplittingPutsIAndWInThePlaceOfB) {
  const auto schedule = split_backward(make_1f1b(2, 2));
  EXPECT_EQ(text_of(schedule.ranks[0]), "0F0 0F1 0I0 0W0 0I1 0W1");
  EXPECT_EQ(text_of(schedule.ranks[1]), "1F0 1I0 1W0 1F1 1I1 1W1");
  EXPECT_EQ(schedule.name, "1f1b-split");
  EXPECT_EQ(split_backward(schedule), schedule);
}

TEST(Schedule, SplittingHoldsNoMicrobatchLonger) {
  for_every_schedule([](const Schedule& schedule) {
    if (schedule.name.ends_with("split")) return;
    EXPECT_EQ(in_flight_max(split_backward(schedule), Pass::backward_weight),
              in_flight_max(schedule, Pass::backward_weight));
  });
}

TEST(Schedule, WeightPassesOutOfTurnArePutOff) {
  auto schedule = make_gpipe(1, 4);
  std::reverse(schedule.ranks[0].begin() + 4, schedule.ranks[0].end());  // As GPipe first had it.
  EXPECT_EQ(text_of(with_weight_passes_in_order(schedule).ranks[0]),
            "0F0 0F1 0F2 0F3 0I3 0I2 0I1 0B0 0W1 0W2 0W3");

  schedule.ranks[0].clear();
  for (const auto* cell : {"0F0", "0F1", "0I1", "0W1", "0F2", "0B0", "0F3", "0B3", "0B2"}) {
    schedule.ranks[0].push_back(parse_action(cell).value());
  }
  EXPECT_EQ(text_of(with_weight_passes_in_order(schedule).ranks[0]),
            "0F0 0F1 0I1 0F2 0B0 0W1 0F3 0I3 0B2 0W3");
}

TEST(Schedule, WeightPassesInTurnStayWhereTheyAre) {
  for_every_schedule(
      [](const Schedule& schedule) { ASSERT_EQ(with_weight_passes_in_order(schedule), schedule); });
}

TEST(Schedule, AnyOrderOfBackwardPassesCanBePutInWeightOrder) {
  for (std::uint64_t seed = 0; seed < 500; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed=" << seed);
    Random random{seed};
    const auto m = static_cast<std::uint32_t>(1 + random.below(9));
    auto schedule = make_gpipe(3, m);
    std::vector<std::uint32_t> order(m);
    for (std::uint32_t i = 0; i < m; ++i) {
      order[i] = i;
      std::swap(order[i], order[random.below(i + 1)]);
    }
    for (auto& row : schedule.ranks) {
      for (std::uint32_t i = 0; i < m; ++i) row[m + i].microbatch = MicrobatchIndex{order[i]};
    }
    if (random.below(2) == 1) schedule = split_backward(std::move(schedule));
    ASSERT_EQ(verdict_on(with_weight_passes_in_order(std::move(schedule))), "valid");
  }
}

TEST(Schedule, WeightOrderHidesNoMissingAndNoDoubledPass) {
  auto doubled = make_gpipe(1, 3);
  doubled.ranks[0].push_back(doubled.ranks[0][5]);
  EXPECT_EQ(verdict_on(with_weight_passes_in_order(doubled)).substr(0, 5), "once:");
  std::swap(doubled.ranks[0][3], doubled.ranks[0][5]);
  EXPECT_EQ(verdict_on(with_weight_passes_in_order(doubled)).substr(0, 5), "once:");

  auto missing = make_gpipe(1, 3);
  missing.ranks[0].erase(missing.ranks[0].begin() + 3);
  EXPECT_EQ(verdict_on(with_weight_passes_in_order(missing)),
            "completeness: rank 0 never runs 0B0 (or 0I0 and 0W0), which the step needs; its row "
            "ends [... 0I1 0I2 0W1 0W2]");
}

TEST(Schedule, RefusalsSayWhatToWriteInstead) {
  EXPECT_EQ(refusal(make_schedule("1f1", {2, 4})),
            "there is no schedule \"1f1\"; did you mean 1f1b? Known are gpipe, 1f1b, eager-1f1b, "
            "interleaved-1f1b, looped-bfs, zb-h1, zb-h2, zb-v, v-half, v-min, dualpipe, dualpipev, "
            "zb-1p, zb-2p, auto");
  EXPECT_EQ(refusal(make_schedule("interleaved-1f1b", {4, 8})),
            "interleaved-1f1b needs at least 2 chunks per rank, found 1; with one stage per rank "
            "use 1f1b");
  EXPECT_EQ(refusal(make_schedule("looped-bfs", {4, 8})),
            "looped-bfs needs at least 2 chunks per rank, found 1; with one stage per rank use "
            "gpipe");
  EXPECT_EQ(refusal(make_schedule("1f1b", {.rank_count = 4, .memory_limit = 3})),
            "1f1b takes no memory limit, found 3 microbatches; leave it at 0, or use eager-1f1b");
  EXPECT_EQ(refusal(make_schedule("gpipe", {4, 8, 2})),
            "gpipe holds one stage per rank, found 2 chunks; use 1 chunk, or interleaved-1f1b");
  EXPECT_EQ(refusal(make_schedule("zb-v", {4, 8, 3})),
            "zb-v holds two stages per rank, found 3 chunks; use 2 chunks, or interleaved-1f1b");
  EXPECT_EQ(refusal(make_schedule("zb-v", {65536, 512})),
            "131072 stages and 512 microbatches are more than 134217728 passes; use fewer");
  EXPECT_EQ(refusal(make_schedule("gpipe", {0, 8})), "a schedule needs 1 to 65536 ranks, found 0");
  EXPECT_EQ(refusal(make_schedule("gpipe", {2, 0})),
            "a schedule needs 1 to 1048576 microbatches, found 0");
  EXPECT_EQ(refusal(make_schedule("gpipe", {2, 8, 0})),
            "a schedule needs 1 to 524288 chunks per rank, found 0");
  EXPECT_EQ(refusal(make_schedule("gpipe", {65536, 65536})),
            "65536 stages and 65536 microbatches are more than 134217728 passes; use fewer");
}

TEST(ScheduleDeathTest, AnEmptyExtentIsAProgrammerError) {
  EXPECT_DEATH((void)make_1f1b(0, 1), "rank_count >= 1");
  EXPECT_DEATH((void)make_gpipe(1, 0), "microbatch_count >= 1");
}

}  // namespace
}  // namespace troupe
