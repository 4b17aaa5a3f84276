#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "troupe/engine/config.hpp"
#include "troupe/engine/draw.hpp"
#include "troupe/engine/memory.hpp"
#include "troupe/engine/schedule_generators.hpp"
#include "troupe/engine/simulate.hpp"
#include "troupe/storage/text_file.hpp"

#include "commands.hpp"
#include "counted.hpp"
#include "profile_file.hpp"
#include "run_inputs.hpp"
#include "schedule_source.hpp"
#include "step_pictures.hpp"
#include "sweep_plot.hpp"

namespace troupe::cli {

namespace {

using Json = nlohmann::ordered_json;

/// A unit of time, or a millisecond of a profile: thousandths of one are still exact.
constexpr TimeUnit unit{.size_ns = 1'000'000, .name = "units"};

std::int64_t to_ns(double units) {
  return std::llround(units * static_cast<double>(unit.size_ns));
}
double to_units(std::int64_t ns) {
  return static_cast<double>(ns) / static_cast<double>(unit.size_ns);
}

/// One simulated step, and for what it was.
struct Run {
  Schedule schedule;
  double link = 0.0;
  Timeline timeline;
  std::optional<UnevenSteps> uneven{};     ///< With a profile, if it is to be shown.
  std::vector<std::int64_t> slot_bytes{};  ///< By stage; of a model.

