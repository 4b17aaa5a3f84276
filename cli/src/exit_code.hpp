// cli/src/exit_code.hpp -- how the command ends.
#pragma once

#include "troupe/engine/error.hpp"

namespace troupe::cli {

/// The exit codes, as `troupe --help` documents them.
enum ExitCode : int {
  exit_success = 0,
  exit_failure = 1,    ///< The run failed: a device, a peer, or a loss that is no number.
  exit_bad_input = 2,  ///< The command line, a configuration or a file is not what it must be, does
                       ///< not fit into memory, or cannot be written.
  // Stopped by a signal, and 128 plus its number; the step was finished and the weights are
  // written.
  exit_interrupted = 130,  ///< SIGINT.
  exit_terminated = 143,   ///< SIGTERM.
};

/// Returns the exit code for an error of `code`.
[[nodiscard]] constexpr ExitCode exit_code_of(Errc code) noexcept {
  switch (code) {
    case Errc::invalid_config:
    case Errc::invalid_schedule:
    case Errc::invalid_file:
    case Errc::file_failure:
    case Errc::out_of_memory:
      return exit_bad_input;
    default:
      return exit_failure;
  }
}

}  // namespace troupe::cli
