// troupe/engine/timeline.hpp -- what a simulated step was: passes, idle time by cause, memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <string_view>
#include <vector>

#include "troupe/engine/schedule.hpp"

namespace troupe {

/// A pass and the time in which it occupied its rank.
struct TimelineEntry {
  Action action;
  std::int64_t begin_ns = 0;
  std::int64_t end_ns = 0;

  friend bool operator==(const TimelineEntry&, const TimelineEntry&) = default;
};

/// A gradient bucket on its way around the replicas.
struct ReductionEntry {
  StageIndex stage;
  std::uint32_t bucket = 0;
  std::int64_t begin_ns = 0;
  std::int64_t end_ns = 0;

  friend bool operator==(const ReductionEntry&, const ReductionEntry&) = default;
};

/// The time of one rank.
struct RankTime {
  std::int64_t begin_ns = 0;      ///< Its first pass begins.
  std::int64_t end_ns = 0;        ///< Its last pass ends.
  std::int64_t passes_ns = 0;     ///< Spent in passes.
  std::int64_t optimizer_ns = 0;  ///< Spent behind the last pass.
  std::int64_t measuring_ns = 0;  ///< Spent between the two.
  std::int64_t optimizer_begin_ns = 0;

  [[nodiscard]] constexpr std::int64_t busy_ns() const noexcept {
    return passes_ns + optimizer_ns + measuring_ns;
  }
  friend bool operator==(const RankTime&, const RankTime&) = default;
};

/// Why a rank does nothing. At any moment the first of these that applies is the cause, so that
/// they add up to a rank's idle time without a remainder.
enum class IdleCause : std::uint8_t {
  warm_up,        ///< Its first pass has not begun.
  send,           ///< Its passes stand still until an output has left, where sending does not
                  ///< overlap; the next pass has its input and no free output buffer; or all passes
                  ///< are over, all reductions through, and an output has not left.
  imbalance,      ///< The pass that makes the next one's input is not over.
  communication,  ///< The next pass's input is made and not here.
  reduction,      ///< All passes are over, and not all of its reductions are through.
  drain,          ///< It has done what it can, and other ranks have not: until all have reported
                  ///< their norms if there is a director to wait for, and when its step is over.
  director,       ///< All ranks have reported, and the answer is not here.
  dispatch,       ///< Nothing keeps it but its runtime, which does not know yet.
};
inline constexpr std::size_t idle_cause_count = 8;

/// Returns the enumerator's spelling.
[[nodiscard]] std::string_view to_string(IdleCause cause) noexcept;

/// Idle nanoseconds of a rank by cause.
struct IdleTime {
  std::array<std::int64_t, idle_cause_count> ns{};

  [[nodiscard]] std::int64_t& operator[](IdleCause cause) noexcept {
    return ns[static_cast<std::size_t>(cause)];
  }
  [[nodiscard]] std::int64_t operator[](IdleCause cause) const noexcept {
    return ns[static_cast<std::size_t>(cause)];
  }
  [[nodiscard]] std::int64_t total_ns() const noexcept {
    return std::accumulate(ns.begin(), ns.end(), std::int64_t{0});
  }
  friend bool operator==(const IdleTime&, const IdleTime&) = default;
};

/// One simulated step. A list by rank holds the ranks of the first replica, then those of the
/// second, and so on.
struct Timeline {
  std::vector<std::vector<TimelineEntry>> ranks;  ///< By rank: its program, in order.
  std::vector<RankTime> rank_times;               ///< By rank.
  std::vector<std::uint32_t> in_flight_max;       ///< By stage: microbatches whose activations are
                                                  ///< held at once.
  std::int64_t makespan_ns = 0;                   ///< From 0 until every rank is done.
  std::vector<IdleTime> idle_times;               ///< By rank.
  std::vector<std::vector<ReductionEntry>> reductions;  ///< By rank of a pipeline: in order, the
                                                        ///< same for all replicas.

  /// How long `rank` does nothing between 0 and the end of the step.
  [[nodiscard]] std::int64_t idle_ns(RankIndex rank) const {
    return makespan_ns - rank_times[rank.value()].busy_ns();
  }
  [[nodiscard]] std::int64_t busy_ns() const noexcept;
  [[nodiscard]] std::int64_t idle_ns() const noexcept;

  /// Idle time of all ranks by cause.
  [[nodiscard]] IdleTime idle_by_cause() const noexcept;

  /// Idle time as a share of all time, 0 to 1: the bubble rate of Qi et al. 2023.
  [[nodiscard]] double bubble_of_total() const noexcept;
  /// Idle time over busy time, 0 and more: the bubble fraction of Narayanan et al. 2021, for 1F1B
  /// (P - 1) / M.
  [[nodiscard]] double bubble_of_ideal() const noexcept;

  friend bool operator==(const Timeline&, const Timeline&) = default;
};

/// What a rank holds from `from_ns` until the next level.
struct MemoryLevel {
  std::int64_t from_ns = 0;
  std::int64_t bytes = 0;

  friend bool operator==(const MemoryLevel&, const MemoryLevel&) = default;
};

/// The activations that a rank holds over time, as a step function that begins with nothing at 0:
/// each microbatch from the beginning of its forward pass to the end of its backward or weight
/// pass, or of its forward pass in an evaluation step.
/// @param bytes by stage: of one microbatch. A list of one value means that value everywhere.
[[nodiscard]] std::vector<MemoryLevel> memory_over_time(std::span<const TimelineEntry> rank,
                                                        StepKind kind,
                                                        const std::vector<std::int64_t>& bytes);

/// By rank of a pipeline: the most that `memory_over_time` reaches. A rank runs one pass at a time,
/// so it does not depend on what passes cost.
[[nodiscard]] std::vector<std::int64_t> memory_max(const Schedule& schedule,
                                                   const std::vector<std::int64_t>& bytes);

}  // namespace troupe
