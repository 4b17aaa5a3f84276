#include "step_comparison.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <map>
#include <tuple>
#include <utility>

namespace troupe::cli {

namespace {

using actors::RankReport;
using actors::StepReport;
using actors::TraceEntry;

/// Delays by where and why.
class Delays {
public:
  void add(const Coordinate& where, TimeCause cause, std::int64_t excess_ns,
           std::optional<Action> pass = std::nullopt) {
    auto& delay = delays_[{where.replica, where.pipeline, cause}];
    delay.where = where;
    delay.cause = cause;
    delay.excess_ns += excess_ns;
    if (!pass || (delay.longest && excess_ns <= delay.longest_ns)) return;
    delay.longest = pass;
    delay.longest_ns = excess_ns;
  }

  [[nodiscard]] std::vector<Delay> largest_first() const {
    std::vector<Delay> result;
    for (const auto& [key, delay] : delays_) {
      if (delay.excess_ns != 0) result.push_back(delay);
    }
    std::ranges::stable_sort(result, std::ranges::greater{}, &Delay::excess_ns);
    return result;
  }

private:
  std::map<std::tuple<std::uint32_t, RankIndex, TimeCause>, Delay> delays_;
};

/// The passes of a step, each with what it began after.
class Passes {
public:
  Passes(const Schedule& schedule, const StepReport& report, const Timeline& simulated) {
    std::map<Action, TimelineEntry> planned;
    for (const auto& row : simulated.ranks) {
      for (const auto& entry : row) planned.emplace(entry.action, entry);
    }
    for (const auto& rank : report.ranks) add(rank, planned);
    for (auto& pass : passes_) find_input(schedule, pass);
    for (const auto& pass : passes_) zero_ns_ = std::min(zero_ns_, pass.measured.begin_ns);
  }

  /// In nanoseconds since the step began: the begin of the first pass.
  [[nodiscard]] std::int64_t zero_ns() const noexcept { return zero_ns_; }

  /// The pass that ends last.
  [[nodiscard]] std::size_t last() const {
    const auto end_ns = [](const LinkedPass& pass) { return pass.measured.end_ns; };
    return static_cast<std::size_t>(std::ranges::max_element(passes_, {}, end_ns)
                                    - passes_.begin());
  }

