#include "recorded_steps.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <optional>
#include <set>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "troupe/engine/grid.hpp"
#include "troupe/engine/measured_costs.hpp"
#include "troupe/engine/schedule_text.hpp"
#include "troupe/engine/schedule_validation.hpp"
#include "troupe/engine/time_account.hpp"

namespace troupe::cli {

namespace {

using actors::RankReport;
using actors::StepReport;
using actors::TraceEntry;
using Json = nlohmann::ordered_json;

constexpr std::int64_t time_max_ns = 1'000'000'000'000'000;  ///< Eleven days, either way.

/// Three years: whatever is made of the times of all ranks and steps is far from overflowing.
constexpr double sum_max_ns = 1e17;

TimeCause cause_at(std::size_t index) {
  return static_cast<TimeCause>(index);
}

// -- writing --------------------------------------------------------------------------------------

std::string line_of(const Json& json) {
  // A schedule may be named after a path, which may be any bytes.
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

Json to_json(const TimeAccount& account, std::int64_t zero_ns) {
  Json json{{"begin_ns", account.begin_ns - zero_ns}};
  for (std::size_t cause = 0; cause < time_cause_count; ++cause) {
    json[std::string{troupe::to_string(cause_at(cause))}] = account.ns[cause];
  }
  return json;
}

Json to_json(const RankReport& rank, std::int64_t zero_ns) {
  auto trace = Json::array();
  for (const auto& entry : rank.trace) {
    trace.push_back(
        Json::array({to_string(entry), entry.begin_ns - zero_ns, entry.end_ns - zero_ns}));
  }
  return {{"replica", rank.coordinate.replica},
          {"rank", rank.coordinate.pipeline.value()},
          {"account", to_json(rank.account, zero_ns)},
          {"trace", std::move(trace)}};
}

Json to_json(const StepReport& report) {
  auto ranks = Json::array();
  for (const auto& rank : report.ranks) ranks.push_back(to_json(rank, report.begin_ns));
  return {{"step", report.step},
          {"duration_ns", report.end_ns - report.begin_ns},
          {"ranks", std::move(ranks)}};
}

// -- reading --------------------------------------------------------------------------------------

/// Something in the file and where it stands. What is not there can be asked for, and refused.
class Found {
public:
  Found(std::string line, const Json* value, std::string path = {})
      : line_{std::move(line)}, path_{std::move(path)}, value_{value} {}

  [[nodiscard]] Found at(const char* key) const {
    const Json* member = nullptr;
    if (value_ != nullptr && value_->is_object()) {
      const auto found = value_->find(key);
      if (found != value_->end()) member = &*found;
    }
    return {line_, member, path_.empty() ? key : path_ + "." + key};
  }
  [[nodiscard]] Found at(std::size_t index) const {
    return {line_, &(*value_)[index], fmt::format("{}[{}]", path_, index)};
  }

  /// How many elements the array has; none for what is no array.
  [[nodiscard]] std::optional<std::size_t> array_size() const {
    if (value_ == nullptr || !value_->is_array()) return std::nullopt;
    return value_->size();
  }
  [[nodiscard]] std::optional<std::string> text() const {
    if (value_ == nullptr || !value_->is_string()) return std::nullopt;
    return value_->get<std::string>();
  }
  [[nodiscard]] Expected<std::int64_t> number(std::int64_t least, std::int64_t most) const {
    const auto refusal = [&] {
      return refused(fmt::format("a whole number from {} to {}", least, most));
    };
    if (value_ == nullptr || !value_->is_number_integer()) return refusal();
    // Beyond what an int64 holds is beyond every limit.
    if (value_->is_number_unsigned() && value_->get<std::uint64_t>() > INT64_MAX) return refusal();
    const auto number = value_->get<std::int64_t>();
    if (number < least || number > most) return refusal();
    return number;
  }

  [[nodiscard]] Error refused(const std::string& expected) const {
    return wrong(fmt::format("found {}, expected {}", shown(), expected));
  }
  [[nodiscard]] Error wrong(const std::string& what) const {
    return {Errc::invalid_file, line_ + ": " + (path_.empty() ? "" : path_ + ": ") + what};
  }

private:
  [[nodiscard]] std::string shown() const {
    constexpr std::size_t size_max = 40;
    if (value_ == nullptr) return "nothing";
    if (value_->is_structured()) return value_->is_array() ? "an array" : "an object";
    auto text = value_->dump(-1, ' ', true, Json::error_handler_t::replace);
    if (text.size() > size_max) text = text.substr(0, size_max) + "...";
    return text;
  }

  std::string line_;  ///< File and number.
  std::string path_;  ///< In the line, for example `ranks[1].trace[4]`; empty: all of it.
  const Json* value_;
};

/// Reads `2 reduce` and `2 optimize`.
std::optional<TraceEntry> parse_stage_work(const std::string& name, std::uint32_t stage_count) {
  std::uint32_t stage = 0;
  const auto* const end = name.data() + name.size();
  const auto [stopped, failure] = std::from_chars(name.data(), end, stage);
  if (failure != std::errc{} || stage >= stage_count) return std::nullopt;
  TraceEntry entry{.kind = TraceEntry::Kind::reduce, .action = {StageIndex{stage}, {}, {}}};
  if (to_string(entry) == name) return entry;
  entry.kind = TraceEntry::Kind::optimize;
  if (to_string(entry) == name) return entry;
  return std::nullopt;
}

class StepReader {
public:
  explicit StepReader(const Schedule& schedule) : schedule_{schedule} {}

  /// @param before the step before; none for the first.
  Expected<StepReport> read(const Found& found, const StepReport* before) const {
    const auto step =
        found.at("step").number(before == nullptr ? 1 : std::int64_t{before->step} + 1, UINT32_MAX);
    if (!step) return step.error();
    const auto duration_ns = found.at("duration_ns").number(1, time_max_ns);
    if (!duration_ns) return duration_ns.error();
    StepReport report{
        .step = static_cast<std::uint32_t>(*step), .end_ns = *duration_ns, .ranks = {}};
    const auto ranks = found.at("ranks");
    const auto count = ranks.array_size().value_or(0);
    const bool is_same_grid = before == nullptr || before->ranks.size() == count;
    if (count == 0 || count % schedule_.rank_count() != 0 || !is_same_grid) {
      return ranks.wrong(fmt::format(
          "found {} ranks, expected {}", count,
          before != nullptr
              ? fmt::format("{} as in the steps before", before->ranks.size())
              : fmt::format("the {} of the schedule for each replica", schedule_.rank_count())));
    }
    const GridExtent extent{.data = static_cast<std::uint32_t>(count / schedule_.rank_count()),
                            .pipeline = schedule_.rank_count()};
    for (std::uint32_t i = 0; i < count; ++i) {
      auto rank = read_rank(ranks.at(i), coordinate_of(extent, i));
      if (!rank) return rank.error();
      report.ranks.push_back(std::move(*rank));
    }
    for (std::uint32_t replica = 0; replica < extent.data; ++replica) {
      if (auto ran = check_order(report, replica); !ran) {
        return ranks.wrong(fmt::format("replica {} cannot have run in this order: {}", replica,
                                       ran.error().context));
      }
    }
    return report;
  }

private:
  Expected<RankReport> read_rank(const Found& found, const Coordinate& where) const {
    const auto replica = found.at("replica").number(where.replica, where.replica);
    if (!replica) return replica.error();
    const auto number = where.pipeline.value();
    const auto rank = found.at("rank").number(number, number);
    if (!rank) return rank.error();
    RankReport report{.coordinate = where, .account = {}, .trace = {}};
    const auto account = read_account(found.at("account"));
    if (!account) return account.error();
    report.account = *account;
    const auto trace = found.at("trace");
    const auto size = trace.array_size();
    if (!size) return trace.refused("an array of what the device did");
    for (std::size_t i = 0; i < *size; ++i) {
      const auto entry = read_entry(trace.at(i), where.pipeline);
      if (!entry) return entry.error();
      report.trace.push_back(*entry);
    }
    if (auto ran = check_passes(trace, report); !ran) return ran.error();
    return report;
  }

  static Expected<TimeAccount> read_account(const Found& found) {
    TimeAccount account;
    const auto begin_ns = found.at("begin_ns").number(-time_max_ns, time_max_ns);
    if (!begin_ns) return begin_ns.error();
    account.begin_ns = *begin_ns;
    for (std::size_t cause = 0; cause < time_cause_count; ++cause) {
      const std::string name{troupe::to_string(cause_at(cause))};
      const auto time_ns = found.at(name.c_str()).number(0, time_max_ns);
      if (!time_ns) return time_ns.error();
      account.ns[cause] = *time_ns;
    }
    account.end_ns = account.begin_ns + account.total_ns();
    return account;
  }

  Expected<TraceEntry> read_entry(const Found& found, RankIndex rank) const {
    if (found.array_size() != 3) return found.refused("an array of name, begin and end");
    const auto name = found.at(std::size_t{0});
    const auto text = name.text().value_or("");
    std::optional<TraceEntry> entry;
    if (const auto action = parse_action(text)) {
      if (action->stage.value() < schedule_.stage_count()) entry = TraceEntry{.action = *action};
    } else {
      entry = parse_stage_work(text, schedule_.stage_count());
    }
    if (!entry || schedule_.rank_of_stage[entry->action.stage.value()] != rank) {
      return name.refused(
          "a pass of one of the rank's stages, as in 2F0, or its sum or update, as "
          "in 2 reduce or 2 optimize");
    }
    const auto begin_ns = found.at(1).number(-time_max_ns, time_max_ns);
    if (!begin_ns) return begin_ns.error();
    const auto end_ns = found.at(2).number(*begin_ns, time_max_ns);
    if (!end_ns) return end_ns.error();
    entry->begin_ns = *begin_ns;
    entry->end_ns = *end_ns;
    return *entry;
  }

  /// The passes are those of the schedule, one after the other.
  Expected<Done> check_passes(const Found& trace, const RankReport& report) const {
    auto ran = passes_of(report);
    auto planned = schedule_.ranks[report.coordinate.pipeline.value()];
    std::ranges::sort(ran);
    std::ranges::sort(planned);
    const auto [extra, missing] = std::ranges::mismatch(ran, planned);
    if (missing != planned.end() && (extra == ran.end() || *missing < *extra)) {
      return trace.wrong("the schedule has " + troupe::to_string(*missing)
                         + " here, which is missing");
    }
    if (extra != ran.end()) {
      return trace.wrong(troupe::to_string(*extra) + " is once more than in the schedule");
    }
    const TraceEntry* before = nullptr;
    std::set<StageIndex> updated;
    for (const auto& entry : report.trace) {
      if (entry.kind == TraceEntry::Kind::optimize && !updated.insert(entry.action.stage).second) {
        return trace.wrong(to_string(entry) + " is there twice");
      }
      if (entry.kind != TraceEntry::Kind::pass) continue;
      if (before != nullptr && entry.begin_ns < before->end_ns) {
        return trace.wrong(fmt::format("{} begins at {}, before {} ends at {}", to_string(entry),
                                       entry.begin_ns, to_string(*before), before->end_ns));
      }
      before = &entry;
    }
    return Done{};
  }

  /// What each rank of the replica ran is a schedule: a policy may have chosen another order than
  /// the one that was listed, but not any order.
  Expected<Done> check_order(const StepReport& report, std::uint32_t replica) const {
    auto ran = schedule_;
    for (const auto& rank : report.ranks) {
      if (rank.coordinate.replica != replica) continue;
      ran.ranks[rank.coordinate.pipeline.value()] = passes_of(rank);
    }
    return validate(ran);
  }

  static std::vector<Action> passes_of(const RankReport& report) {
    std::vector<Action> passes;
    for (const auto& entry : report.trace) {
      if (entry.kind == TraceEntry::Kind::pass) passes.push_back(entry.action);
    }
    return passes;
  }

  const Schedule& schedule_;
};

/// By all ranks, as their accounts and as their traces have it.
double all_times_ns(const StepReport& report) {
  double sum_ns = 0.0;
  for (const auto& rank : report.ranks) {
    sum_ns += static_cast<double>(rank.account.total_ns());
    for (const auto& entry : rank.trace) {
      sum_ns += static_cast<double>(entry.end_ns - entry.begin_ns);
    }
  }
  return sum_ns;
}

Expected<Schedule> read_schedule_line(const Found& found) {
  const auto name = found.at("schedule").text();
  if (!name) return found.at("schedule").refused("the schedule's name");
  const auto csv = found.at("csv").text();
  if (!csv) return found.at("csv").refused("the schedule as CSV");
  auto schedule = from_csv(*csv, "csv");
  if (!schedule) return found.wrong(schedule.error().context);
  if (auto valid = validate(*schedule); !valid) return found.wrong(valid.error().context);
  if (schedule->kind != StepKind::training) {
    return found.at("csv").wrong("found no backward pass, expected a schedule that trains");
  }
  schedule->name = *name;
  return schedule;
}

Expected<Json> read_json(std::string_view line, const std::string& place) {
  try {
    return Json::parse(line);
  } catch (const nlohmann::json::parse_error& error) {
    return Error{Errc::invalid_file,
                 fmt::format("{}: found no JSON from byte {} on, expected a line as `troupe train` "
                             "writes it",
                             place, error.byte)};
  } catch (const nlohmann::json::out_of_range&) {
    return Error{
        Errc::invalid_file,
        place + ": found a number beyond all limits, expected whole numbers of nanoseconds"};
  }
}

}  // namespace

std::string to_string(const TraceEntry& entry) {
  switch (entry.kind) {
    case TraceEntry::Kind::pass:
      return troupe::to_string(entry.action);
    case TraceEntry::Kind::reduce:
      return fmt::format("{} reduce", entry.action.stage.value());
    case TraceEntry::Kind::optimize:
      return fmt::format("{} optimize", entry.action.stage.value());
  }
  return {};
}

std::string to_jsonl(const RecordedSteps& recorded) {
  auto text = line_of({{"schedule", recorded.schedule.name}, {"csv", to_csv(recorded.schedule)}});
  for (const auto& step : recorded.steps) text += line_of(to_json(step));
  return text;
}

CostModel measured_costs(const RecordedSteps& recorded) {
  MeasuredCosts costs{recorded.schedule.stage_count()};
  std::vector<std::int64_t> optimizer_ns(recorded.schedule.rank_count());
  for (const auto& step : recorded.steps) {
    for (const auto& rank : step.ranks) {
      for (const auto& entry : rank.trace) {
        const auto duration_ns = entry.end_ns - entry.begin_ns;
        if (entry.kind == TraceEntry::Kind::pass) costs.add(entry.action, duration_ns);
        if (entry.kind != TraceEntry::Kind::optimize) continue;
        optimizer_ns[rank.coordinate.pipeline.value()] += duration_ns;
      }
    }
  }
  const auto replicas = recorded.steps.front().ranks.size() / optimizer_ns.size();
  for (auto& time_ns : optimizer_ns) {
    time_ns /= static_cast<std::int64_t>(recorded.steps.size() * replicas);
  }
  auto model = costs.costs();
  model.optimizer_ns = std::move(optimizer_ns);
  return model;
}

Expected<RecordedSteps> parse_recorded_steps(std::string_view text, std::string_view source_name) {
  RecordedSteps recorded;
  double sum_ns = 0.0;
  std::size_t line_number = 0;
  for (; !text.empty(); ++line_number) {
    const auto line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(line.size() + 1, text.size()));
    const auto place = fmt::format("{}:{}", source_name, line_number + 1);
    const auto json = read_json(line, place);
    if (!json) return json.error();
    const Found found{place, &*json};
    if (line_number == 0) {
      auto schedule = read_schedule_line(found);
      if (!schedule) return schedule.error();
      recorded.schedule = std::move(*schedule);
      continue;
    }
    auto step = StepReader{recorded.schedule}.read(
        found, recorded.steps.empty() ? nullptr : &recorded.steps.back());
    if (!step) return step.error();
    sum_ns += all_times_ns(*step);
    if (sum_ns > sum_max_ns) {
      return found.wrong(
          "found times that add up to more than three years, expected those of a run");
    }
    recorded.steps.push_back(std::move(*step));
  }
  if (recorded.steps.empty()) {
    return Error{Errc::invalid_file,
                 fmt::format("{}:{}: found the end of the file, expected {}", source_name,
                             line_number + 1, line_number == 0 ? "a schedule" : "a step")};
  }
  return recorded;
}

}  // namespace troupe::cli
