#include "progress.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include <fmt/format.h>
#include <unistd.h>

namespace troupe::cli {

namespace {

std::string format_duration(double seconds) {
  const auto whole = static_cast<std::int64_t>(std::llround(std::max(0.0, seconds)));
  if (whole >= 3600)
    return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

}  // namespace

std::string format_progress(const ProgressFacts& facts) {
  return fmt::format(
      "step {:>{}}/{}  loss {:.4f}  {:.0f} tokens/s  {:.0f}% of light  bubble {:.1f}% (sim "
      "{:.1f}%)  "
      "{} left",
      facts.step, std::to_string(facts.step_count).size(), facts.step_count, facts.loss,
      facts.tokens_per_second, 100.0 * facts.speed_of_light, 100.0 * facts.bubble_measured,
      100.0 * facts.bubble_predicted, format_duration(facts.seconds_left));
}

ProgressLine::ProgressLine() : is_terminal_{isatty(STDOUT_FILENO) != 0} {}

ProgressLine::~ProgressLine() {
  if (is_showing_) std::fputs("\n", stdout);
  std::fflush(stdout);
}

void ProgressLine::show(const ProgressFacts& facts) {
  if (is_terminal_) {
    clear();
    std::fputs(format_progress(facts).c_str(), stdout);
    is_showing_ = true;
  } else {
    const auto interval = std::max(1U, facts.step_count / 50U);
    if (facts.step != 1 && facts.step % interval != 0 && facts.step != facts.step_count) return;
    fmt::print("{}\n", format_progress(facts));
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
