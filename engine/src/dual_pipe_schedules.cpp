// DualPipe and DualPipeV: forward and backward passes in pairs, from both ends of the pipeline.

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "troupe/engine/check.hpp"
#include "troupe/engine/schedule_generators.hpp"

#include "two_stage_row.hpp"

namespace troupe {

namespace {

/// The row of the rank with `outside` ranks nearer to the end at which microbatches enter, and
/// `inside` between it and the rank where the two directions meet. `near` is the stage on the way
/// from that end, `far` the one on the way back or from the other end, whose microbatches come
/// later.
std::vector<Action> dual_row(TwoStageRow row, std::uint32_t outside, std::uint32_t inside,
                             std::uint32_t microbatch_count) {
  constexpr auto near = TwoStageRow::first;
  constexpr auto far = TwoStageRow::second;
  const auto width = outside + 1 + inside;
  const auto count = std::max(microbatch_count, 2 * width);
  row.repeat(2 * inside, [&] { row.forward(near); });
  row.repeat(outside + 1, [&] {
    row.forward(near);
    row.forward(far);
  });
  row.repeat(inside, [&] {
    row.backward_input(far);
    row.backward_weight();
    row.forward(far);
  });
  row.repeat(count - 2 * width + outside + 1, [&] {
    row.forward(near);
    row.backward(far);
    row.forward(far);
    row.backward(near);
  });
  row.repeat(inside, [&] {
    row.backward(far);
    row.forward(far);
    row.backward(near);
  });
  // Of the last backward passes but `inside`, far and near in turn, the second half is split; with
  // an odd number of pairs the border runs through the middle one.
  const auto pairs = outside + 1;
  row.repeat(pairs / 2, [&] {
    row.backward(far);
    row.backward(near);
  });
  row.repeat(pairs % 2, [&] {
    row.backward(far);
    row.backward_input(near);
  });
  row.repeat(pairs / 2, [&] {
    row.backward_input(far);
    row.backward_input(near);
  });
  row.repeat(inside, [&] {
    row.backward_weight();
    row.backward_input(near);
  });
  return std::move(row).finish();
}

}  // namespace

Expected<Schedule> make_dualpipe(std::uint32_t rank_count, std::uint32_t microbatch_count) {
  TROUPE_ASSERT(rank_count >= 1 && microbatch_count >= 1);
  if (rank_count % 2 != 0) {
    return Error{Errc::invalid_config, "dualpipe needs an even number of ranks, found "
                                           + std::to_string(rank_count)
                                           + "; use dualpipev, which takes any"};
  }
  if (microbatch_count % 2 != 0) {
    return Error{Errc::invalid_config,
                 "dualpipe shares the microbatches between two directions, found "
                     + std::to_string(microbatch_count) + "; use "
                     + std::to_string(microbatch_count + 1) + ", or dualpipev, which takes any"};
  }
  Schedule schedule{.name = "dualpipe",
                    .microbatch_count = microbatch_count,
                    .copy_count = 2,
                    .rank_of_stage = make_stage_map(StageMap::v_shaped, rank_count, 2),
                    .ranks = {}};
  for (std::uint32_t r = 0; r < rank_count; ++r) {
    const StageIndex descending{r};
    const StageIndex ascending{2 * rank_count - 1 - r};
    const bool in_first_half = r < rank_count / 2;
    const auto outside = in_first_half ? r : rank_count - 1 - r;
    TwoStageRow row{schedule, in_first_half ? std::array{descending, ascending}
                                            : std::array{ascending, descending}};
    schedule.ranks.push_back(
        dual_row(std::move(row), outside, rank_count / 2 - 1 - outside, microbatch_count / 2));
  }
  return schedule;
}

Schedule make_dualpipev(std::uint32_t rank_count, std::uint32_t microbatch_count) {
  TROUPE_ASSERT(rank_count >= 1 && microbatch_count >= 1);
  Schedule schedule{.name = "dualpipev",
                    .microbatch_count = microbatch_count,
                    .rank_of_stage = make_stage_map(StageMap::v_shaped, rank_count, 2),
                    .ranks = {}};
  for (std::uint32_t r = 0; r < rank_count; ++r) {
    TwoStageRow row{schedule, {StageIndex{r}, StageIndex{2 * rank_count - 1 - r}}};
    schedule.ranks.push_back(dual_row(std::move(row), r, rank_count - 1 - r, microbatch_count));
  }
  return schedule;
}

}  // namespace troupe
