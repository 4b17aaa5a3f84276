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
#include "troupe/engine/simulate.hpp"

namespace troupe {

/// GPipe (Huang et al. 2019): all forward passes, then all backward passes. One stage per rank,
/// every microbatch in flight. Counts at least 1.
[[nodiscard]] Schedule make_gpipe(std::uint32_t rank_count, std::uint32_t microbatch_count);

/// 1F1B (Narayanan et al. 2021, figure 4, top): as few forward passes as the pipeline needs to
/// fill, then one forward and one backward pass in turn. One stage per rank, at most P - r
/// microbatches in flight on rank r. Counts at least 1.
[[nodiscard]] Schedule make_1f1b(std::uint32_t rank_count, std::uint32_t microbatch_count);

/// Eager 1F1B (Zhuang et al. 2022, "On Optimizing the Communication of Model Parallelism"): 1F1B
/// with one more forward pass ahead for every rank behind, so that a transfer has the time of a
/// pass in which to arrive. One stage per rank, at most 2 (P - r) - 1 microbatches in flight on
/// rank r; with links that take no time, a rank is idle for (P - 1)(F + B) as under 1F1B.
/// @param memory_limit the most microbatches in flight on the first rank, with one less on every
///                     rank behind; 0: as many as above. With P it is 1F1B, with less slower.
[[nodiscard]] Schedule make_eager_1f1b(std::uint32_t rank_count, std::uint32_t microbatch_count,
                                       std::uint32_t memory_limit);

/// Interleaved 1F1B (Narayanan et al. 2021, figure 4, bottom): `chunk_count` stages per rank,
/// looped, so that the bubble shrinks by that factor. A group of microbatches passes through one
/// chunk of a rank after the other, then the next group does.
///
/// In the paper a group is as many microbatches as there are ranks, P. Here any number of
/// microbatches M makes max(1, floor(M / P)) groups as equal as can be, larger ones first: of P
/// where P divides M, like PyTorch's wherever that takes M, and one of M where there are fewer
/// microbatches than ranks. A rank is idle for (P - 1)(F + B) if M >= P, with F and B the passes of
/// one of its chunks.
///
/// Rank r has at most (v - 1) G + 2 (P - 1 - r) + 1 microbatches in flight on its v chunks
/// together, G being the largest group, and never more than v M. With equal groups, chunk c of it
/// holds at most G floor(n / (v G)) + min(n mod v G, G), where n = 2 G (v - 1 - c) + 2 (P - 1 - r)
/// + 1. So with groups of P the first half of the stages holds P to 2 P, the second half at most P,
/// and the last stage one.
/// @returns `invalid_config` unless there are at least 2 chunks.
[[nodiscard]] Expected<Schedule> make_interleaved_1f1b(std::uint32_t rank_count,
                                                       std::uint32_t microbatch_count,
                                                       std::uint32_t chunk_count);

/// Looped breadth-first (Lamy-Poirier 2022, "Breadth-First Pipeline Parallelism"): all
/// microbatches through one chunk of a rank after the other, forward, and then backward through the
/// chunks in reverse. Every microbatch is in flight on every stage, as under GPipe, but a chunk's
/// gradients are complete when the next chunk's backward passes begin. A rank is idle for
/// (P - 1)(F + B) if there are at least P microbatches, with F and B the passes of one of its
/// chunks.
/// @returns `invalid_config` unless there are at least 2 chunks.
[[nodiscard]] Expected<Schedule> make_looped_bfs(std::uint32_t rank_count,
                                                 std::uint32_t microbatch_count,
                                                 std::uint32_t chunk_count);

/// ZB-H1 (Qi et al. 2023, "Zero Bubble Pipeline Parallelism", figure 3, top): 1F1B with backward
/// passes split, and each W put off as long as the memory of 1F1B's first rank, P microbatches,
/// allows on every rank. One stage per rank; a rank is idle for (P - 1)(F + I - W) if W is no
/// longer than F or I and M >= P: a third of what it is under 1F1B if all take equally long, of the
/// whole time (P - 1) / (3 M + P - 1).
[[nodiscard]] Schedule make_zb_h1(std::uint32_t rank_count, std::uint32_t microbatch_count);

/// ZB-H2 (the same, figure 3, bottom): enough forward passes ahead that no rank waits from its
/// first pass to its last, if W is as long as F and I, and M >= 2 P - 1. One stage per rank, on
/// each at most 2 P - 1 microbatches in flight. With a shorter W a rank is idle for (P - 1)(F + I -
/// 2 W). Ranks begin and end one after the other, so there is no bubble between steps if no rank
/// waits for all others before its optimizer step; otherwise the step takes P - 1 forward passes
/// longer.
[[nodiscard]] Schedule make_zb_h2(std::uint32_t rank_count, std::uint32_t microbatch_count);

/// ZB-V (the same paper): ZB-H2's bubble in the memory of 1F1B, because each rank holds two stages
/// of half the size, in a V: the first and the last stage are on the first rank. At most P
/// microbatches in flight on a rank, each stage counting half. No rank waits from its first pass to
/// its last if F, I and W take equally long and M >= 2 P - 1.
[[nodiscard]] Schedule make_zb_v(std::uint32_t rank_count, std::uint32_t microbatch_count);

/// V-Half (Qi et al. 2024, "Pipeline Parallelism with Controllable Memory", figure 4): about half
/// the memory of 1F1B, floor((P + 2) / 2) microbatches in flight on every rank, each of its two
/// stages counting half. Stages are in a V. The steady part repeats the paper's building block;
/// beginning and end are squeezed as far as that memory allows, for passes that take equally long,
/// u: then no rank waits longer than (3 P - 7) u from its first pass to its last with an even
/// number of ranks from 4 on, (3 P - 4) u with an odd one from 3 on, however many microbatches
/// there are from P on.
[[nodiscard]] Schedule make_v_half(std::uint32_t rank_count, std::uint32_t microbatch_count);

/// V-Min (the same): about a third of the memory of 1F1B, floor((P + 4) / 3) microbatches on every
/// rank; no rank waits longer than (4 P - 5) u, and (4 P - 7) u if P is a multiple of three.
[[nodiscard]] Schedule make_v_min(std::uint32_t rank_count, std::uint32_t microbatch_count);

/// DualPipe (DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", section 3.2.1, figure 5): two copies
/// of the model, the stages of one down the ranks and of the other up, and half of the microbatches
/// for each, so that in the middle of the step every rank has a forward pass of one direction
/// beside a backward pass of the other and may overlap them. At most P + 1 microbatches in flight
/// on a rank.
///
/// The report counts such a pair as one piece of work, FB, whose results go on at its end: then no
/// rank waits longer than (P / 2 - 1)(FB + B - 3 W). Here the two run one after the other and each
/// result goes on at once: if F, I and W take equally long, u, it is (P / 2 - 1) u instead of
/// (P - 2) u, from a rank's first pass to its last. Both need M >= 2 P; with fewer, the pattern is
/// that of 2 P without the microbatches that are missing.
/// @returns `invalid_config` unless ranks and microbatches are even; says what is near by.
[[nodiscard]] Expected<Schedule> make_dualpipe(std::uint32_t rank_count,
                                               std::uint32_t microbatch_count);

/// DualPipeV (Sea AI Lab 2025, "DualPipe could be better without the Dual"; in DeepSeek's DualPipe
/// repository): one half of DualPipe, folded into a V of two stages per rank, with one copy of the
/// model. At most 2 P + 1 half microbatches in flight on a rank. Idle like DualPipe with P in the
/// place of P / 2, its passes being half as long; M >= 2 P for that.
[[nodiscard]] Schedule make_dualpipev(std::uint32_t rank_count, std::uint32_t microbatch_count);

/// An evaluation step over the stages and microbatches of `training`: forward passes only, a group
/// of as many microbatches of each copy as there are ranks stage by stage, then the next group.
[[nodiscard]] Schedule make_forward_only(const Schedule& training);

/// Splits every B of `schedule` into I, in the place of the B, and W right behind it. Gradients go
/// on earlier, and whatever the passes and the links cost, no rank ends later: each I ends before
/// the B would have, each W with it. No stage holds more microbatches than before.
///
/// Does not put a W off to fill a bubble; the zero-bubble schedules do. A schedule without a B
/// comes back unchanged, any other with "-split" behind its name.
[[nodiscard]] Schedule split_backward(Schedule schedule);

/// Makes the weight passes of every stage run in microbatch order (see `accumulates_weights`): a B
/// before its turn becomes an I, and its W, like a W before its turn, moves right behind the weight
/// pass of the microbatch before. A schedule that is in order already comes back unchanged, and so
/// does one that names stages, ranks or microbatches it does not have.
[[nodiscard]] Schedule with_weight_passes_in_order(Schedule schedule);

/// The names that `make_schedule` knows: gpipe, 1f1b, eager-1f1b, interleaved-1f1b, looped-bfs,
/// zb-h1, zb-h2, zb-v, v-half, v-min, dualpipe, dualpipev, zb-1p, zb-2p, auto.
[[nodiscard]] std::span<const std::string_view> schedule_names();

/// Whether the schedule called `name` is searched for the costs of its request.
[[nodiscard]] bool is_searched(std::string_view name);

/// What a named schedule is to be made for.
struct ScheduleRequest {
  std::uint32_t rank_count = 1;
  std::uint32_t microbatch_count = 1;
  std::uint32_t chunk_count = 1;  ///< Virtual stages per rank; 1: as many as the schedule needs.
  bool split = false;             ///< Whether whole backward passes are split.
  /// The most microbatches in flight on any rank; 0: as many as the schedule says. Only schedules
  /// that trade memory for time take one.
  std::uint32_t memory_limit = 0;
  CostModel costs{};  ///< For schedules that are searched for; units unless given.
};

/// Makes the schedule called `name`.
/// @returns `invalid_config` with what to write instead: for an unknown name, a count of zero or
/// above
///          `ScheduleLimits`, chunks, microbatches or a memory limit that the schedule refuses.
[[nodiscard]] Expected<Schedule> make_schedule(std::string_view name,
                                               const ScheduleRequest& request);

}  // namespace troupe
