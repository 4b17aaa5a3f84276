#include "comparison_report.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <numeric>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "counted.hpp"
#include "step_pictures.hpp"

namespace troupe::cli {

namespace {

using Json = nlohmann::ordered_json;
using Times = std::array<std::int64_t, time_cause_count>;

std::int64_t total_ns(const Times& times) {
  return std::accumulate(times.begin(), times.end(), std::int64_t{0});
}

double milliseconds(std::int64_t time_ns) {
  return static_cast<double>(time_ns) / 1e6;
}

/// 4.1 for a measured time 4.1 % longer than the simulated one.
double excess_percent(std::int64_t measured_ns, std::int64_t simulated_ns) {
  if (simulated_ns == 0) return 0.0;
  return 100.0 * static_cast<double>(measured_ns - simulated_ns)
         / static_cast<double>(simulated_ns);
}

/// Calls actors as the grid of a comparison needs it.
class ActorNames {
public:
  explicit ActorNames(const StepComparison& comparison) {
    for (const auto& rank : comparison.ranks) {
      replica_count_ = std::max(replica_count_, rank.where.replica + 1);
    }
  }
  [[nodiscard]] std::string operator()(const Coordinate& where) const {
    return actor_name(where, replica_count_);
  }

private:
  std::uint32_t replica_count_ = 1;
};

// -- words ----------------------------------------------------------------------------------------

/// "in handing gradients over to rank 1, most of all before 1B3".
std::string in_words(const Delay& delay, const ActorNames& names) {
  const auto [place, before_pass] = [&]() -> std::pair<const char*, const char*> {
    switch (delay.cause) {
      case TimeCause::computing:
        return {"in passes on", ""};
      case TimeCause::dispatch:
        return {"between passes (dispatch, sends) on", "before "};
      case TimeCause::activation:
        return {"in handing activations over to", "before "};
      case TimeCause::gradient:
        return {"in handing gradients over to", "before "};
      case TimeCause::send:
        return {"waiting for sends on", ""};
      case TimeCause::reduction:
        return {"in the reduction of gradients on", ""};
      case TimeCause::measuring:
        return {"in measuring gradients on", ""};
      case TimeCause::director:
        return {"waiting for the director on", ""};
      case TimeCause::optimizer:
        return {"in the optimizer on", ""};
      case TimeCause::next_step:
        return {"waiting for the step on", ""};
      case TimeCause::shards:
        return {"waiting for other shards on", ""};
    }
    return {};
  }();
  auto text = fmt::format("{} {}", place, names(delay.where));
  if (delay.longest) {
    text += fmt::format(", most of all {}{}", before_pass, troupe::to_string(*delay.longest));
  }
  return text;
}

/// The delay that explains `late_ns` best: the largest in its direction.
const Delay* main_delay(const std::vector<Delay>& delays, std::int64_t late_ns) {
  if (delays.empty()) return nullptr;
  return late_ns >= 0 ? &delays.front() : &delays.back();
}

std::string cause_of(const ComparedPass& pass, const ActorNames& names) {
  const auto* delay = main_delay(pass.delays, pass.late_ns());
  if (delay == nullptr) return "as simulated";
  std::string text;
  if (pass.input_from) {
    text = fmt::format("its input came {} from {}: ", pass.late_ns() >= 0 ? "late" : "early",
                       names(*pass.input_from));
  }
  return text
         + fmt::format("{:+.3f} ms {}", milliseconds(delay->excess_ns), in_words(*delay, names));
}

// -- tables ---------------------------------------------------------------------------------------

/// Rows of cells in columns as wide as need be.
class Table {
public:
  /// @param align a letter per column: l for the left, r for the right.
  Table(std::string_view align, std::vector<std::string> head)
      : align_{align}, rows_{std::move(head)} {}
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }

