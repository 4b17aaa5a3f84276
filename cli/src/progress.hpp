// cli/src/progress.hpp -- the line that tells how a run is going.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace troupe::cli {

/// What the line shows.
struct ProgressFacts {
  std::uint32_t step = 0;
  std::uint32_t step_count = 0;
  double loss = 0.0;
  double tokens_per_second = 0.0;
  double speed_of_light = 0.0;  ///< 0 to 1.
  double bubble_measured = 0.0;
  double bubble_predicted = 0.0;
  double seconds_left = 0.0;
};

/// Columns of a line that says everything.
inline constexpr std::size_t progress_columns_max = 100;

/// Formats the facts in one line of at most `columns_max` columns. What does not fit is left out,
/// first the speed, which the share of light says too, then the bubble, then the share of light.
[[nodiscard]] std::string format_progress(const ProgressFacts& facts, std::size_t columns_max);

/// Shows lines on stdout. On a terminal each replaces the one before, and is cut to its width;
/// elsewhere about one in fifty steps is printed, so that a log stays short.
class ProgressLine {
public:
  ProgressLine();
  /// Ends the line that is showing, if any.
  ~ProgressLine();
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void show(const ProgressFacts& facts);
  /// Prints a line that stays.
  void print(const std::string& line);

private:
  void clear();

  bool is_terminal_;
  bool is_showing_ = false;
};

}  // namespace troupe::cli
