// troupe/storage/metrics.hpp -- the log of a run: one JSON object per line.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "troupe/engine/expected.hpp"

namespace troupe::storage {

/// A named number.
struct Metric {
  std::string_view name;  ///< Letters, digits and underscores.
  std::variant<std::uint64_t, double> value;
};

/// Appends lines like `{"step":3,"loss":5.25}` to a file. Each is handed to the operating system
/// whole before `append` returns, so that others can follow the file and a crash of this program
/// loses none. Not thread-safe.
class MetricLog {
public:
  /// Starts an empty log, replacing the file `path`.
  /// @returns `file_failure` naming path and reason.
  [[nodiscard]] static Expected<MetricLog> create(const std::string& path);
  MetricLog(MetricLog&&) noexcept;
  MetricLog& operator=(MetricLog&&) noexcept;
  ~MetricLog();

  /// Appends one object with the metrics in the given order, numbers in full precision; a number
  /// that is not finite, which JSON cannot say, is written as null.
  /// @returns `file_failure` naming path and reason, for example a full disk; the log then ends
  /// with
  ///          the last line that fitted.
  [[nodiscard]] Expected<Done> append(std::span<const Metric> metrics);

private:
  struct Impl;
  explicit MetricLog(std::unique_ptr<Impl> impl) noexcept;

  std::unique_ptr<Impl> impl_;
};

}  // namespace troupe::storage
