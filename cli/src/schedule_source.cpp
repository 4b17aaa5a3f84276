#include "schedule_source.hpp"

#include <array>
#include <cstdio>
#include <optional>

#include <fmt/format.h>

#include "troupe/engine/counterexample.hpp"
#include "troupe/engine/schedule_generators.hpp"
#include "troupe/engine/schedule_text.hpp"
#include "troupe/engine/schedule_validation.hpp"
#include "troupe/storage/text_file.hpp"

namespace troupe::cli {

namespace {

/// Draws `picture` if that is wanted, and says what became of it.
std::string drawn(const std::optional<Picture>& picture, const std::string& path) {
  if (path.empty()) return {};
  if (!picture) return "; it is too broken to be drawn";
  const auto text = path.ends_with(".svg")
                        ? draw_svg(std::array{*picture}, {.size_ns = 1, .name = "actions"})
                        : draw_text(*picture);
  if (const auto written = storage::write_text(path, text); !written) {
    return "; " + written.error().context;
  }
  return "; " + path + " shows how far it gets";
}

Error refused(const std::string& path, const Error& error, const std::string& drawing) {
  return {error.code, path + ": " + error.context + drawing
                          + "; correct the file, or write a new one with "
                            "`troupe schedule NAME --format csv`"};
}

}  // namespace

Expected<Schedule> read_schedule(const std::string& path, const ScheduleReading& reading) {
  const auto text = storage::read_text(path);
  if (!text) return text.error();
  const auto file = communication_from_csv(*text, path);
  if (!file) return file.error();
  if (has_communication(*file)) {
    if (const auto valid = validate(*file, reading.matching); !valid) {
      return refused(
          path, valid.error(),
          drawn(make_counterexample(*file, reading.matching), reading.counterexample_path));
    }
  }
  auto schedule = without_communication(*file);
  const auto as_written = validate(schedule);
  if (as_written) return schedule;
  auto in_order = with_weight_passes_in_order(schedule);
  if (!validate(in_order)) {
    return refused(path, as_written.error(),
                   drawn(make_counterexample(schedule), reading.counterexample_path));
  }
  fmt::print(stderr, "note: {}: weight passes now run in microbatch order\n", path);
  return in_order;
}

}  // namespace troupe::cli
