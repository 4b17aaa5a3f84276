// troupe/engine/error.hpp -- the one error type that crosses module boundaries.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace troupe {

/// Every operating error a caller can react to. A code exists only if some caller branches on it;
/// everything else is `internal` plus a message. Zero is reserved for "no error" and the type is
/// eight bits wide, so the actors module can carry it in a message.
enum class Errc : std::uint8_t {
  none = 0,
  invalid_config,     ///< The run configuration violates a documented constraint.
  invalid_schedule,   ///< A schedule drops, repeats, or deadlocks an action.
  invalid_file,       ///< A file's content is not what its format promises.
  file_failure,       ///< The operating system refused to open, read or write a file.
  out_of_memory,      ///< A device or host budget would be exceeded.
  peer_unreachable,   ///< A peer could not be reached or closed its end.
  message_truncated,  ///< A message was longer than the buffer posted for it.
  invalid_batch,      ///< A batch could not be made, or holds tokens outside the vocabulary.
  diverged,           ///< The loss or the gradient norm is no longer a finite number.
  cancelled,          ///< The operation was cancelled by shutdown.
  device_failure,     ///< A device runtime call failed.
  internal,           ///< A bug or an unclassified vendor failure; see the context.
};

/// Returns the enumerator's spelling, for example `"peer_unreachable"`.
[[nodiscard]] std::string_view to_string(Errc code) noexcept;

/// An error code plus one sentence that names the thing, says what was found and what to do.
struct Error {
  Errc code = Errc::none;
  std::string context;
};

}  // namespace troupe
