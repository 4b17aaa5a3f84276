// cli/src/classification_report.hpp -- what `troupe train` says of how well it classifies.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "troupe/engine/class_counts.hpp"

namespace troupe::cli {

/// How the held-out texts were classified.
struct ClassificationReport {
  std::uint32_t step = 0;                ///< The last one before.
  double loss = 0.0;                     ///< Mean over the texts, in nats.
  std::vector<std::string> class_names;  ///< As many as the counts have classes.
  ClassCounts counts;
};

/// `name` with question marks for what a terminal might obey.
[[nodiscard]] std::string without_controls(std::string name);

/// A table for a person: each class with precision, recall, F1 and support, then macro averages and
/// accuracy. Of names, control
/// characters are replaced.
[[nodiscard]] std::string to_table(const ClassificationReport& report);

/// The same as one JSON object on a line, numbers in full precision; what of a name is not UTF-8 is
/// replaced.
[[nodiscard]] std::string to_json(const ClassificationReport& report);

}  // namespace troupe::cli
