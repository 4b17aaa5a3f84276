// troupe/storage/text_file.hpp -- small text files, read and written as a whole.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "troupe/engine/expected.hpp"

namespace troupe::storage {

/// The largest file `read_text` takes: configurations and schedules are far smaller.
inline constexpr std::size_t text_size_max_bytes = std::size_t{64} << 20U;

/// @returns `file_failure` naming path and reason if the file cannot be read; `invalid_file` if it
///          is larger than `text_size_max_bytes`.
[[nodiscard]] Expected<std::string> read_text(const std::string& path);

/// Writes `text` to `path` complete or not at all: beside its place, forced to the disk, renamed.
/// @returns `file_failure` naming path and reason.
[[nodiscard]] Expected<Done> write_text(const std::string& path, std::string_view text);

}  // namespace troupe::storage
