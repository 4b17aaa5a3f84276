#include <array>
#include <cstdio>

#include <fmt/format.h>

#include "troupe/engine/communication.hpp"
#include "troupe/engine/config.hpp"
#include "troupe/engine/draw.hpp"
#include "troupe/engine/schedule_generators.hpp"
#include "troupe/engine/schedule_text.hpp"
#include "troupe/engine/schedule_validation.hpp"
#include "troupe/engine/simulate.hpp"

#include "commands.hpp"
#include "counted.hpp"
#include "schedule_source.hpp"

namespace troupe::cli {

namespace {

Error differs(const ScheduleArguments& arguments, const char* option, std::uint32_t asked,
              std::uint32_t found) {
  return {Errc::invalid_schedule,
          fmt::format("{}: {} is {} but the file has {}; leave the option out or make them equal",
                      arguments.name, option, asked, found)};
}

Expected<Schedule> load(const ScheduleArguments& arguments) {
  if (!is_schedule_file(arguments.name)) {
    if (arguments.ranks == 0 || arguments.microbatches == 0) {
      return Error{Errc::invalid_config,
                   "a named schedule needs --stages and --microbatches, both at least 1"};
    }
    return make_schedule(arguments.name, {.rank_count = arguments.ranks,
                                          .microbatch_count = arguments.microbatches,
                                          .chunk_count = arguments.chunks,
                                          .split = arguments.split_backward});
  }
  auto schedule = read_schedule(
      arguments.name,
      {.matching = arguments.matching == "tagged" ? Matching::tagged : Matching::ordered,
       .counterexample_path = arguments.counterexample_path});
  if (!schedule) return schedule;
  if (arguments.ranks != 0 && arguments.ranks != schedule->rank_count()) {
    return differs(arguments, "--stages", arguments.ranks, schedule->rank_count());
  }
  if (arguments.microbatches != 0 && arguments.microbatches != schedule->microbatch_count) {
    return differs(arguments, "--microbatches", arguments.microbatches, schedule->microbatch_count);
  }
  if (arguments.split_backward) return split_backward(std::move(*schedule));
  return schedule;
}

/// Length, bubble, and what each rank waits and holds, a line each.
std::string figures_of(const Schedule& schedule, const Timeline& timeline, const TimeUnit& unit) {
  const auto units = [&unit](std::int64_t ns) {
    return counted(static_cast<std::uint64_t>(ns / unit.size_ns), "unit");
  };
  auto text =
      fmt::format("makespan {} (F = I = W = 1), bubble {:.1f}% of the time, {:.1f}% of the work\n",
                  units(timeline.makespan_ns), 100.0 * timeline.bubble_of_total(),
                  100.0 * timeline.bubble_of_ideal());
  for (std::uint32_t r = 0; r < schedule.rank_count(); ++r) {
    std::uint32_t in_flight = 0;
    for (const auto stage : schedule.stages_of(RankIndex{r})) {
      in_flight += timeline.in_flight_max[stage.value()];
    }
    text += fmt::format("rank {}: idle {}, holds at most {} of activations\n", r,
                        units(timeline.idle_ns(RankIndex{r})), counted(in_flight, "set"));
  }
  return text;
}

}  // namespace

Expected<ExitCode> schedule(const ScheduleArguments& arguments) {
  const auto loaded = load(arguments);
  if (!loaded) return loaded.error();
  if (arguments.slots_max != 0) {
    if (const auto fits = validate_memory(*loaded, {arguments.slots_max}); !fits) {
      return Error{fits.error().code, arguments.name + ": " + fits.error().context};
    }
  }
  if (arguments.format == "csv") {
    fmt::print("{}", to_csv(*loaded));
    return exit_success;
  }
  if (arguments.format == "csv-comms") {
    fmt::print("{}", to_csv(with_communication(*loaded)));
    return exit_success;
  }
  // Nanoseconds here stand for units of time; a microsecond each keeps them whole in pictures.
  const TimeUnit unit{.size_ns = 1000, .name = "units"};
  const auto timeline = simulate(
      *loaded, {.stages = {PassCosts::of_parts(unit.size_ns, unit.size_ns, unit.size_ns)}});
  const auto picture = make_picture(loaded->name, *loaded, timeline, unit);
  if (arguments.format == "svg") {
    fmt::print("{}", draw_svg(std::array{picture}, unit));
    return exit_success;
  }
  const auto head = fmt::format(
      "{}: {}, {}, {}\n\n", loaded->name, counted(loaded->rank_count(), "rank"),
      counted(loaded->stage_count(), "stage"), counted(loaded->microbatch_count, "microbatch"));
  const auto figures = figures_of(*loaded, timeline, unit);
  if (arguments.format == "html") {
    fmt::print("{}", draw_html(loaded->name, head + figures, std::array{picture}, unit));
    return exit_success;
  }
  fmt::print("{}{}\n{}", head, draw_text(picture), figures);
  return exit_success;
}

}  // namespace troupe::cli
