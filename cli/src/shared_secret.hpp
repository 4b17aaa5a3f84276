// cli/src/shared_secret.hpp -- how the tasks of one launch come to know one secret.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "troupe/engine/expected.hpp"

namespace troupe::cli {

/// Returns where task 0 of a run leaves the secret for the others: in the run's output folder,
/// which all of them see, under a name that no other run has. `run_name` is that of `Launch`.
[[nodiscard]] std::string shared_secret_path(const std::string& output_folder,
                                             const std::string& run_name);

/// A fresh secret in a file, for as long as this lives.
class SharedSecret {
public:
  /// Creates the folder if need be, draws a secret and puts it there, readable by its owner alone.
  /// It appears all at once, in place of one that a run of the same name has left. Call it before
  /// listening. Fails with `file_failure`.
  static Expected<std::unique_ptr<SharedSecret>> publish(const std::string& path);

  /// Removes the file.
  ~SharedSecret();
  SharedSecret(const SharedSecret&) = delete;
  SharedSecret& operator=(const SharedSecret&) = delete;

  [[nodiscard]] const std::string& secret() const noexcept { return secret_; }

private:
  SharedSecret(std::string path, std::string secret);

  std::string path_;
  std::string secret_;
};

/// How long a task waits for task 0: network file systems show a new file after up to a minute, and
/// tasks do not all start at once.
inline constexpr std::chrono::seconds shared_secret_patience{180};

/// Reads what task 0 publishes. Blocks until it is there, at most for `patience`, and then fails
/// with `peer_unreachable`. Fails at once with the errors of `read_secret` if there is something
/// else.
[[nodiscard]] Expected<std::string> await_shared_secret(const std::string& path,
                                                        std::chrono::milliseconds patience);

}  // namespace troupe::cli
