#include "progress.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

namespace troupe::cli {

namespace {

/// The last column stays free: some terminals wrap as soon as it is written to.
std::size_t columns_of_terminal() {
  winsize size{};
  const bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1;
  return known ? size.ws_col - std::size_t{1} : progress_columns_max;
}

std::string format_duration(double seconds) {
  const auto whole = static_cast<std::int64_t>(std::llround(std::max(0.0, seconds)));
  if (whole >= 3600)
    return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

}  // namespace

std::string format_progress(const ProgressFacts& facts, std::size_t columns_max) {
  auto speed = fmt::format("  {:.0f} tokens/s", facts.tokens_per_second);
  auto light = fmt::format("  {:.0f}% of light", 100.0 * facts.speed_of_light);
  auto bubble = fmt::format("  bubble {:.1f}% (sim {:.1f}%)", 100.0 * facts.bubble_measured,
                            100.0 * facts.bubble_predicted);
  const auto line = [&] {
    return fmt::format("step {:>{}}/{}  loss {:.4f}{}{}{}  {} left", facts.step,
                       std::to_string(facts.step_count).size(), facts.step_count, facts.loss, speed,
                       light, bubble, format_duration(facts.seconds_left));
  };
  for (auto* part : {&speed, &bubble, &light}) {
    if (line().size() <= columns_max) break;
    part->clear();
  }
  return line().substr(0, columns_max);
}

ProgressLine::ProgressLine() : is_terminal_{isatty(STDOUT_FILENO) != 0} {}

ProgressLine::~ProgressLine() {
  if (is_showing_) std::fputs("\n", stdout);
  std::fflush(stdout);
}

void ProgressLine::show(const ProgressFacts& facts) {
  if (is_terminal_) {
    clear();
    std::fputs(format_progress(facts, columns_of_terminal()).c_str(), stdout);
    is_showing_ = true;
  } else {
    const auto interval = std::max(1U, facts.step_count / 50U);
    if (facts.step != 1 && facts.step % interval != 0 && facts.step != facts.step_count) return;
    fmt::print("{}\n", format_progress(facts, progress_columns_max));
  }
  std::fflush(stdout);
}

void ProgressLine::print(const std::string& line) {
  clear();
  fmt::print("{}\n", line);
  std::fflush(stdout);
}

void ProgressLine::clear() {
  constexpr const char* erase_line = "\r\x1b[2K";
  if (is_showing_) std::fputs(erase_line, stdout);
  is_showing_ = false;
}

}  // namespace troupe::cli
