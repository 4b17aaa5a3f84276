#include "troupe/engine/counterexample.hpp"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "instruction_walk.hpp"
#include "rejection.hpp"

namespace troupe {

namespace {

using Rows = std::vector<std::vector<Instruction>>;

/// Lets the ranks go on until they stop by themselves, if that is where `stops` are, or are
/// stopped.
InstructionWalk walk_to(const std::vector<Stop>& stops, const Rows& rows, const Schedule& passes,
                        Handover handover) {
  auto walked = walk(rows, passes, handover, {});
  const bool stop_there = std::ranges::all_of(
      stops, [&](const Stop& stop) { return walked.stopped[stop.rank] == stop.at; });
  return stop_there ? walked : walk(rows, passes, handover, stops);
}

/// Draws the walk of a schedule up to what rejects it.
class CounterexampleDrawing {
public:
  CounterexampleDrawing(const Rows& rows, const Schedule& passes, Handover handover,
                        const Rejection& rejection)
      : rows_{rows},
        walked_{walk_to(rejection.stops, rows, passes, handover)},
        chunk_of_stage_(passes.stage_count()) {
    std::vector<std::uint32_t> chunk_count(passes.rank_count(), 0);
    for (std::uint32_t s = 0; s < passes.stage_count(); ++s) {
      chunk_of_stage_[s] = chunk_count[passes.rank_of_stage[s].value()]++;
    }
    const auto& rule = rejection.error.context;
    picture_.title = passes.name;
    picture_.note = "breaks the rule of " + rule.substr(0, rule.find(':'));
    for (std::uint32_t r = 0; r < rows.size(); ++r) {
      picture_.lanes.push_back({.label = name_of(r), .boxes = {}});
      for (std::size_t at = 0; at < walked_.stopped[r]; ++at) {
        add(picture_.lanes[r].boxes, rows[r][at], walked_.begins[r][at]);
      }
    }
    add_stopped(rejection.stops);
  }

  Picture take() && { return std::move(picture_); }

private:
  void add(std::vector<Box>& boxes, const Instruction& instruction, std::int64_t begin_ns) const {
    for (const auto& action : passes_of(instruction)) {
      const auto text = to_string(action);
      boxes.push_back({to_box_kind(action.pass), begin_ns, begin_ns + 1,
                       chunk_of_stage_[action.stage.value()], text, text});
      ++begin_ns;
    }
    if (!passes_of(instruction).empty()) return;
    const auto text = to_string(instruction);
    boxes.push_back({BoxKind::communication, begin_ns, begin_ns + 1, 0, text, text});
  }

  [[nodiscard]] std::int64_t end_ns_of(std::uint32_t rank) const {
    const auto& boxes = picture_.lanes[rank].boxes;
    return boxes.empty() ? 0 : boxes.back().end_ns;
  }

  /// Lets the stopped ranks wait, also the last one of them for long enough to say for what.
  void add_stopped(const std::vector<Stop>& stops) {
    constexpr std::int64_t shown_ns = 5;
    std::int64_t end_ns = 0;
    for (std::uint32_t r = 0; r < rows_.size(); ++r) {
      end_ns = std::max(end_ns, end_ns_of(r) + shown_ns);
    }
    for (std::uint32_t r = 0; r < rows_.size(); ++r) {
      const auto stop = std::ranges::find(stops, r, &Stop::rank);
      const bool offends = stop != stops.end();
      if (!offends && walked_.stopped[r] == rows_[r].size()) continue;
      const auto text = offends ? text_of(*stop) : text_of_wait(r);
      picture_.lanes[r].boxes.push_back(
          {offends ? BoxKind::rejected : BoxKind::waiting, end_ns_of(r), end_ns, 0, text, text});
    }
  }

  /// For example `>0B0< waits for 1B0`, or `0B0 waits for 1B0, before >0F1<`.
  [[nodiscard]] std::string text_of(const Stop& stop) const {
    const auto& row = rows_[stop.rank];
    const auto mark = '>' + (stop.at < row.size() ? to_string(row[stop.at]) : "end") + '<';
    const bool is_reached = walked_.stopped[stop.rank] == stop.at;
    return is_reached ? mark + awaited_by(stop.rank) : text_of_wait(stop.rank) + ", before " + mark;
  }
  [[nodiscard]] std::string text_of_wait(std::uint32_t rank) const {
    return to_string(rows_[rank][walked_.stopped[rank]]) + awaited_by(rank);
  }
  [[nodiscard]] std::string awaited_by(std::uint32_t rank) const {
    const auto& awaited = walked_.awaited[rank];
    return awaited ? " waits for " + to_string(awaited->instruction) : "";
  }

  const Rows& rows_;
  const InstructionWalk walked_;
  std::vector<std::uint32_t> chunk_of_stage_;
  Picture picture_;
};

std::optional<Picture> draw(const Rows& rows, const Schedule& passes, Handover handover,
                            const Verdict& verdict) {
  if (!verdict || verdict->stops.empty()) return std::nullopt;
  return CounterexampleDrawing{rows, passes, handover, *verdict}.take();
}

Rows rows_of(const Schedule& schedule) {
  Rows rows;
  for (const auto& row : schedule.ranks) rows.emplace_back(row.begin(), row.end());
  return rows;
}

}  // namespace

std::optional<Picture> make_counterexample(const Schedule& schedule) {
  return draw(rows_of(schedule), schedule, Handover::direct,
              find_rejection(schedule, WeightOrder::by_microbatch));
}

std::optional<Picture> make_counterexample(const CommunicationSchedule& schedule,
                                           Matching matching) {
  const auto passes = without_communication(schedule);
  if (const auto verdict = find_rejection(passes, WeightOrder::any)) {
    return draw(rows_of(passes), passes, Handover::direct, verdict);
  }
  return draw(schedule.ranks, passes, handover_of(matching),
              find_rejection(schedule, passes, matching));
}

}  // namespace troupe
