// cli/src/child_processes.hpp -- the processes that a process starts, and answers for.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <sys/types.h>

#include "troupe/engine/expected.hpp"

namespace troupe::cli {

/// The descriptor from which a child reads its secret to the end: `--secret-fd 3`. A command line
/// and an environment are there for everybody to read, an inherited pipe is not.
inline constexpr int inherited_secret_fd = 3;

/// Reads a secret to its end from an inherited descriptor, and closes that. Fails with
/// `invalid_config` if it is too short.
[[nodiscard]] Expected<std::string> read_inherited_secret(int descriptor);

struct ChildProgram {
  std::string name;                    ///< For messages, for example "node 2".
  std::string path;                    ///< Not searched for.
  std::vector<std::string> arguments;  ///< Without the program's name.
  std::string secret;                  ///< At most 4096 bytes.
};

struct ChildEnd {
  std::string name;
  pid_t pid = 0;
  bool succeeded = false;  ///< Exited with code 0.
  std::string how;         ///< "exited with code 3", "was killed by signal 9 (Killed)"
  /// The last line that it wrote to stderr, without the name before, cut to `last_line_bytes_max`
  /// and made printable; empty if there is none.
  std::string last_line;
  static constexpr std::size_t last_line_bytes_max = 400;
};

/// What runs on the thread that watches over the children: it must return soon, and must not
/// destroy the `ChildProcesses`.
struct ChildListener {
  /// A line that a child wrote, with "[node 2] " before and a line break after it. What is longer
  /// than 64 KiB comes in several. The children wait while this does.
  std::function<void(std::string_view line, bool is_error)> on_line;
  /// The end of a child, after its last line.
  std::function<void(const ChildEnd& end)> on_end;
};

/// Returns what writes lines of children to stdout and stderr of this process, each at once.
[[nodiscard]] std::function<void(std::string_view line, bool is_error)> pass_lines_through();

/// Children that never outlive this process, not even if it is killed.
///
/// A child gets an empty stdin, the secret, no other descriptor of this process, and default
/// signals. It leads a process group of its own: Ctrl-C reaches this process alone, which then ends
/// the children in order, and what a child itself has started ends with it.
class ChildProcesses {
public:
  /// Starts all of them or none. Fails with `file_failure` if a program cannot be started.
  static Expected<std::unique_ptr<ChildProcesses>> start(std::vector<ChildProgram> programs,
                                                         ChildListener listener);

  /// Asks those that still run to end (SIGTERM), kills after `patience` those that do not
  /// (SIGKILL), and waits until all are gone; their ends are reported.
  ~ChildProcesses();
  ChildProcesses(const ChildProcesses&) = delete;
  ChildProcesses& operator=(const ChildProcesses&) = delete;

  /// In the order of the programs.
  [[nodiscard]] const std::vector<pid_t>& pids() const noexcept;

  /// Blocks until all have ended and their ends were reported, or for `time`. Returns whether all
  /// have.
  [[nodiscard]] bool wait_for_all(std::chrono::milliseconds time);

  static constexpr std::chrono::milliseconds patience{2000};

private:
  class Impl;
  explicit ChildProcesses(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace troupe::cli