  /// The passes whose begin differs most from the simulation.
  [[nodiscard]] std::vector<std::size_t> furthest(std::size_t count_max) const {
    std::vector<std::size_t> order(passes_.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::ranges::stable_sort(order, std::ranges::greater{}, [&](std::size_t i) {
      return std::abs(passes_[i].measured.begin_ns - zero_ns_ - passes_[i].simulated.begin_ns);
    });
    order.resize(std::min(order.size(), count_max));
    return order;
  }

  /// Adds what made the pass begin when it did, counted from `from_ns` on.
  void add_delays_before(std::size_t index, std::int64_t from_ns, Delays& delays) const {
    for (;;) {
      const auto& pass = passes_[index];
      const auto after = began_after(pass);
      const auto& end = after ? passes_[*after] : LinkedPass{};
      const auto pause_ns = pass.measured.begin_ns - (after ? end.measured.end_ns : from_ns);
      const auto planned_ns = pass.simulated.begin_ns - end.simulated.end_ns;
      delays.add(pass.where, pause_cause(pass, after), pause_ns - planned_ns, pass.measured.action);
      if (!after) return;
      add_duration(*after, delays);
      index = *after;
    }
  }
  /// Adds what the pass itself took longer.
  void add_duration(std::size_t index, Delays& delays) const {
    const auto& [where, measured, simulated, before, input] = passes_[index];
    const auto planned_ns = simulated.end_ns - simulated.begin_ns;
    delays.add(where, TimeCause::computing, measured.end_ns - measured.begin_ns - planned_ns,
               measured.action);
  }

  [[nodiscard]] ComparedPass compared(std::size_t index) const {
    const auto& pass = passes_[index];
    ComparedPass result{.where = pass.where,
                        .measured = pass.measured,
                        .simulated = pass.simulated,
                        .input_from = {},
                        .delays = {}};
    result.measured.begin_ns -= zero_ns_;
    result.measured.end_ns -= zero_ns_;
    const auto after = began_after(pass);
    if (after && after == pass.input) result.input_from = passes_[*after].where;
    Delays delays;
    add_delays_before(index, zero_ns_, delays);
    result.delays = delays.largest_first();
    return result;
  }

  [[nodiscard]] const TimelineEntry& measured(std::size_t index) const {
    return passes_[index].measured;
  }
  [[nodiscard]] const TimelineEntry& simulated(std::size_t index) const {
    return passes_[index].simulated;
  }
  [[nodiscard]] const Coordinate& where(std::size_t index) const { return passes_[index].where; }

private:
  struct LinkedPass {
    Coordinate where;
    TimelineEntry measured;
    TimelineEntry simulated;
    std::optional<std::size_t> before;  ///< The pass before it on its rank.
    std::optional<std::size_t> input;   ///< The pass on another rank that makes its input.
  };
  /// Activation (true) or gradient that a stage makes, in a replica.
  using Output = std::tuple<std::uint32_t, StageIndex, bool, MicrobatchIndex>;

  void add(const RankReport& rank, const std::map<Action, TimelineEntry>& planned) {
    std::optional<std::size_t> before;
    for (const auto& entry : rank.trace) {
      if (entry.kind != TraceEntry::Kind::pass) continue;
      const auto& action = entry.action;
      if (action.pass != Pass::backward_weight) {
        makers_[{rank.coordinate.replica, action.stage, action.pass == Pass::forward,
                 action.microbatch}] = passes_.size();
      }
      passes_.push_back({.where = rank.coordinate,
                         .measured = {action, entry.begin_ns, entry.end_ns},
                         .simulated = planned.at(action),
                         .before = before,
                         .input = {}});
      before = passes_.size() - 1;
    }
  }

  void find_input(const Schedule& schedule, LinkedPass& pass) const {
    const auto& action = pass.measured.action;
    const auto source = schedule.source_of(action);
    if (!source || schedule.rank_of_stage[source->value()] == pass.where.pipeline) return;
    pass.input =
        makers_.at({pass.where.replica, *source, action.pass == Pass::forward, action.microbatch});
  }

  [[nodiscard]] std::optional<std::size_t> began_after(const LinkedPass& pass) const {
    if (!pass.before || !pass.input) return pass.before ? pass.before : pass.input;
    const auto waits = passes_[*pass.input].measured.end_ns > passes_[*pass.before].measured.end_ns;
    return waits ? pass.input : pass.before;
  }

  static TimeCause pause_cause(const LinkedPass& pass, std::optional<std::size_t> after) {
    if (!after || after != pass.input) return TimeCause::dispatch;
    const bool forward = pass.measured.action.pass == Pass::forward;
    return forward ? TimeCause::activation : TimeCause::gradient;
  }

  std::vector<LinkedPass> passes_;
  std::map<Output, std::size_t> makers_;
  std::int64_t zero_ns_ = INT64_MAX;
};

/// The causes of a simulated rank's idle time are others than those of a measured account. What it
/// waits for inputs is told apart by the pass that begins late: exactly, if nothing else keeps
/// passes from running.
std::array<std::int64_t, time_cause_count> account_of(const Timeline& timeline, RankIndex rank) {
  const auto& time = timeline.rank_times[rank.value()];
  const auto& idle = timeline.idle_times[rank.value()];
  std::int64_t before_backward_ns = 0;
  std::int64_t end_ns = 0;
  for (const auto& entry : timeline.ranks[rank.value()]) {
    if (entry.action.pass != Pass::forward) before_backward_ns += entry.begin_ns - end_ns;
    end_ns = entry.end_ns;
  }
  const auto input_ns =
      idle[IdleCause::warm_up] + idle[IdleCause::imbalance] + idle[IdleCause::communication];
  TimeAccount account;
  account[TimeCause::computing] = time.passes_ns;
  account[TimeCause::dispatch] = idle[IdleCause::dispatch];
  account[TimeCause::gradient] = std::min(before_backward_ns, input_ns);
  account[TimeCause::activation] = input_ns - account[TimeCause::gradient];
  account[TimeCause::send] = idle[IdleCause::send];
  account[TimeCause::reduction] = idle[IdleCause::reduction];
  account[TimeCause::measuring] = time.measuring_ns;
  account[TimeCause::director] = idle[IdleCause::drain] + idle[IdleCause::director];
  account[TimeCause::optimizer] = time.optimizer_ns;
  return account.ns;
}

ComparedRank compare_rank(const RankReport& rank, const Timeline& simulated) {
  ComparedRank result{.where = rank.coordinate,
                      .measured_ns = rank.account.ns,
                      .simulated_ns = account_of(simulated, rank.coordinate.pipeline)};
  result.measured_ns[static_cast<std::size_t>(TimeCause::next_step)] = 0;
  return result;
}

/// Adds what came after the last pass: the rank that ran it kept everybody waiting.
void add_delays_behind(const Passes& passes, const StepReport& report, const Timeline& simulated,
                       Delays& delays) {
  const auto last = passes.last();
  const auto& where = passes.where(last);
  const auto& rank = *std::ranges::find(report.ranks, where, &RankReport::coordinate);
  auto rest_ns = report.end_ns - passes.measured(last).end_ns
                 - (simulated.makespan_ns - passes.simulated(last).end_ns);
  const auto add = [&](TimeCause cause, std::int64_t simulated_ns) {
    const auto excess_ns = rank.account[cause] - simulated_ns;
    delays.add(where, cause, excess_ns);
    rest_ns -= excess_ns;
  };
  const auto planned = account_of(simulated, where.pipeline);
  for (const auto cause :
       {TimeCause::reduction, TimeCause::measuring, TimeCause::director, TimeCause::optimizer}) {
    add(cause, planned[static_cast<std::size_t>(cause)]);
  }
  delays.add(where, TimeCause::dispatch, rest_ns);
}

}  // namespace

StepComparison compare_step(const Schedule& schedule, const StepReport& report,
                            const Timeline& simulated, std::size_t pass_count_max) {
  StepComparison result{.step = report.step,
                        .measured_ns = report.end_ns - report.begin_ns,
                        .simulated_ns = simulated.makespan_ns,
                        .ranks = {},
                        .delays = {},
                        .passes = {}};
  for (const auto& rank : report.ranks) result.ranks.push_back(compare_rank(rank, simulated));
  const Passes passes{schedule, report, simulated};
  Delays delays;
  passes.add_delays_before(passes.last(), report.begin_ns, delays);
  passes.add_duration(passes.last(), delays);
  add_delays_behind(passes, report, simulated, delays);
  result.delays = delays.largest_first();
  for (const auto index : passes.furthest(pass_count_max)) {
    result.passes.push_back(passes.compared(index));
  }
  return result;
}

}  // namespace troupe::cli
