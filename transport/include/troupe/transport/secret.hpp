// troupe/transport/secret.hpp -- the secret by which the processes of a run know each other.
#pragma once

#include <cstddef>
#include <string>

#include "troupe/engine/expected.hpp"

namespace troupe::transport {

inline constexpr std::size_t secret_min_bytes = 16;
inline constexpr std::size_t secret_max_bytes = 4096;

/// Draws a secret of 256 random bits, in 64 hexadecimal digits. Fails with `internal` if the
/// operating system yields no random numbers.
[[nodiscard]] Expected<std::string> make_secret();

/// Writes a new secret to a new file that its owner alone may read. Fails with `file_failure`, also
/// if there is such a file already.
Expected<Done> write_secret(const std::string& path);

/// Reads a secret, without the line break at its end. Fails with `file_failure` if the file cannot
/// be read or is not a regular one, with `invalid_file` if others than its owner have access to it
/// or its length is outside the bounds above.
[[nodiscard]] Expected<std::string> read_secret(const std::string& path);

}  // namespace troupe::transport
