// cli/src/tls_options.hpp -- the files of `--tls-certificate`, `--tls-key` and `--tls-authority`.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "troupe/engine/expected.hpp"
#include "troupe/transport/tls_files.hpp"

namespace troupe::cli {

/// What the options say: all three files, or none where none is given. Fails with `invalid_config`
/// if one or two are.
[[nodiscard]] Expected<std::optional<transport::TlsFiles>> tls_of(const transport::TlsFiles& given);

/// The options that give another process the same.
[[nodiscard]] std::vector<std::string> to_options(const transport::TlsFiles& given);

}  // namespace troupe::cli