  [[nodiscard]] std::string to_string() const {
    std::vector<std::size_t> widths(align_.size());
    for (const auto& row : rows_) {
      for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
    }
    std::string text;
    for (const auto& row : rows_) {
      std::string line;
      for (std::size_t i = 0; i < row.size(); ++i) {
        line += align_[i] == 'l' ? fmt::format("{:<{}}  ", row[i], widths[i])
                                 : fmt::format("{:>{}}  ", row[i], widths[i]);
      }
      line.erase(line.find_last_not_of(' ') + 1);
      text += line + "\n";
    }
    return text;
  }

private:
  std::string align_;
  std::vector<std::vector<std::string>> rows_;
};

std::string table_of_ranks(const StepComparison& comparison, const ActorNames& names) {
  Table table{"lrrr", {"", "measured", "simulated", "difference"}};
  const auto add = [&](std::string name, std::int64_t measured_ns, std::int64_t simulated_ns) {
    table.add({std::move(name), fmt::format("{:.3f} ms", milliseconds(measured_ns)),
               fmt::format("{:.3f} ms", milliseconds(simulated_ns)),
               fmt::format("{:+.1f} %", excess_percent(measured_ns, simulated_ns))});
  };
  add("step", comparison.measured_ns, comparison.simulated_ns);
  for (const auto& rank : comparison.ranks) {
    add(names(rank.where), total_ns(rank.measured_ns), total_ns(rank.simulated_ns));
  }
  return table.to_string();
}

std::string table_of_causes(const StepComparison& comparison, const ActorNames& names) {
  std::vector<std::size_t> shown;
  for (std::size_t cause = 0; cause < time_cause_count; ++cause) {
    const auto occurs = [cause](const ComparedRank& rank) {
      return rank.measured_ns[cause] + rank.simulated_ns[cause] > 0;
    };
    if (std::ranges::any_of(comparison.ranks, occurs)) shown.push_back(cause);
  }
  std::vector<std::string> head{""};
  for (const auto cause : shown) {
    head.emplace_back(troupe::to_string(static_cast<TimeCause>(cause)));
  }
  Table table{"l" + std::string(shown.size(), 'r'), std::move(head)};
  for (const auto& rank : comparison.ranks) {
    std::vector<std::string> row{names(rank.where)};
    for (const auto cause : shown) {
      row.push_back(fmt::format("{:.3f} ({:.3f})", milliseconds(rank.measured_ns[cause]),
                                milliseconds(rank.simulated_ns[cause])));
    }
    table.add(std::move(row));
  }
  return table.to_string();
}

std::string table_of_passes(const StepComparison& comparison, const ActorNames& names) {
  Table table{"llrrrl", {"pass", "", "began", "took", "late by", "because of"}};
  for (const auto& pass : comparison.passes) {
    const auto& [action, begin_ns, end_ns] = pass.measured;
    const auto& planned = pass.simulated;
    table.add(
        {troupe::to_string(action), names(pass.where),
         fmt::format("{:.3f} ({:.3f})", milliseconds(begin_ns), milliseconds(planned.begin_ns)),
         fmt::format("{:.3f} ({:.3f})", milliseconds(end_ns - begin_ns),
                     milliseconds(planned.end_ns - planned.begin_ns)),
         fmt::format("{:+.3f}", milliseconds(pass.late_ns())), cause_of(pass, names)});
  }
  return table.to_string();
}

// -- JSON -----------------------------------------------------------------------------------------

Json to_json(const Delay& delay, const ActorNames& names) {
  Json json{{"replica", delay.where.replica},
            {"rank", delay.where.pipeline.value()},
            {"cause", troupe::to_string(delay.cause)},
            {"excess_ns", delay.excess_ns}};
  if (delay.longest) {
    json["longest"] = troupe::to_string(*delay.longest);
    json["longest_ns"] = delay.longest_ns;
  }
  json["words"] = in_words(delay, names);
  return json;
}

Json to_json(const std::vector<Delay>& delays, const ActorNames& names) {
  auto json = Json::array();
  for (const auto& delay : delays) json.push_back(to_json(delay, names));
  return json;
}

Json to_json(const ComparedRank& rank) {
  auto causes = Json::object();
  for (std::size_t cause = 0; cause < time_cause_count; ++cause) {
    causes[std::string{troupe::to_string(static_cast<TimeCause>(cause))}] = {
        {"measured_ns", rank.measured_ns[cause]}, {"simulated_ns", rank.simulated_ns[cause]}};
  }
  return {{"replica", rank.where.replica},
          {"rank", rank.where.pipeline.value()},
          {"measured_ns", total_ns(rank.measured_ns)},
          {"simulated_ns", total_ns(rank.simulated_ns)},
          {"causes", std::move(causes)}};
}

Json to_json(const ComparedPass& pass, const ActorNames& names) {
  const auto times = [](const TimelineEntry& entry) {
    return Json{{"begin_ns", entry.begin_ns}, {"duration_ns", entry.end_ns - entry.begin_ns}};
  };
  return {{"replica", pass.where.replica},
          {"rank", pass.where.pipeline.value()},
          {"pass", troupe::to_string(pass.measured.action)},
          {"measured", times(pass.measured)},
          {"simulated", times(pass.simulated)},
          {"late_ns", pass.late_ns()},
          {"input_from", pass.input_from ? Json(pass.input_from->pipeline.value()) : Json()},
          {"cause", cause_of(pass, names)},
          {"delays", to_json(pass.delays, names)}};
}

}  // namespace

