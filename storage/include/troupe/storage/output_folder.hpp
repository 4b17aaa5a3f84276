// troupe/storage/output_folder.hpp -- where a run leaves its results.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "troupe/engine/expected.hpp"

namespace troupe::storage {

/// A folder that is known to be writable.
class OutputFolder {
public:
  /// Makes the folder and those above it as needed, and proves that it can be written by writing a
  /// small file and removing it: a run finds out before it trains, not after.
  /// @returns `file_failure` naming the path and the reason.
  [[nodiscard]] static Expected<OutputFolder> open(const std::string& path);

  [[nodiscard]] const std::string& path() const noexcept { return path_; }

  /// The path of the file `name` in this folder, whether or not it exists.
  [[nodiscard]] std::string path_of(std::string_view name) const;

  /// Moves those of the files `names` that are here into a new folder among them, "earlier-1" or
  /// the first such number that is free: what an earlier run has left stays together, and nothing
  /// of it can be taken for this run's. Moves nothing back if it fails halfway.
  /// @returns that folder's path, or none if none of the files is here; `file_failure` naming the
  ///          paths and the reason.
  [[nodiscard]] Expected<std::optional<std::string>> set_aside(
      std::span<const std::string_view> names) const;

  /// Writes the text file `name`, complete or not at all.
  /// @returns `file_failure` naming the path and the reason.
  [[nodiscard]] Expected<Done> write(std::string_view name, std::string_view text) const;

private:
  explicit OutputFolder(std::string path) noexcept : path_{std::move(path)} {}

  std::string path_;
};

}  // namespace troupe::storage
