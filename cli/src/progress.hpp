// cli/src/progress.hpp -- the line that tells how a run is going.
#pragma once

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

/// Formats the facts in one line of at most 100 columns.
[[nodiscard]] std::string format_progress(const ProgressFacts& facts);

/// Shows lines on stdout. On a terminal each replaces the one before; elsewhere about one in fifty
/// steps is printed, so that a log stays short.
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
