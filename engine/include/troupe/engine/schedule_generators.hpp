// troupe/engine/schedule_generators.hpp -- the named schedules, and how one is made from another.
//
// A generator only says which pass comes when on each rank. That the result is a schedule at all,
// complete and free of deadlock, is the business of `validate`.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "troupe/engine/expected.hpp"
#include "troupe/engine/schedule.hpp"

namespace troupe {

/// GPipe (Huang et al. 2019): all forward passes, then all backward passes. One stage per rank,
/// every microbatch in flight. Counts at least 1.
[[nodiscard]] Schedule make_gpipe(std::uint32_t rank_count, std::uint32_t microbatch_count);

/// 1F1B (Narayanan et al. 2021, figure 4, top): as few forward passes as the pipeline needs to
/// fill, then one forward and one backward pass in turn. One stage per rank, at most P - r
/// microbatches in flight on rank r. Counts at least 1.
[[nodiscard]] Schedule make_1f1b(std::uint32_t rank_count, std::uint32_t microbatch_count);

/// Interleaved 1F1B (Narayanan et al. 2021, figure 4, bottom): `chunk_count` stages per rank,
/// looped, so that the bubble shrinks by that factor.
///
/// Of P ranks and S stages, stage s has at most P floor(n / S) + min(n mod S, P) microbatches in
/// flight, where n = 2 (S - 1 - s) + 1; and never more than there are. So the first half of the
/// stages holds P to 2 P of them, the second half at most P, and the last stage one.
/// @returns `invalid_config` unless there are at least 2 chunks, and the microbatches are a
/// multiple
///          of the ranks; says which counts near by are.
[[nodiscard]] Expected<Schedule> make_interleaved_1f1b(std::uint32_t rank_count,
                                                       std::uint32_t microbatch_count,
                                                       std::uint32_t chunk_count);

/// An evaluation step over the stages and microbatches of `training`: forward passes only, a group
/// of as many microbatches of each copy as there are ranks stage by stage, then the next group.
[[nodiscard]] Schedule make_forward_only(const Schedule& training);

/// Splits every B of `schedule` into I, in the place of the B, and W right behind it. Gradients go
/// on earlier, and whatever the passes and the links cost, no rank ends later: each I ends before
/// the B would have, each W with it. No stage holds more microbatches than before.
///
/// Does not put a W off to fill a bubble. Within the memory of the schedules above that gains
/// nothing; schedules that pay for it with memory are schedules of their own.
[[nodiscard]] Schedule split_backward(Schedule schedule);

/// Makes the weight passes of every stage run in microbatch order (see `accumulates_weights`): a B
/// before its turn becomes an I, and its W, like a W before its turn, moves right behind the weight
/// pass of the microbatch before. A schedule that is in order already comes back unchanged, and so
/// does one that names stages, ranks or microbatches it does not have.
[[nodiscard]] Schedule with_weight_passes_in_order(Schedule schedule);

/// The names that `make_schedule` knows: gpipe, 1f1b, interleaved-1f1b.
[[nodiscard]] std::span<const std::string_view> schedule_names();

/// What a named schedule is to be made for.
struct ScheduleRequest {
  std::uint32_t rank_count = 1;
  std::uint32_t microbatch_count = 1;
  std::uint32_t chunk_count = 1;  ///< Virtual stages per rank; 1: as many as the schedule needs.
  bool split = false;             ///< Whether whole backward passes are split.
};

/// Makes the schedule called `name`.
/// @returns `invalid_config` with what to write instead: for an unknown name, a count of zero or
/// above
///          `ScheduleLimits`, chunks or microbatches that the schedule refuses.
[[nodiscard]] Expected<Schedule> make_schedule(std::string_view name,
                                               const ScheduleRequest& request);

}  // namespace troupe