  /// Virtual stages per rank and copy of the model.
  [[nodiscard]] double chunks() const {
    return static_cast<double>(schedule.stages_per_copy()) / schedule.rank_count();
  }
  [[nodiscard]] std::int64_t idle_within_ns(std::uint32_t rank) const {
    const auto& time = timeline.rank_times[rank];
    return time.end_ns - time.begin_ns - time.passes_ns;
  }
  /// The most that each rank holds, in sets of activations of one virtual stage.
  [[nodiscard]] std::vector<std::int64_t> peaks() const { return memory_max(schedule, {1}); }
  /// By rank of the timeline: what it holds over time, if a set of each stage is so much.
  [[nodiscard]] std::vector<std::vector<MemoryLevel>> levels(
      const std::vector<std::int64_t>& of_set) const {
    std::vector<std::vector<MemoryLevel>> list;
    for (const auto& rank : timeline.ranks) {
      list.push_back(memory_over_time(rank, schedule.kind, of_set));
    }
    return list;
  }
  /// In bytes where they are known, or in such sets.
  [[nodiscard]] HeldActivations activations() const {
    if (slot_bytes.empty()) return {levels({1}), "sets"};
    return {levels(slot_bytes), "bytes"};
  }
};

Expected<Schedule> make(const SimulateArguments& arguments, const std::string& name,
                        const ScheduleRequest& request) {
  if (!is_schedule_file(name)) return make_schedule(name, request);
  auto schedule = read_schedule(name, {});
  if (!schedule || !arguments.split_backward) return schedule;
  return split_backward(std::move(*schedule));
}

/// A straggler as it was written, `3:1.5`.
Expected<std::pair<std::uint32_t, double>> parse_straggler(const std::string& text,
                                                           std::size_t rank_count) {
  constexpr double factor_max = 1000.0;
  const auto* const end = text.data() + text.size();
  std::uint32_t rank = 0;
  double factor = 0.0;
  auto read = std::from_chars(text.data(), end, rank);
  const bool has_rank = read.ec == std::errc{} && read.ptr != end && *read.ptr == ':';
  if (has_rank) read = std::from_chars(read.ptr + 1, end, factor);
  if (!has_rank || read.ec != std::errc{} || read.ptr != end || rank >= rank_count
      || !(factor >= 0.0 && factor <= factor_max)) {
    return Error{
        Errc::invalid_config,
        fmt::format("--straggler: found {}, expected one of the ranks 0 to {}, a colon and "
                    "a factor from 0 to {}, as in 0:1.5",
                    text, rank_count - 1, factor_max)};
  }
  return std::pair{rank, factor};
}

/// Adds to `costs` what the options say of the machine.
Expected<Done> add_machine(const SimulateArguments& arguments, const Schedule& schedule,
                           CostModel& costs) {
  const auto rank_count = schedule.rank_count();
  auto& network = costs.network;
  network.overlaps_passes = !arguments.no_overlap;
  if (arguments.transfer > 0.0) {
    constexpr double bytes_per_second = 1e9;  // So that a byte takes a nanosecond.
    network.activation_bytes = network.gradient_bytes = {to_ns(arguments.transfer)};
    network.wire.bytes_per_second = bytes_per_second;
  }
  for (std::uint32_t r = 0; arguments.ranks_per_node > 0 && r < rank_count; ++r) {
    network.interfaces.push_back(r / arguments.ranks_per_node);
  }
  if (arguments.replicas > 1) {
    costs.replicas.count = arguments.replicas;
    costs.replicas.bucket_bytes = {{0}};  // One for each stage.
    costs.replicas.wire.latency_ns = to_ns(arguments.reduction);
  }
  costs.jitter = {.pass_spread = arguments.jitter.front(),
                  .transfer_spread = arguments.jitter.size() > 1 ? arguments.jitter[1] : 0.0,
                  .seed = arguments.seed};
  if (arguments.stragglers.empty()) return Done{};
  costs.slowdown.resize(std::size_t{rank_count} * costs.replicas.count, costs.slowdown.front());
  for (const auto& text : arguments.stragglers) {
    const auto straggler = parse_straggler(text, costs.slowdown.size());
    if (!straggler) return straggler.error();
    costs.slowdown[straggler->first] *= straggler->second;
  }
  return Done{};
}

/// What one should know of a prediction, for a person.
void add_notes(const Plan& plan, const CostModel& costs, std::uint32_t process_count,
               std::set<std::string>& notes) {
  const auto left_out = left_out_of_prediction(plan, process_count);
  if (!left_out.empty()) notes.emplace(left_out);
  const auto data = plan.config.parallel.data;
  if (costs.replicas.count < data && !plan.has_servers()) {
    notes.insert(fmt::format("of {} replicas, the {} that are shown stand for all", data,
                             costs.replicas.count));
  }
}

/// With the times of a profile, in seconds of this machine, of a configuration.
Expected<Run> simulate_profiled(const SimulateArguments& arguments, const Plan& base,
                                const Profile& profile, const std::string& name,
                                std::uint32_t stages, std::uint32_t microbatches, bool shows_uneven,
                                std::set<std::string>& notes) {
  auto config = base.config;
  config.schedule.name = name;
  if (arguments.chunks != 1) config.schedule.chunks = arguments.chunks;
  if (arguments.memory_limit != 0) config.schedule.memory_limit = arguments.memory_limit;
  if (arguments.split_backward) config.schedule.split_backward = true;
  config.parallel.pipeline = stages;
  config.schedule.microbatches = microbatches;
  if (stages != base.config.parallel.pipeline) config.schedule.layers_per_stage.clear();
  auto file = is_schedule_file(name) ? read_schedule(name) : Expected<Schedule>{Schedule{}};
  if (!file) return file.error();
  const auto plan =
      is_schedule_file(name) ? make_plan(config, std::move(*file)) : make_plan(config, profile);
  if (!plan) return plan.error();
  if (auto fits = check_fits(profile, *plan, arguments.process_count); !fits) return fits.error();
  auto costs = costs_of(*plan, profile, arguments.process_count);
  add_notes(*plan, costs, arguments.process_count, notes);
  if (auto added = add_machine(arguments, plan->training, costs); !added) return added.error();
  std::vector<std::int64_t> slot_bytes;
  for (const auto& stage : plan->stages) {
    slot_bytes.push_back(static_cast<std::int64_t>(stage.slot_bytes()));
  }
  // It takes as long as hundreds of even steps.
  auto uneven = shows_uneven
                    ? std::optional{simulate_uneven(plan->training, costs, profile.unevenness)}
                    : std::nullopt;
  return Run{plan->training, 0.0, simulate(plan->training, costs), uneven, std::move(slot_bytes)};
}

Expected<Run> simulate_one(const SimulateArguments& arguments, const std::string& name,
                           std::uint32_t stages, std::uint32_t microbatches, double link) {
  CostModel costs{
      .stages = {PassCosts::of_parts(to_ns(arguments.costs[0]), to_ns(arguments.costs[1]),
                                     to_ns(arguments.costs[2]))},
      .link_ns = {to_ns(link)}};
  ScheduleRequest request{.rank_count = stages, .microbatch_count = microbatches};
  request.chunk_count = arguments.chunks;
  request.split = arguments.split_backward;
  request.memory_limit = arguments.memory_limit;
  request.costs = costs;
  auto schedule = make(arguments, name, request);
  if (!schedule) return schedule.error();
  constexpr double jitter_factor_max = 300.0;  // With a spread of 3.
  constexpr double units_max = 1e9;  // Sums over all ranks are then whole nanoseconds still.
  const auto [forward, input, weight] =
      std::tuple{arguments.costs[0], arguments.costs[1], arguments.costs[2]};
  const auto longest = schedule->stage_count() * static_cast<double>(schedule->microbatch_count)
                           * (forward + input + weight + 2.0 * (link + arguments.transfer))
                       + schedule->stage_count() * arguments.reduction;
  if (auto added = add_machine(arguments, *schedule, costs); !added) return added.error();
  const auto slowest = std::max(1.0, std::ranges::max(costs.slowdown))
                       * (std::ranges::max(arguments.jitter) > 0.0 ? jitter_factor_max : 1.0);
  if (!(longest * slowest * schedule->rank_count() * arguments.replicas <= units_max)) {
    return Error{
        Errc::invalid_config,
        fmt::format(
            "--costs, --link and what else takes time may add up to more than {} units over "
            "all ranks; choose a larger unit of time",
            units_max)};
  }
  auto timeline = simulate(*schedule, costs);
  return Run{std::move(*schedule), link, std::move(timeline), {}, {}};
}

Json over_time(const std::vector<std::vector<MemoryLevel>>& ranks) {
  auto list = Json::array();
  for (const auto& levels : ranks) {
    auto& steps = list.emplace_back(Json::array());
    for (const auto& level : levels) steps.push_back({to_units(level.from_ns), level.bytes});
  }
  return list;
}

Json to_json(const Run& run, bool with_memory) {
  const auto& [schedule, link, timeline, uneven, slot_bytes] = run;
  Json object{{"schedule", schedule.name},
              {"stages", schedule.rank_count()},
              {"virtual_stages", schedule.stage_count()},
              {"microbatches", schedule.microbatch_count},
              {"link", link},
              {"makespan", to_units(timeline.makespan_ns)},
              {"bubble_of_ideal", timeline.bubble_of_ideal()},
              {"bubble_of_total", timeline.bubble_of_total()}};
  const auto causes = timeline.idle_by_cause();
  for (std::size_t cause = 0; cause < idle_cause_count; ++cause) {
    object["idle_by_cause"][std::string{to_string(static_cast<IdleCause>(cause))}] =
        to_units(causes.ns[cause]);
  }
  const auto peaks = run.peaks();
  for (std::uint32_t r = 0; r < timeline.rank_times.size(); ++r) {
    const auto peak = peaks[r % schedule.rank_count()];
    object["busy"].push_back(to_units(timeline.rank_times[r].busy_ns()));
    object["idle"].push_back(to_units(timeline.idle_ns(RankIndex{r})));
    object["idle_within_passes"].push_back(to_units(run.idle_within_ns(r)));
    object["peak_activations"].push_back(peak);
    object["peak_microbatches"].push_back(static_cast<double>(peak) / run.chunks());
  }
  if (uneven) {
    object["uneven_steps"] = {{"mean", uneven->mean_ns / static_cast<double>(unit.size_ns)},
                              {"tenth", to_units(uneven->tenth_ns)},
                              {"ninetieth", to_units(uneven->ninetieth_ns)}};
  }
  if (!slot_bytes.empty()) object["peak_activation_bytes"] = memory_max(schedule, slot_bytes);
  if (!with_memory) return object;
  object["activations_over_time"] = over_time(run.levels({1}));
  if (!slot_bytes.empty()) object["activation_bytes_over_time"] = over_time(run.levels(slot_bytes));
  return object;
}

void print_one(const Run& run) {
  const auto& [schedule, link, timeline, uneven, slot_bytes] = run;
  fmt::print("{}: {}, {}, {}, link {}\n", schedule.name, counted(schedule.rank_count(), "rank"),
             counted(schedule.stage_count(), "stage"),
             counted(schedule.microbatch_count, "microbatch"), link);
  fmt::print("makespan {}, bubble {:.2f}% of the time, {:.2f}% of the work\n",
             to_units(timeline.makespan_ns), 100.0 * timeline.bubble_of_total(),
             100.0 * timeline.bubble_of_ideal());
  if (uneven) {
    fmt::print(
        "with passes as uneven as when they were profiled {:.1f} in the mean, eight steps in "
        "ten {:.1f} to {:.1f}\n",
        uneven->mean_ns / static_cast<double>(unit.size_ns), to_units(uneven->tenth_ns),
        to_units(uneven->ninetieth_ns));
  }
  fmt::print("idle by cause:");
  const auto causes = timeline.idle_by_cause();
  for (std::size_t cause = 0; cause < idle_cause_count; ++cause) {
    if (causes.ns[cause] == 0) continue;
    fmt::print(" {} {}", to_string(static_cast<IdleCause>(cause)), to_units(causes.ns[cause]));
  }
  fmt::print("\n\n{:>4} {:>12} {:>12} {:>12} {:>18}{}\n", "rank", "busy", "idle", "idle within",
             "peak activations", slot_bytes.empty() ? "" : "          bytes");
  const auto peaks = run.peaks();
  const auto peak_bytes = slot_bytes.empty() ? peaks : memory_max(schedule, slot_bytes);
  for (std::uint32_t row = 0; row < timeline.rank_times.size(); ++row) {
    const auto rank = row % schedule.rank_count();
    fmt::print(
        "{:>4} {:>12} {:>12} {:>12} {:>18}", row, to_units(timeline.rank_times[row].busy_ns()),
        to_units(timeline.idle_ns(RankIndex{row})), to_units(run.idle_within_ns(row)), peaks[rank]);
    if (!slot_bytes.empty()) {
      fmt::print("{:>15}", format_bytes(static_cast<std::uint64_t>(peak_bytes[rank])));
    }
    fmt::print("\n");
  }
}

void print_table(const std::vector<Run>& runs, bool as_csv) {
  constexpr std::array names{"schedule", "stages",          "microbatches",    "link",
                             "makespan", "bubble_of_total", "bubble_of_ideal", "peak_activations"};
  if (as_csv) {
    fmt::print("{}\r\n", fmt::join(names, ","));
  } else {
    fmt::print("{:<24} {:>6} {:>12} {:>8} {:>12} {:>9} {:>9} {:>6}\n", "schedule", "stages",
               "microbatches", "link", "makespan", "of total", "of ideal", "peak");
  }
  for (const auto& run : runs) {
    const auto& [schedule, link, timeline, uneven, slot_bytes] = run;
    const auto makespan = to_units(timeline.makespan_ns);
    const auto peak = std::ranges::max(run.peaks());
    if (as_csv) {
      fmt::print("{},{},{},{},{},{:.6f},{:.6f},{}\r\n", schedule.name, schedule.rank_count(),
                 schedule.microbatch_count, link, makespan, timeline.bubble_of_total(),
                 timeline.bubble_of_ideal(), peak);
    } else {
      fmt::print("{:<24} {:>6} {:>12} {:>8} {:>12} {:>8.2f}% {:>8.2f}% {:>6}\n", schedule.name,
                 schedule.rank_count(), schedule.microbatch_count, link, makespan,
                 100.0 * timeline.bubble_of_total(), 100.0 * timeline.bubble_of_ideal(), peak);
    }
  }
}

Expected<std::vector<Run>> simulate_all_profiled(const SimulateArguments& arguments) {
  const auto plan = load_plan(arguments.run);
  if (!plan) return plan.error();
  if (auto can = check_device(*plan); !can) return can.error();
  const auto profile = read_profile(arguments.profile_path);
  if (!profile) return profile.error();
  const auto given_or = [](auto given, auto configured) {
    return given.empty() ? decltype(given){configured} : given;
  };
  const auto& config = plan->config;
  const auto schedules = given_or(arguments.schedules, config.schedule.name);
  const auto stage_counts = given_or(arguments.stages, config.parallel.pipeline);
  const auto microbatch_counts = given_or(arguments.microbatches, config.schedule.microbatches);
  const bool is_sweep = schedules.size() * stage_counts.size() * microbatch_counts.size() > 1;
  const bool shows_uneven = arguments.json || !is_sweep;
  std::vector<Run> runs;
  std::set<std::string> notes;
  for (const auto& name : schedules) {
    for (const auto stages : stage_counts) {
      for (const auto microbatches : microbatch_counts) {
        auto run = simulate_profiled(arguments, *plan, *profile, name, stages, microbatches,
                                     shows_uneven, notes);
        if (!run) return run.error();
        runs.push_back(std::move(*run));
      }
    }
  }
  for (const auto& note : notes) fmt::print(stderr, "note: {}\n", note);
  return runs;
}

/// A file brings its own sizes.
std::vector<std::uint32_t> sizes_for(const std::string& name,
                                     const std::vector<std::uint32_t>& sizes) {
  return is_schedule_file(name) ? std::vector{1U} : sizes;
}

Expected<std::vector<Run>> simulate_all(const SimulateArguments& arguments) {
  if (!arguments.profile_path.empty()) return simulate_all_profiled(arguments);
  const bool has_sizes = !arguments.stages.empty() && !arguments.microbatches.empty();
  if (arguments.schedules.empty()
      || (!has_sizes && !std::ranges::all_of(arguments.schedules, is_schedule_file))) {
    return Error{Errc::invalid_config,
                 "give --schedule, --stages and --microbatches, or a configuration with --profile"};
  }
  std::vector<Run> runs;
  for (const auto& name : arguments.schedules) {
    for (const auto stages : sizes_for(name, arguments.stages)) {
      for (const auto microbatches : sizes_for(name, arguments.microbatches)) {
        for (const auto link : arguments.links) {
          auto run = simulate_one(arguments, name, stages, microbatches, link);
          if (!run) return run.error();
          runs.push_back(std::move(*run));
        }
      }
    }
  }
  return runs;
}

}  // namespace

Expected<ExitCode> simulate(const SimulateArguments& arguments) {
  const auto runs = simulate_all(arguments);
  if (!runs) return runs.error();
  const bool is_single = runs->size() == 1;
  if (!is_single && !arguments.trace_path.empty()) {
    return Error{Errc::invalid_config,
                 "--trace: a file holds one step; leave one schedule, one number of stages, of "
                 "microbatches and one link"};
  }
  if (!arguments.svg_path.empty()) {
    std::vector<SweepPoint> points;
    for (const auto& run : *runs) {
      points.push_back({run.schedule.name, run.schedule.rank_count(), run.schedule.microbatch_count,
                        run.link, run.timeline.bubble_of_total()});
    }
    const auto& first = runs->front();
    const auto svg =
        is_single ? draw_svg(
            std::array{make_picture(first.schedule.name, first.schedule, first.timeline, unit)},
            unit)
                  : plot_sweep(points);
    if (auto written = storage::write_text(arguments.svg_path, svg); !written)
      return written.error();
  }
  if (!arguments.trace_path.empty()) {
    const auto& run = runs->front();
    const auto trace =
        to_chrome_trace(run.schedule, report_of(run.schedule, run.timeline), run.activations());
    if (auto written = storage::write_text(arguments.trace_path, trace); !written)
      return written.error();
  }
  if (arguments.json) {
    auto objects = Json::array();
    for (const auto& run : *runs) objects.push_back(to_json(run, arguments.memory));
    fmt::print(
        "{}\n",
        (is_single ? objects[0] : objects).dump(-1, ' ', false, Json::error_handler_t::replace));
  } else if (is_single && !arguments.csv) {
    print_one(runs->front());
  } else {
    print_table(*runs, arguments.csv);
  }
  return exit_success;
}

}  // namespace troupe::cli
