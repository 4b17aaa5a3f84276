// The hand-made zero-bubble schedules: ZB-H1, ZB-H2 and ZB-V.

#include <algorithm>
#include <string>

#include "troupe/engine/check.hpp"
#include "troupe/engine/schedule_generators.hpp"

#include "two_stage_row.hpp"

namespace troupe {

namespace {

/// After `forward_count(r)` forward passes, rank r runs I and F in turn, and the W for which there
/// is room between them: as soon as `in_flight_max` microbatches are.
template <class ForwardCount>
Schedule make_zb_h(const char* name, std::uint32_t rank_count, std::uint32_t microbatch_count,
                   std::uint32_t in_flight_max, ForwardCount forward_count) {
  TROUPE_ASSERT(rank_count >= 1 && microbatch_count >= 1);
  Schedule schedule{.name = name,
                    .microbatch_count = microbatch_count,
                    .rank_of_stage = make_stage_map(StageMap::looped, rank_count, 1),
                    .ranks = std::vector<std::vector<Action>>(rank_count)};
  for (std::uint32_t r = 0; r < rank_count; ++r) {
    auto& row = schedule.ranks[r];
    row.reserve(std::size_t{3} * microbatch_count);
    const auto append = [&](Pass pass, std::uint32_t m) {
      row.push_back({StageIndex{r}, pass, MicrobatchIndex{m}});
    };
    const auto ahead = std::min(forward_count(r), microbatch_count);
    const auto lag = std::min(in_flight_max - forward_count(r), microbatch_count);  // Of W.
    for (std::uint32_t m = 0; m < ahead; ++m) append(Pass::forward, m);
    for (std::uint32_t m = 0; m < microbatch_count; ++m) {
      append(Pass::backward_input, m);
      if (m >= lag) append(Pass::backward_weight, m - lag);
      if (m + ahead < microbatch_count) append(Pass::forward, m + ahead);
    }
    for (auto m = microbatch_count - lag; m < microbatch_count; ++m) {
      append(Pass::backward_weight, m);
    }
  }
  return schedule;
}

}  // namespace

Schedule make_zb_h1(std::uint32_t rank_count, std::uint32_t microbatch_count) {
  return make_zb_h("zb-h1", rank_count, microbatch_count, rank_count,
                   [=](std::uint32_t r) { return rank_count - r; });
}

Schedule make_zb_h2(std::uint32_t rank_count, std::uint32_t microbatch_count) {
  return make_zb_h("zb-h2", rank_count, microbatch_count, 2 * rank_count - 1,
                   [=](std::uint32_t r) { return 2 * (rank_count - r) - 1; });
}

Schedule make_zb_v(std::uint32_t rank_count, std::uint32_t microbatch_count) {
  TROUPE_ASSERT(rank_count >= 1 && microbatch_count >= 1);
  Schedule schedule{.name = "zb-v",
                    .microbatch_count = microbatch_count,
                    .rank_of_stage = make_stage_map(StageMap::v_shaped, rank_count, 2),
                    .ranks = {}};
  constexpr auto down = TwoStageRow::first;
  constexpr auto up = TwoStageRow::second;
  const auto count = std::max(microbatch_count, 2 * rank_count - 1);
  for (std::uint32_t r = 0; r < rank_count; ++r) {
    const auto behind = rank_count - r;  // Ranks from here on, itself among them.
    TwoStageRow row{schedule, {StageIndex{r}, StageIndex{2 * rank_count - 1 - r}}};
    row.repeat(2 * behind - 1, [&] { row.forward(down); });
    row.repeat(r, [&] {
      row.forward(up);
      row.forward(down);
    });
    row.repeat(behind, [&] {
      row.forward(up);
      row.backward_input(up);
      row.backward_weight();
    });
    row.repeat(count - rank_count, [&] {
      row.forward(down);
      row.backward_input(down);
      row.backward_weight();
      row.forward(up);
      row.backward_input(up);
      row.backward_weight();
    });
    row.repeat(r, [&] {
      row.backward_input(down);
      row.backward_input(up);
    });
    row.repeat(behind, [&] {
      row.backward_input(down);
      row.backward_weight();
    });
    schedule.ranks.push_back(std::move(row).finish());
  }
  return schedule;
}

}  // namespace troupe