std::string verdict_of(const StepComparison& comparison) {
  const auto excess_ns = comparison.measured_ns - comparison.simulated_ns;
  const auto percent = std::abs(excess_percent(comparison.measured_ns, comparison.simulated_ns));
  const auto* delay = main_delay(comparison.delays, excess_ns);
  if (delay == nullptr || excess_ns == 0) return "the step took as long as simulated";
  const auto part_ns = std::abs(delay->excess_ns);
  const bool is_most = 2 * part_ns >= std::abs(excess_ns) && part_ns <= std::abs(excess_ns);
  return fmt::format("the step took {:.1f} % {} than simulated; {}, {:.3f} ms, {}", percent,
                     excess_ns > 0 ? "longer" : "less time",
                     is_most ? "most of it" : "the largest part", milliseconds(part_ns),
                     in_words(*delay, ActorNames{comparison}));
}

std::string to_report(const ComparisonSubject& subject, const StepComparison& comparison) {
  const auto& schedule = subject.recorded.schedule;
  const ActorNames names{comparison};
  auto text = fmt::format("{}: step {} of {}, {}, {}; simulated with {}\n\n", subject.run,
                          comparison.step, schedule.name, counted(schedule.stage_count(), "stage"),
                          counted(schedule.microbatch_count, "microbatch"), subject.basis);
  text += table_of_ranks(comparison, names);
  text += "\ntime by cause in ms, measured (simulated)\n";
  text += table_of_causes(comparison, names);
  if (!comparison.passes.empty()) {
    text += "\npasses furthest from the simulation, in ms, measured (simulated)\n";
    text += table_of_passes(comparison, names);
  }
  return text + "\n" + verdict_of(comparison) + "\n";
}

std::string to_json(const ComparisonSubject& subject, const StepComparison& comparison) {
  const ActorNames names{comparison};
  auto ranks = Json::array();
  for (const auto& rank : comparison.ranks) ranks.push_back(to_json(rank));
  auto passes = Json::array();
  for (const auto& pass : comparison.passes) passes.push_back(to_json(pass, names));
  const Json json{{"run", subject.run},
                  {"schedule", subject.recorded.schedule.name},
                  {"simulated_with", subject.basis},
                  {"step", comparison.step},
                  {"measured_ns", comparison.measured_ns},
                  {"simulated_ns", comparison.simulated_ns},
                  {"verdict", verdict_of(comparison)},
                  {"ranks", std::move(ranks)},
                  {"delays", to_json(comparison.delays, names)},
                  {"passes", std::move(passes)}};
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace troupe::cli
