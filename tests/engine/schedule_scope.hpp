// tests/engine/schedule_scope.hpp -- the small scope in which schedule bugs show themselves.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/engine/schedule_generators.hpp"
#include "troupe/engine/simulate.hpp"

#include "../scope.hpp"

namespace troupe {

inline constexpr std::uint32_t rank_count_max = scope(9U, 5U);
inline constexpr std::uint32_t microbatch_count_max = scope(17U, 9U);

/// Calls `body(rank_count, microbatch_count)` for every pair.
template <class Body>
void for_every_extent(Body body) {
  for (std::uint32_t p = 1; p <= rank_count_max; ++p) {
    for (std::uint32_t m = 1; m <= microbatch_count_max; ++m) {
      SCOPED_TRACE(testing::Message() << "ranks=" << p << " microbatches=" << m);
      body(p, m);
    }
  }
}

/// Not braces where they are needed: g++ 12 breaks on them within a template.
inline ScheduleRequest request_for(std::uint32_t p, std::uint32_t m, std::uint32_t chunks,
                                   bool split) {
  return {p, m, chunks, split};
}

/// Calls `body(schedule)` for every named schedule of `p` ranks and `m` microbatches with one to
/// three chunks per rank, and once more for those whose backward passes are split on request. Those
/// that are searched for, which takes too long for every scope, only if wanted.
template <class Body>
void for_every_schedule_of(std::uint32_t p, std::uint32_t m, Body body,
                           bool with_searched = false) {
  for (const auto& name : schedule_names()) {
    if (is_searched(name) && !with_searched) continue;
    for (std::uint32_t chunks = 1; chunks <= 3; ++chunks) {
      for (const bool split : {false, true}) {
        const auto schedule = make_schedule(name, request_for(p, m, chunks, split));
        if (!schedule || schedule->stage_count() != p * chunks) continue;
        if (schedule->name.ends_with("split") != split) continue;
        SCOPED_TRACE(testing::Message() << name << " chunks=" << chunks << " split=" << split);
        body(*schedule);
      }
    }
  }
}

/// The same for every extent.
template <class Body>
void for_every_schedule(Body body) {
  for_every_extent([&](std::uint32_t p, std::uint32_t m) { for_every_schedule_of(p, m, body); });
}

/// An evaluation step of `microbatch_count` over the stages of `rank_of_stage`.
inline Schedule make_forward_only_on(std::vector<RankIndex> rank_of_stage,
                                     std::uint32_t microbatch_count) {
  const auto rank_count = std::ranges::max(rank_of_stage).value() + 1;
  return make_forward_only({.name = "stages",
                            .microbatch_count = microbatch_count,
                            .rank_of_stage = std::move(rank_of_stage),
                            .ranks = std::vector<std::vector<Action>>(rank_count)});
}

/// The most microbatches in flight on a whole rank, until their activations are no longer needed;
/// one that is on several of its stages counts on each.
inline std::uint32_t in_flight_max_of_rank(const std::vector<Action>& row) {
  std::int64_t now = 0;
  std::int64_t max = 0;
  for (const auto& action : row) {
    if (action.pass == Pass::forward) max = std::max(max, ++now);
    if (accumulates_weights(action.pass)) --now;
  }
  return static_cast<std::uint32_t>(max);
}

/// How long the rank is idle that is idle longest between its first pass and its last: the bubble
/// where no rank waits for all others at the end of a step.
inline std::int64_t idle_within_ranks_ns(const Timeline& timeline) {
  std::int64_t longest_ns = 0;
  for (const auto& time : timeline.rank_times) {
    longest_ns = std::max(longest_ns, time.end_ns - time.begin_ns - time.passes_ns);
  }
  return longest_ns;
}

/// The row's actions with single spaces between them.
inline std::string text_of(const std::vector<Action>& row) {
  std::string text;
  for (const auto& action : row) text += (text.empty() ? "" : " ") + to_string(action);
  return text;
}

}  // namespace troupe
