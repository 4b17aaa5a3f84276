// cli/src/profile_file.hpp -- profiles as JSON files.
#pragma once

#include <string>
#include <string_view>

#include "troupe/engine/expected.hpp"
#include "troupe/engine/profile.hpp"

namespace troupe::cli {

/// One JSON object, a line per member; times in nanoseconds. The inverse of `parse_profile`.
[[nodiscard]] std::string to_json(const Profile& profile);

/// Reads such an object. Any bytes are safe to read; members beyond those of `to_json` are left
/// alone.
/// @param source_name names the text in errors, usually a path.
/// @returns `invalid_file` with source, member, what was found and what was expected.
[[nodiscard]] Expected<Profile> parse_profile(std::string_view text,
                                              const std::string& source_name);

/// Reads the file at `path`.
/// @returns also `file_failure`.
[[nodiscard]] Expected<Profile> read_profile(const std::string& path);

}  // namespace troupe::cli
