// engine/src/rejection.hpp -- which rule a schedule breaks, and where.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "troupe/engine/communication_validation.hpp"
#include "troupe/engine/error.hpp"

namespace troupe {

/// In front of which of its actions or instructions a rank stops; one past the end for something
/// missing.
struct Stop {
  std::uint32_t rank;
  std::size_t at;
};

struct Rejection {
  Error error;
  std::vector<Stop> stops;  ///< The offending actions, several in a circle of ranks. Empty if the
                            ///< schedule is too broken to be walked.
};

/// The rule that is broken, or nothing.
using Verdict = std::optional<Rejection>;

enum class WeightOrder : std::uint8_t { by_microbatch, any };

/// What `validate` of a schedule is made of.
[[nodiscard]] Verdict find_rejection(const Schedule& schedule, WeightOrder weight_order);

/// The same for the rules of communication, when `passes`, which is `schedule` without it, is
/// valid.
[[nodiscard]] Verdict find_rejection(const CommunicationSchedule& schedule, const Schedule& passes,
                                     Matching matching);

inline std::string name_of(std::uint32_t rank) {
  return "rank " + std::to_string(rank);
}

inline std::string to_range(std::uint32_t count) {
  return count == 1 ? "only 0 exists" : "they are 0 to " + std::to_string(count - 1);
}

/// An action or instruction in its place.
template <class AnySchedule>
struct Place {
  const AnySchedule& schedule;
  std::uint32_t rank;
  std::size_t at;  ///< One past the end for something missing.

  [[nodiscard]] const auto& row() const { return schedule.ranks[rank]; }
  [[nodiscard]] const auto& action() const { return row()[at]; }
};

/// A part of the row, for example `[... 1F0 1B0 >1B1< 1F1 ...]`.
template <class AnySchedule>
std::string excerpt(const Place<AnySchedule>& place) {
  constexpr std::size_t cells_around = 4;  // Shown before and behind the offending action.
  const auto& row = place.row();
  const auto begin = place.at - std::min(place.at, cells_around);
  const auto end = std::min(row.size(), place.at + cells_around + 1);
  std::string text = begin > 0 ? "[..." : "[";
  for (auto i = begin; i < end; ++i) {
    if (text.size() > 1) text += ' ';
    text += i == place.at ? '>' + to_string(row[i]) + '<' : to_string(row[i]);
  }
  return text + (end < row.size() ? " ...]" : "]");
}

/// A rejection of a schedule that cannot be walked.
inline Rejection broken(std::string rule, const std::string& what) {
  return {{Errc::invalid_schedule, std::move(rule += ": ") + what}, {}};
}

template <class AnySchedule>
Rejection broken_at(const char* rule, const Place<AnySchedule>& place, const std::string& what) {
  return broken(rule, name_of(place.rank) + " runs " + to_string(place.action()) + what + " "
                          + excerpt(place));
}

/// A rejection of one that can be walked up to `stops`.
inline Rejection stopped_at(std::vector<Stop> stops, Rejection rejection) {
  rejection.stops = std::move(stops);
  return rejection;
}

template <class AnySchedule>
Rejection stopped_at(const char* rule, const Place<AnySchedule>& place, const std::string& what) {
  return stopped_at({{place.rank, place.at}}, broken_at(rule, place, what));
}

/// Calls `check(place)` in the order of ranks and rows until one rejects.
template <class AnySchedule, class Check>
Verdict for_every_place(const AnySchedule& schedule, Check check) {
  for (std::uint32_t r = 0; r < schedule.ranks.size(); ++r) {
    for (std::size_t at = 0; at < schedule.ranks[r].size(); ++at) {
      if (Verdict verdict = check(Place<AnySchedule>{schedule, r, at})) return verdict;
    }
  }
  return std::nullopt;
}

/// Follows waiting ranks from `rank` to a circle, and says of each what `wait_of(rank)` says.
/// `blocker(rank)` is whom a stopped rank waits for.
template <class Blocker, class WaitOf>
Rejection deadlock(const std::vector<std::size_t>& stopped, std::uint32_t rank, Blocker blocker,
                   WaitOf wait_of) {
  constexpr std::size_t ranks_shown_max = 4;
  std::vector<bool> seen(stopped.size(), false);
  for (; !seen[rank]; rank = blocker(rank)) seen[rank] = true;
  const auto first = rank;
  std::string text;
  std::vector<Stop> circle;
  do {
    if (circle.size() < ranks_shown_max) text += (circle.empty() ? "" : "; ") + wait_of(rank);
    circle.push_back({rank, stopped[rank]});
    rank = blocker(rank);
  } while (rank != first);
  if (circle.size() > ranks_shown_max) {
    text += "; and so on around " + std::to_string(circle.size()) + " ranks";
  }
  return stopped_at(std::move(circle), broken("deadlock", text));
}

}  // namespace troupe
