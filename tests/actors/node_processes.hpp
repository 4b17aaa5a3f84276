// tests/actors/node_processes.hpp -- node processes of a test: its own program, started anew.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <sys/types.h>

#include "troupe/actors/cluster.hpp"

namespace troupe::actors {

/// How a process ended.
struct ProcessEnd {
  int exit_code = -1;     ///< -1 if a signal ended it.
  int signal_number = 0;  ///< 0 if it exited.
  std::string said;       ///< What it wrote.
};

/// Processes that join a cluster. What is still there at the end is killed.
class NodeProcesses {
public:
  /// They join with what the director's options say, also its certificate.
  NodeProcesses(std::uint32_t count, const Cluster& cluster, const ClusterOptions& options);
  ~NodeProcesses();
  NodeProcesses(const NodeProcesses&) = delete;
  NodeProcesses& operator=(const NodeProcesses&) = delete;

  [[nodiscard]] pid_t process(std::size_t index) const { return children_.at(index).process; }
  void send_signal(std::size_t index, int number) const;

  /// Waits for the end of a process.
  [[nodiscard]] ProcessEnd wait(std::size_t index);

private:
  struct Child {
    pid_t process = 0;
    int output = -1;
    bool has_ended = false;
  };
  std::vector<Child> children_;
};

/// What the program does when it was started as a node: to be called first in `main`. Does not
/// return then.
void perform_if_node(int argc, char** argv);

}  // namespace troupe::actors
