// tests/cli/peer_process.hpp -- a process of a run that a test starts, disturbs and sees end.
#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include <sys/types.h>

namespace troupe::cli {

using Clock = std::chrono::steady_clock;

/// The `troupe` command in a process group of its own, which ends with this object. What it says
/// goes to the file NAME.said in the folder.
class PeerProcess {
public:
  PeerProcess(std::filesystem::path folder, std::string name,
              const std::vector<std::string>& arguments);
  ~PeerProcess();
  PeerProcess(PeerProcess&& other) noexcept;
  PeerProcess& operator=(PeerProcess&&) = delete;
  PeerProcess(const PeerProcess&) = delete;
  PeerProcess& operator=(const PeerProcess&) = delete;

  [[nodiscard]] pid_t pid() const noexcept { return pid_; }
  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  void signal(int number) const;

  /// Blocks until the process has ended or the time is over. Returns whether it has ended.
  bool wait_for(std::chrono::milliseconds time);
  /// Blocks until `holds` does, which is asked every few milliseconds. Returns whether it does: not
  /// if the process ended or a minute passed before.
  bool wait_until(const std::function<bool()>& holds);

  /// The exit code, or 128 and the number of the signal that ended it. After `wait_for` was true.
  [[nodiscard]] int exit_code() const noexcept { return exit_code_; }
  [[nodiscard]] std::string said() const;
  /// The sentence it gave last, without "troupe: " before; empty if it gave none.
  [[nodiscard]] std::string last_sentence() const;
  /// Those it has started and not buried.
  [[nodiscard]] std::vector<pid_t> children() const;

private:
  std::filesystem::path folder_;
  std::string name_;
  pid_t pid_ = -1;
  int life_ = -1;  ///< Readable when it has ended.
  bool has_ended_ = false;
  int exit_code_ = -1;
};

}  // namespace troupe::cli
